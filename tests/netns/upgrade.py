#!/usr/bin/env python3
"""An older and this build side by side (O6): an upgrade node by node under load, and a failover in
each direction while they are mixed.

    upgrade.py --from COMMIT     builds that commit first, in a worktree that is removed again
    upgrade.py --old-bin DIR     the directory of its replicatord and replctl

No write is lost, no other failover happens, and both replicas are equal in the end. Exit code: 0 all
is well, 1 it is not, 77 it cannot be tried here.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from cluster import ROOT, Skip, TestFailed, binaries, expect
from trio import Trio

TAKEN_WITHIN_S = 15


def built(commit, target):
    """Builds the older replicatord and replctl."""
    with tempfile.TemporaryDirectory() as place:
        tree = pathlib.Path(place) / "tree"
        git = ("git", "-C", ROOT, "worktree")
        subprocess.run([*git, "add", "--detach", tree, commit], check=True)
        try:
            subprocess.run(["cargo", "build", "--release", "--locked", "--quiet",
                            "-p", "replicator", "-p", "replctl"],
                           cwd=tree, check=True, env={**os.environ, "CARGO_TARGET_DIR": target})
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)
    return target / "release"


class Mixed(Trio):
    """Three nodes of the older build, which go to this one one after the other."""

    def __init__(self, old):
        super().__init__()
        self.new = self.bin
        for node in self.nodes.values():
            node.bin = old

    def upgrade(self, node):
        """As a package does it: the daemon is stopped, and the new one started."""
        if node.is_running:
            node.stop(timeout_s=60)
        node.bin = self.new
        node.start()
        self.wait_in_sync()

    def fail_over(self, target):
        """The primary dies, the other one takes over; it comes back as the build that it is."""
        lost = self.primary()
        lost.kill()
        took = self.wait_for_acks(target.name, TAKEN_WITHIN_S)
        print(f"    {lost.name} died, {target.name} serves after {took:.2f} s")
        lost.start()
        self.wait_in_sync()


def upgrade_under_load(old):
    with Mixed(old) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        cluster.upgrade(beta)
        print("    beta is of the new build")
        cluster.fail_over(beta)
        # New above old: it leads, resyncs and counts on the older one.
        expect(cluster.primary() is beta, "the office moved once more")
        cluster.fail_over(alpha)
        cluster.upgrade(gamma)
        print("    the witness too")
        alpha.ctl("switchover", "demo", "--to", "beta")
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        cluster.wait_in_sync()
        cluster.upgrade(alpha)
        print("    all are")
        beta.ctl("switchover", "demo", "--to", "alpha")
        cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        cluster.finish()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--from", dest="commit", metavar="COMMIT")
    given.add_argument("--old-bin", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    binaries()
    try:
        if arguments.old_bin:
            upgrade_under_load(arguments.old_bin)
        else:
            with tempfile.TemporaryDirectory() as target:
                upgrade_under_load(built(arguments.commit, pathlib.Path(target)))
    except Skip as why:
        print(f"skipped: {why}")
        return 77
    except TestFailed as why:
        print(f"FAILED  {why}")
        return 1
    print("ok      an older and this build side by side")
    return 0


if __name__ == "__main__":
    sys.exit(main())
