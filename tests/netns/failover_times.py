#!/usr/bin/env python3
"""How long clients wait for each kind of failure, measured by a client outside both nodes: in a
network namespace of its own it writes 4 KiB again and again over NBD and TCP to whichever node
serves, while a checked load runs. Defaults as shipped.

    failover_times.py [--runs N] [--json FILE] [--markdown FILE] [KIND...]

N is 20. KIND: killed, restarted, gone, stopped, link, switchover (all). Every run is printed, in
seconds: the longest time without an acknowledgement that began at the fault or after it. The fault
counts from before the command that makes it. Exit code: 0 measured, 1 something was wrong (a
takeover too many, a lost write), 77 it cannot be tried here.
"""

import signal
import sys
import time

from cluster import expect, wait_until
from pauses import Kind, longest_wait, run_all
from trio import Trio, stay
from watch import Watch

SETTLED_S = 0.5
BACK_WITHIN_S = 30
WATCHED_S = 2.5


def killed(cluster, primary, other):
    primary.kill()


def restarted(cluster, primary, other):
    primary.kill()
    primary.spawn()


def gone(cluster, primary, other):
    cluster.isolate(primary)


def stopped(cluster, primary, other):
    primary.signal(signal.SIGSTOP)


def link(cluster, primary, other):
    cluster.cut_link(primary, other)


def switchover(cluster, primary, other):
    primary.ctl("switchover", "demo", "--to", other.name)


KINDS = {
    "killed": Kind(killed, "daemon killed, not restarted", True, 1.5),
    "restarted": Kind(restarted, "daemon killed, restarted at once", None, 1.5),
    "gone": Kind(gone, "machine gone (isolated, alive)", True, 1.5),
    "stopped": Kind(stopped, "daemon stopped (SIGSTOP)", True, 1.5),
    "link": Kind(link, "data link cut only", False, 1.0),
    "switchover": Kind(switchover, "switchover", True, 0.3),
}


def one_run(cluster, kind):
    """One fault and its end; how long the client waited."""
    strike, _, moves, _ = KINDS[kind]
    primary = cluster.primary()
    other = next(node for node in cluster.data_nodes if node is not primary)
    cluster.wait_for_acks(primary.name, BACK_WITHIN_S)
    stay(SETTLED_S)
    since = time.monotonic()
    strike(cluster, primary, other)
    survivors = {True: [other.name], False: [primary.name], None: [primary.name, other.name]}[moves]
    if moves is not False:
        # Whoever was to be replaced may have acknowledged until the fault was there.
        wait_until("service is back", lambda: any(
            ack[0] in survivors and ack[1] > since
            and (ack[0] != primary.name or opened_since(cluster, ack[0], since))
            for ack in cluster.watch.acks()), BACK_WITHIN_S)
    stay(WATCHED_S if moves is False else 0.3)
    wait = longest_wait([ack[2] for ack in cluster.watch.acks()], since)
    cluster.heal()
    primary.signal(signal.SIGCONT)
    if not primary.is_running:
        primary.start()
    cluster.wait_in_sync()
    now = cluster.primary()
    if moves is not None:
        expect(now is (other if moves else primary), f"{now.name} is primary after: {kind}")
    cluster.watch.expect_well()
    return wait


def opened_since(cluster, name, since):
    """Whether the client connected to a node again since then."""
    return any(line[0] == "open" and line[1] == name and float(line[2]) > since
               for line in cluster.watch.lines())


# So many runs in a row would have a peer held back after the third (P6), and are to find it back.
NOT_HELD_BACK = {"rejoin_delay_ms": 0}


def measure(kind, runs, times):
    """All runs of one kind on one cluster."""
    with Trio(timing=NOT_HELD_BACK) as cluster:
        cluster.start(watched=False)
        cluster.watch = Watch(cluster, pause_ms=2, over_tcp=True)
        for _ in range(runs):
            times.append(one_run(cluster, kind))
            print(f"{times[-1]:.3f}", end=" ", flush=True)
        print()
        cluster.finish()


if __name__ == "__main__":
    sys.exit(run_all(__doc__, KINDS, measure))
