"""Scenarios: the disk or the data loop of the primary hangs while its control plane lives (L1). It counts
as lost: the other node serves, and what was on its way in the old one is answered by nobody.
"""

import time

from cluster import expect, wait_until
from stopped_thread import StoppedThread
from throttled_disk import ThrottledDisk
from trio import SIZE_MIB, Trio, stay

# A disk that is at work for so long without anything being done hangs.
DISK_HANGS_AFTER_S = 10
LEASE_S = 1.0
# What remains of the lease (L4), and a busy machine.
TAKEN_WITHIN_S = 15
STAYS_S = 2
# Else a busy machine may have the primary without its only heir at the fault.
PATIENT = {"peer_silence_ms": 5000, "ping_interval_ms": 1000}


def expect_replaced(cluster, since):
    """beta serves; how long after the fault, and for how long clients had no answer."""
    cluster.wait_for_acks("beta", DISK_HANGS_AFTER_S + TAKEN_WITHIN_S)
    acks = cluster.watch.acks()
    first = next(ack.answered for ack in acks if ack.node == "beta")
    last = max(ack.answered for ack in acks if ack.node == "alpha")
    expect(last < first, "the old primary answered when beta had")
    print(f"    the first write on beta {first - since:.2f} s after the fault; clients waited "
          f"{first - last:.2f} s")
    return first - since


def expect_silent(cluster):
    """The old primary, which is about to go on, answers nothing of what it had: its clients are told
    that they must go elsewhere."""
    alpha = cluster.alpha
    wait_until("the client of alpha is told", lambda: any(
        line[:2] == ["end", "alpha"] for line in cluster.watch.lines()), 30)
    wait_until("alpha follows", lambda: alpha.replica()["role"] == "secondary", 30)
    stay(STAYS_S)
    cluster.finish()
    expect(cluster.primary() is cluster.beta, "the old primary took the office back")


def l1_a_primary_whose_disk_hangs_is_replaced_and_never_answers_again():
    with ThrottledDisk(SIZE_MIB) as disk, Trio(
            disks={("demo", "alpha"): disk.path}, timing=PATIENT) as cluster:
        alpha = cluster.start(wraps={"alpha": disk.wrap}).alpha
        since = time.monotonic()
        disk.hang()
        wait_until("a write waits for the disk, and status says so", lambda: any(
            wait["party"] == "disk" for wait in alpha.replica()["waits"]), 10)
        took = expect_replaced(cluster, since)
        expect(took > DISK_HANGS_AFTER_S, f"replaced after {took:.2f} s: not because its disk hangs")
        expect(alpha.is_running, "alpha ended instead of waiting for its disk")
        disk.heal()
        expect_silent(cluster)


def l1_a_primary_whose_data_loop_hangs_is_replaced_and_never_answers_again():
    with Trio(timing=PATIENT) as cluster:
        alpha = cluster.start().alpha
        since = time.monotonic()
        with StoppedThread(alpha.process, "data demo"):
            took = expect_replaced(cluster, since)
            expect(took > LEASE_S, f"replaced after {took:.2f} s, before its lease was over")
            expect(any(node["name"] == "alpha" and node["state"] == "reachable" for node in
                       cluster.gamma.ctl("status")["cluster_state"]["nodes"]), "alpha is silent")
        expect_silent(cluster)


SCENARIOS = [
    l1_a_primary_whose_disk_hangs_is_replaced_and_never_answers_again,
    l1_a_primary_whose_data_loop_hangs_is_replaced_and_never_answers_again,
]
