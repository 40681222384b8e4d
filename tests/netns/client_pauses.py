#!/usr/bin/env python3
"""How long a client of a service waits for each kind of failure: a resource with ext4, a floating address
and a small service that makes each line durable; the client knows the address and is on a machine that
is none of the three. Each node is a machine of its own (machine.py). Defaults as shipped.

    client_pauses.py [--runs N] [--json FILE] [--markdown FILE] [KIND...]

N is 20. KIND: gone, killed, service, isolated, switchover, shutdown (all). Every run is printed, in seconds: the
longest time without an answer that began at the fault or after it, the start of the service (an
interpreter of Python) and the mount included. Exit code: 0 all goals are met, 1 one is missed or
something was wrong (a lost line, the wrong node), 77 it cannot be tried here.
"""

import os
import signal
import sys
import time

from cluster import expect, wait_until
from notes import Notes
from pauses import Kind, longest_wait, run_all
from trio import stay

SETTLED_S = 0.5
# So long a machine that was shut down is away.
AWAY_S = 3
BACK_WITHIN_S = 40


def gone(cluster, primary, other):
    cluster.isolate(primary)
    primary.cut_power()


def killed(cluster, primary, other):
    primary.kill()


def service(cluster, primary, other):
    os.kill(cluster.server(primary), signal.SIGKILL)


def isolated(cluster, primary, other):
    cluster.isolate(primary)


def switchover(cluster, primary, other):
    primary.ctl("switchover", "demo", "--to", other.name)


def shutdown(cluster, primary, other):
    """What systemd does at a reboot, as far as a namespace can: the daemon gets SIGTERM and ends, the
    machine is gone, and comes back. The whole of it with a real systemd: tests/vm/reboot.py."""
    primary.stop()
    primary.cut_power()
    stay(AWAY_S)
    primary.start()


KINDS = {
    "gone": Kind(gone, "machine gone", True, 2.0),
    "killed": Kind(killed, "daemon killed, not restarted", True, None),
    "service": Kind(service, "service killed, restarted in place", False, 0.2),
    "isolated": Kind(isolated, "primary alive, cut off from everybody", True, 2.0),
    "switchover": Kind(switchover, "switchover", True, 1.0),
    "shutdown": Kind(shutdown, "orderly shutdown of the machine and its return", True, 1.0),
}


def one_run(cluster, kind):
    """One fault and its end; how long the client waited."""
    strike, moves = KINDS[kind].strike, KINDS[kind].moves
    primary = cluster.primary()
    other = next(node for node in cluster.data_nodes if node is not primary)
    cluster.items.wait_for_more()
    stay(SETTLED_S)
    before = cluster.answers()[-1][2]
    expect(before.startswith(primary.name), f"{before} answers, {primary.name} is primary")
    since = time.monotonic()
    strike(cluster, primary, other)
    serves = other if moves else primary
    wait_until("the service answers again", lambda: any(
        began > since and who != before and who.startswith(serves.name)
        for began, _, who in cluster.answers()), BACK_WITHIN_S)
    stay(0.3)
    wait = longest_wait([ended for _, ended, _ in cluster.answers()], since)
    cluster.heal()
    if not primary.is_running:
        primary.start()
    cluster.wait_in_sync()
    if not moves:
        # One that ends again and again is restarted after growing times; each run is the first.
        primary.ctl("clear", "demo")
    expect(cluster.primary() is serves, f"{cluster.primary().name} is primary after: {kind}")
    if moves:
        wait_until(f"{primary.name} has stopped what it had", lambda: all(
            it["state"] == "stopped" for it in primary.status()["services"]["services"])
            and not cluster.server(primary), BACK_WITHIN_S)
    return wait


def measure(kind, runs, times):
    """All runs of one kind on one cluster."""
    with Notes() as cluster:
        cluster.start()
        for _ in range(runs):
            times.append(one_run(cluster, kind))
            print(f"{times[-1]:.3f}", end=" ", flush=True)
        print()
        cluster.items.finish(cluster.kept, told=False)
        cluster.expect_identical()


if __name__ == "__main__":
    sys.exit(run_all(__doc__, KINDS, measure))
