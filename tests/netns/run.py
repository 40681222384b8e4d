#!/usr/bin/env python3
"""Real daemons on this machine: kills, returns, resyncs, roles, bad input, cut networks. Every
scenario is a function whose name says what must be true.

Exit code: 0 all passed, 1 something failed, 77 something could not be tried here (no root).
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback

import bad_input
import etcd_register
import etcd_tls
import fencing
import floating_address
import growing
import kills
import many_clusters
import networks
import recordings
import roles
import storage
import three
import trio_address
import trio_explain
import trio_guard
import trio_hangs
import trio_hosts
import trio_http
import trio_members
import trio_network
import trio_operation
import trio_placement
import trio_places
import trio_postgres
import trio_reach
import trio_readme
import trio_scarcity
import trio_services
import verify
from cluster import Refused, Skip, TestFailed, binaries, die_with_parent

SCENARIOS = (kills.SCENARIOS + roles.SCENARIOS + storage.SCENARIOS + growing.SCENARIOS + networks.SCENARIOS
             + bad_input.SCENARIOS + recordings.SCENARIOS + fencing.SCENARIOS + floating_address.SCENARIOS
             + trio_network.SCENARIOS + trio_hosts.SCENARIOS + trio_operation.SCENARIOS
             + trio_explain.SCENARIOS + trio_members.SCENARIOS + three.SCENARIOS
             + trio_hangs.SCENARIOS + trio_http.SCENARIOS
             + trio_services.SCENARIOS + trio_guard.SCENARIOS + trio_address.SCENARIOS
             + trio_placement.SCENARIOS + trio_places.SCENARIOS + etcd_register.SCENARIOS
             + etcd_tls.SCENARIOS
             + trio_postgres.SCENARIOS + trio_reach.SCENARIOS + trio_scarcity.SCENARIOS
             + many_clusters.SCENARIOS + trio_readme.SCENARIOS + verify.SCENARIOS)
LONG = (three.LONG + growing.LONG + trio_postgres.LONG + trio_network.LONG + trio_hosts.LONG
        + trio_operation.LONG + trio_placement.LONG + trio_services.LONG + trio_guard.LONG
        + trio_address.LONG + fencing.LONG + etcd_register.LONG + etcd_tls.LONG + trio_reach.LONG)

DEADLINE_S = 900


def sentence(scenario):
    """The name of a scenario in words."""
    return scenario.__name__.replace("_", " ")


def play(scenario):
    """Plays a scenario in this process; ends it with 0, 1 or 77."""
    die_with_parent()
    signal.alarm(DEADLINE_S)
    code = 0
    try:
        scenario()
    except Skip as why:
        print(f"    {why}")
        code = 77
    except (TestFailed, Refused) as error:
        line = traceback.extract_tb(error.__traceback__)[1]
        print(f"    line {line.lineno}: {line.line}\n    {error}")
        code = 1
    except BaseException:  # also what would end a process quietly
        traceback.print_exc(file=sys.stdout)
        code = 1
    sys.stdout.flush()
    os._exit(code)


class Playing:
    """A scenario in a process of its own, so that its names, ports and mistakes are its own too."""

    def __init__(self, scenario):
        self.scenario, self.began = scenario, time.monotonic()
        self.output = tempfile.TemporaryFile()
        self.process = os.fork()
        if self.process == 0:
            os.dup2(self.output.fileno(), 1)
            os.dup2(self.output.fileno(), 2)
            play(scenario)

    def tell(self, status):
        """Prints what it said and how it ended; gives that word."""
        word = {0: "ok", 77: "skipped"}.get(os.waitstatus_to_exitcode(status), "FAILED")
        self.output.seek(0)
        said = self.output.read().decode(errors="replace")
        print(f"{said}{word:7} {sentence(self.scenario)} ({time.monotonic() - self.began:.1f} s)",
              flush=True)
        return word


def play_all(scenarios, jobs):
    """Plays them, `jobs` at a time, each told whole when it ends; gives scenarios by word."""
    waiting, playing = list(reversed(scenarios)), {}
    ended = {"ok": [], "FAILED": [], "skipped": []}
    while waiting or playing:
        while waiting and len(playing) < jobs:
            one = Playing(waiting.pop())
            playing[one.process] = one
        process, status = os.wait()
        one = playing.pop(process)
        ended[one.tell(status)].append(one.scenario)
    return ended


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="WORD", help="those with one of these in the name")
    parser.add_argument("--long", action="store_true", help="all there are")
    parser.add_argument("--list", action="store_true", help="their names")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time (1)")
    arguments = parser.parse_args()
    if arguments.list:
        for scenario in SCENARIOS + LONG:
            print(sentence(scenario))
        return 0
    short = [it for it in SCENARIOS if not hasattr(it, "is_for_long")]
    chosen = [it for it in (SCENARIOS + LONG if arguments.long else short)
              if not arguments.words or any(word in sentence(it) for word in arguments.words)]
    began = time.monotonic()
    binaries()
    alone = [it for it in chosen if hasattr(it, "is_alone")]
    ended = play_all([it for it in chosen if it not in alone], arguments.jobs)
    for word, scenarios in play_all(alone, 1).items():
        ended[word] += scenarios
    failed, skipped = ended["FAILED"], ended["skipped"]
    print(f"\n{len(ended['ok'])} passed, {len(failed)} failed, {len(skipped)} skipped, "
          f"{time.monotonic() - began:.0f} s")
    for scenario in failed:
        print(f"FAILED: {sentence(scenario)}")
    return 1 if failed or not chosen else 77 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
