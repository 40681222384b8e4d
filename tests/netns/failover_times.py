#!/usr/bin/env python3
"""How long clients wait for each kind of failure, measured by a client outside both nodes: in a
network namespace of its own it writes 4 KiB again and again over NBD and TCP to whichever node
serves, while a checked load runs. Defaults as shipped but for one key: `rejoin_delay_ms` is 0, since so
many runs in a row would have a peer held back after the third (P6); and `lease_ms` where the kind says so.

    failover_times.py [--runs N] [--json FILE] [--markdown FILE] [KIND...]

N is 20. KIND: killed, restarted, gone, gone_short, stopped, link, switchover, and of the secondary
secondary_killed, secondary_stopped, secondary_gone (all). Every run is printed, in seconds: the longest
time without an acknowledgement that began at the fault or after it; of the secondary the longest wait
of a write, less the time after which a silent peer counts as lost (none for a connection that its
kernel closed). The fault counts from before the command that makes it. Exit code: 0 all goals are met,
1 one is missed or something was wrong (a takeover too many, a lost write), 77 it cannot be tried here.
"""

import signal
import sys
import time

from cluster import expect, wait_until
from pauses import Kind, longest_wait, longest_wait_of_a_write, run_all
from trio import Trio, stay
from watch import Watch

SETTLED_S = 0.5
BACK_WITHIN_S = 30
WATCHED_S = 2.5
# As shipped, `peer_silence_ms`: a peer that says nothing for so long is lost.
PEER_SILENCE_S = 0.7


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


def secondary_killed(cluster, primary, other):
    other.kill()


def secondary_stopped(cluster, primary, other):
    other.signal(signal.SIGSTOP)


def secondary_gone(cluster, primary, other):
    cluster.isolate(other)


def of_the_secondary(strike, words, detected_after=0.0):
    """The primary goes on alone after about one round of the majority."""
    return Kind(strike, words, False, 0.05, percent=99, detected_after=detected_after)


KINDS = {
    "killed": Kind(killed, "daemon killed, not restarted", True, 1.5),
    "restarted": Kind(restarted, "daemon killed, restarted at once", None, 1.5),
    "gone": Kind(gone, "machine gone (isolated, alive)", True, 1.5),
    "gone_short": Kind(gone, "machine gone, lease_ms = 300", True, 0.9, options="lease_ms = 300"),
    "stopped": Kind(stopped, "daemon stopped (SIGSTOP)", True, 1.5),
    "link": Kind(link, "data link cut only", False, 1.0),
    "switchover": Kind(switchover, "switchover", True, 0.3),
    "secondary_killed": of_the_secondary(
        secondary_killed, "secondary killed: wait of a write"),
    "secondary_stopped": of_the_secondary(
        secondary_stopped, "secondary stopped: wait beyond its silence", PEER_SILENCE_S),
    "secondary_gone": of_the_secondary(
        secondary_gone, "secondary cut off: wait beyond its silence", PEER_SILENCE_S),
}
OF_THE_SECONDARY = [name for name in KINDS if name.startswith("secondary_")]


def one_run(cluster, kind):
    """One fault and its end; how long the client waited."""
    strike, moves = KINDS[kind].strike, KINDS[kind].moves
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
    acks = cluster.watch.acks()
    if kind in OF_THE_SECONDARY:
        wait = longest_wait_of_a_write(acks, since) - KINDS[kind].detected_after
    else:
        wait = longest_wait([ack.answered for ack in acks], since)
    cluster.heal()
    for node in (primary, other):
        node.signal(signal.SIGCONT)
        if not node.is_running:
            node.start()
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


NOT_HELD_BACK = {"rejoin_delay_ms": 0}


def measure(kind, runs, times):
    """All runs of one kind on one cluster."""
    with Trio(timing=NOT_HELD_BACK, top=KINDS[kind].options) as cluster:
        cluster.start(watched=False)
        cluster.watch = Watch(cluster, pause_ms=2, over_tcp=True)
        for _ in range(runs):
            times.append(one_run(cluster, kind))
            print(f"{times[-1]:.3f}", end=" ", flush=True)
        print()
        cluster.finish()


if __name__ == "__main__":
    sys.exit(run_all(__doc__, KINDS, measure))
