"""Scenarios: what daemons recorded (`replicatord --record`) is replayed by the simulator's program
with the same core, without a difference."""

import os

from cluster import MIB, Cluster, built, expect, run
from kills import Blkload, wait_for_writes


def simulator(cluster):
    """The program `sim`. It is built by itself: it switches a feature of the core on that the
    daemon does not have."""
    program = cluster.bin / "sim"
    if "REPLICATOR_BIN" not in os.environ or not program.exists():
        return built("sim") / "sim"
    return program


def recordings(node):
    """The files a node has recorded, the oldest first."""
    found = node.dir.glob("recording*")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def replay(cluster, path, *options):
    """Replays a file; exit code and text."""
    done = run(simulator(cluster), *options, "--replay", path, check=False)
    return done.returncode, done.stdout + done.stderr


def a_recorded_crash_and_return_replay_without_a_difference():
    with Cluster(size_mib=64) as cluster:
        for node in cluster.nodes.values():
            node.arguments = ["--record", node.dir / "recording"]
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(6)
        wait_for_writes(alpha, 300)
        alpha.kill()
        beta.take_over()
        wait_for_writes(beta, 300)
        alpha.start()
        cluster.wait_in_sync()
        blkload.finish(load)
        blkload.verify()
        for node in cluster.nodes.values():
            node.stop()

        files = [path for node in cluster.nodes.values() for path in recordings(node)]
        expect(len(files) == 3, f"recordings: {files}")
        killed = files[0]
        for path in files:
            code, text = replay(cluster, path)
            print("    " + text.strip().replace("\n", "\n    "))
            expect(code == 0 and ": equal: " in text, f"{path} replays with {code}:\n{text}")
            was_killed = "the daemon was killed" in text
            expect(was_killed == (path == killed), f"{path} ends otherwise:\n{text}")
            expect(" ClientRequested" in text or path.parent.name == "alpha",
                   f"{path} has no requests:\n{text}")
            expect(" PeerSaid" in text, f"{path} has no peer:\n{text}")
        expect(killed.stat().st_size > MIB // 16, f"{killed} holds almost nothing")

        # The same file, stepped by a core that breaks a rule: it does not pass as equal.
        code, text = replay(cluster, killed, "--defect", "NoLogBeforeWrite")
        expect(code == 1 and "DIFFERENT" in text, f"a broken core replays with {code}:\n{text}")
        expect("\n    - " in text and "(- recorded, + now)" in text, f"no difference:\n{text}")


SCENARIOS = [a_recorded_crash_and_return_replay_without_a_difference]
