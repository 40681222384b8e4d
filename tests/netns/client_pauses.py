#!/usr/bin/env python3
"""How long a client of a service waits for each kind of failure: a resource with ext4, a floating address
and a small service that makes each line durable; the client knows the address and is on a machine that
is none of the three. Each node is a machine of its own (machine.py). Defaults as shipped.

    client_pauses.py [--runs N] [--json FILE] [--markdown FILE] [KIND...]

N is 20. KIND: gone, killed, service, isolated, switchover, shutdown (all). Every run is printed, in seconds: the
longest time without an answer that began at the fault or after it; in brackets how long the fault went
unnoticed (from the history of who took over, from the log where the service was restarted), and what
the service's own stop and start took of it: from its unmount to its mount and its interpreter of
Python's first answer, the floating address left out. The goals are about what remains, or about the
notice. Exit code: 0 all goals are met, 1 one is missed or something was wrong (a lost line, the wrong
node), 77 it cannot be tried here.
"""

import datetime
import json
import os
import re
import signal
import sys
import time

from cluster import expect, wait_until
from example import ADDRESS
from notes import Notes
from pauses import Kind, Pause, longest_wait, run_all
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
    machine is gone, and comes back. With a real systemd: tests/vm/reboot.py --services."""
    primary.stop()
    primary.cut_power()
    stay(AWAY_S)
    primary.start()


def without_own(pause):
    """What the goals of the issue are about, "plus the service's own start"."""
    return pause.without_own


KINDS = {
    "gone": Kind(gone, "machine gone", True, 2.0, judged=without_own),
    "killed": Kind(killed, "daemon killed, not restarted", True, None),
    "service": Kind(service, "service killed, restarted in place", False, 0.2,
                    judged=lambda pause: pause.noticed),
    "isolated": Kind(isolated, "primary alive, cut off from everybody", True, 2.0, judged=without_own),
    "switchover": Kind(switchover, "switchover", True, 1.0, judged=without_own),
    "shutdown": Kind(shutdown, "orderly shutdown of the machine and its return", True, 1.0,
                     judged=without_own),
}


def told(node, since, pattern):
    """(time, match) of each line of a daemon's log since then (in seconds since 1970) that fits."""
    for line in node.log().splitlines():
        at, _, text = line.partition(" ")
        if match := re.search(pattern, text):
            seconds = datetime.datetime.fromisoformat(at).timestamp()
            if seconds >= since:
                yield seconds, match


def noticed_at(serves, since, moves):
    """When a fault was noticed, in seconds since 1970: of one after which the office moved, by the
    history of who took it; else by the log."""
    if not moves:
        return next(at for at, _ in told(serves, since, r"process \S+ \(\d+\) of notes ended"))
    lines = (serves.dir / "history.jsonl").read_text().splitlines()
    taken = next(entry for entry in map(json.loads, reversed(lines))
                 if entry["what"] == "takeover" and entry["phases"])
    ms = 0
    for phase, took_ms in taken["phases"]:
        # Until it is detected it is not noticed.
        ms += took_ms if phase != "detected" else 0
        if phase == "committed":
            break
    return (taken["at_unix_ms"] - ms) / 1000


def own_time(source, serves, since, answered_at):
    """How long the service itself took to stop and to start, mount and first answer included, without
    its floating address."""
    done = r"(\S+): (started|stopped) after (\d+) ms"
    began, spent = None, 0.0
    for node, word in ((source, "stopped"), (serves, "started")):
        for at, match in told(node, since, done):
            if match[2] != word or at > answered_at:
                continue
            took = int(match[3]) / 1000
            if word == "started" and began is None:
                began = at - took
            is_address = match[1].startswith(ADDRESS)
            spent += (took if word == "stopped" else 0) if not is_address else (
                -took if word == "started" else 0)
    return spent + answered_at - began


def one_run(cluster, kind):
    """One fault and its end; how long the client waited."""
    strike, moves = KINDS[kind].strike, KINDS[kind].moves
    primary = cluster.primary()
    other = next(node for node in cluster.data_nodes if node is not primary)
    cluster.items.wait_for_more()
    stay(SETTLED_S)
    before = cluster.answers()[-1][2]
    expect(before.startswith(primary.name), f"{before} answers, {primary.name} is primary")
    since, since_1970 = time.monotonic(), time.time()
    strike(cluster, primary, other)
    serves = other if moves else primary
    first = wait_until("the service answers again", lambda: [
        ended for began, ended, who in cluster.answers()
        if began > since and who != before and who.startswith(serves.name)], BACK_WITHIN_S)[0]
    stay(0.3)
    wait = longest_wait([ended for _, ended, _ in cluster.answers()], since)
    own = own_time(primary, serves, since_1970, since_1970 + first - since)
    # As that daemon writes it down, a moment after it serves.
    noticed = wait_until("who serves tells since when it knows", lambda: noticed_at(
        serves, since_1970, moves), BACK_WITHIN_S) - since_1970
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
    return Pause(wait, noticed, own)


def measure(kind, runs, times):
    """All runs of one kind on one cluster."""
    with Notes() as cluster:
        cluster.start()
        for _ in range(runs):
            times.append(one_run(cluster, kind))
            run = times[-1]
            print(f"{run:.3f} (noticed {run.noticed:.3f}, own {run.own:.3f})", end=" ", flush=True)
        print()
        cluster.items.finish(cluster.kept, told=False)
        cluster.expect_identical()


if __name__ == "__main__":
    sys.exit(run_all(__doc__, KINDS, measure))
