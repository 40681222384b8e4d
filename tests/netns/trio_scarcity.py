"""Scenarios: a daemon among three that gets no descriptors, no threads or no memory any more. It serves
whom it serves, says what is wrong, loses nothing, and is well again when there is enough.
"""

import os
import resource

from cluster import MIB, expect, other, wait_until
from control_group import ControlGroup
from nbd_client import WRITE, Client, Lost, Refused
from trio import Trio
from trio_network import expect_all_say_well, last_revision, nobody_took_over

TAKEN_WITHIN_S = 15
# A client that is not served within that is not served.
PATIENCE_S = 2
CLIENTS_MAX = 16
PIECE = 64 << 10


class Descriptors:
    """All but a few descriptors of a running daemon are taken away."""

    def __init__(self, node, left):
        self.pid = node.process.pid
        self.before = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{self.pid}/fd"))
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (highest + 1 + left, self.before[1]))

    def lift(self):
        """There are enough again."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, self.before)


class ProcessTable:
    """A control group (version 1 or 2) that limits the number of processes and threads."""

    def __init__(self):
        self.group = ControlGroup("pids", "pids")

    def __enter__(self):
        self.group.make()
        return self

    def __exit__(self, *_):
        self.lift()
        wait_until("the control group is empty", self.group.is_removed)

    def take(self, node):
        """The daemon of a node, with all its threads, belongs to it from now on."""
        (self.group.path / "cgroup.procs").write_text(str(node.process.pid))

    def fill(self, left):
        """So many more may be born, and no others."""
        # Who ends makes no room when none is to be left.
        used = int((self.group.path / "pids.current").read_text()) if left else 0
        (self.group.path / "pids.max").write_text(str(used + left))

    def lift(self):
        """There is place again."""
        (self.group.path / "pids.max").write_text("max")


def clients_until_none_is_served(node):
    """Connections to a node, one after the other, as long as they are served."""
    served = []
    for _ in range(CLIENTS_MAX):
        try:
            served.append(Client(node.nbd_socket, "demo", PATIENCE_S))
        except (Lost, Refused) as why:
            print(f"    {node.name} served {len(served)} more clients; then: {why}")
            return served
    return served


def h5_a_primary_without_descriptors_serves_whom_it_serves_and_is_well_when_it_has_some():
    """And decides: the other member is lost meanwhile."""
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        scarce = Descriptors(alpha, left=6)
        clients = clients_until_none_is_served(alpha)
        expect(len(clients) < CLIENTS_MAX, "there were descriptors enough")
        wait_until("its log says what is missing",
                   lambda: "Too many open files" in alpha.log(), 10)
        for at, client in enumerate(clients):
            client.write(at * MIB // 4 + 48 * MIB, b"h" * 4096, fua=True)
        beta.kill()
        cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        wait_until("beta left the set", lambda: cluster.office(cluster.gamma)["in_sync"]
                   == ["alpha"], 10)
        for client in clients:
            client.close()
        scarce.lift()
        beta.start()
        cluster.wait_in_sync()
        expect_all_say_well(cluster, "alpha", "beta")
        cluster.finish()
        nobody_took_over(cluster, before)


def h5_a_secondary_without_descriptors_takes_the_office_and_serves_when_it_has_some():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        scarce = Descriptors(beta, left=0)
        alpha.kill()
        wait_until("beta has the office", lambda: cluster.office(cluster.gamma)["primary"]
                   == "beta", TAKEN_WITHIN_S)
        wait_until("its log says what is missing",
                   lambda: "Too many open files" in beta.log(), 10)
        scarce.lift()
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after it had descriptors again")
        alpha.start()
        cluster.wait_in_sync()
        expect_all_say_well(cluster, "beta", "alpha")
        cluster.finish()


def h5_a_primary_in_a_full_process_table_serves_decides_and_hands_over():
    """At each number of threads that are left: what it does for others needs one or two."""
    with ProcessTable() as table, Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        table.take(alpha)
        for left in (2, 1, 0):
            table.fill(left)
            code, out, error = alpha.ctl_raw("status", timeout=30)
            print(f"    status with {left} more threads: {code} {out[:40]!r} {error.strip()!r}")
            expect(alpha.is_running, f"alpha ended when it was asked:\n{alpha.log_tail()}")
            expect(code in (0, 4) or left == 0, f"alpha did not answer: {error}")
        expect(not clients_until_none_is_served(alpha), "a client was served without a thread")
        wait_until("its log says what is missing", lambda: "no thread for" in alpha.log(), 10)
        beta.kill()
        cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        wait_until("beta left the set", lambda: cluster.office(cluster.gamma)["in_sync"]
                   == ["alpha"], 10)
        table.lift()
        beta.start()
        cluster.wait_in_sync()
        expect_all_say_well(cluster, "alpha", "beta")
        nobody_took_over(cluster, before)
        table.fill(0)
        alpha.stop()
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        table.lift()
        last = cluster.takeovers()[-1]
        expect("silent" not in last["why"], f"a stop was taken for a failure: {last['why']}")
        alpha.start()
        cluster.wait_in_sync()
        expect_all_say_well(cluster, "beta", "alpha")
        cluster.finish()


def h5_a_primary_without_memory_goes_on_or_is_replaced_and_nothing_is_lost():
    """Whatever ends for want of memory says so; what has none left serves all the same."""
    with Trio() as cluster:
        alpha = cluster.start().alpha
        limit = resource.RLIMIT_AS
        before = resource.prlimit(alpha.process.pid, limit)
        in_use = alpha.memory_kib("VmSize") << 10
        resource.prlimit(alpha.process.pid, limit, (in_use + MIB, before[1]))
        clients = clients_until_none_is_served(alpha)
        for at, client in enumerate(clients):
            client.send_request(WRITE, 48 * MIB + at * PIECE, PIECE, bytes(PIECE))
        alpha.ctl_raw("status", timeout=30)
        if alpha.is_running:
            cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
            expect("no thread" in alpha.log() or "memory" in alpha.log(), "its log says nothing")
            resource.prlimit(alpha.process.pid, limit, before)
            print("    alpha goes on")
        else:
            expect("memory" in alpha.log_tail(), f"it does not say why:\n{alpha.log_tail()}")
            print("    alpha ended")
            cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
            alpha.start()
        for client in clients:
            client.close()
        cluster.wait_in_sync()
        primary = cluster.primary().name
        expect_all_say_well(cluster, primary, other(primary))
        cluster.finish()


SCENARIOS = [
    h5_a_primary_without_descriptors_serves_whom_it_serves_and_is_well_when_it_has_some,
    h5_a_secondary_without_descriptors_takes_the_office_and_serves_when_it_has_some,
    h5_a_primary_in_a_full_process_table_serves_decides_and_hands_over,
    h5_a_primary_without_memory_goes_on_or_is_replaced_and_nothing_is_lost,
]
