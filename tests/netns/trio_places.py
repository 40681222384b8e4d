"""Scenarios: services of the primary, of the secondary and of all nodes in one list, some of them in
a `parallel` group: who runs what before, during and after a failover and a switchover.
"""

import time

from cluster import expect, wait_until
from trio import stay
from trio_services import Served, began_at

PRIMARY, SECONDARY, ALL = ("left", "right", "last"), ("mirror",), ("everywhere",)
# So that whoever does not wait for the end of another is seen beside it.
SLOWLY = ', stop = "sleep 0.7"'


class Everywhere(Served):
    """`everywhere` on all nodes; on the primary `left` and `right`, whose starts wait for each other,
    and then `last`; `mirror` on the secondary."""

    def __init__(self):
        super().__init__(services=Everywhere.listed)

    def listed(self):
        """The entries of the list."""
        both = ", ".join(self.meeting(*pair) for pair in (("left", "right"), ("right", "left")))
        return [self.beat("everywhere", ', on = "all"'), f"{{ parallel = [ {both} ] }}",
                self.beat("last", SLOWLY), self.beat("mirror", f'{SLOWLY}, on = "secondary"')]

    def meeting(self, name, other):
        """A service whose start does not end before the one of the other has begun."""
        place = f"{self.dir}/met-$REPLICATOR_NODE"
        met = f"touch {place}-{name}; until [ -e {place}-{other} ]; do sleep 0.02; done; "
        return self.beat(name, ", start_timeout_ms = 10000").replace('start = "', f'start = "{met}')

    def part(self):
        """Whoever starts from now on has to meet again."""
        for mark in self.dir.glob("met-*"):
            mark.unlink()

    def wait_for_services(self, node, deadline_s=20.0):
        """Waits until this node has all that a primary is to have, by its beats and in its own words."""
        wait_until(f"{node} has what a primary has", lambda: self.has(node, PRIMARY, SECONDARY),
                   deadline_s)

    def has(self, node, runs, stopped):
        """Whether these and what runs on all nodes beat here, and those do not."""
        said = {it["name"]: it["state"] for it in self.nodes[node].status()["services"]["services"]}
        return (all(self.beats.runs(node, name) and said[name] == "running" for name in runs + ALL)
                and all(not self.pids(node, name) and said[name] == "stopped" for name in stopped))

    def wait_for_secondary(self, node):
        """Waits until it has all that a secondary is to have."""
        wait_until(f"{node} has what a secondary has", lambda: self.has(node, SECONDARY, PRIMARY), 20)

    def expect_told(self, node, primary):
        """`status` of a node names where each of them runs."""
        for name, on in (("last", "primary"), ("mirror", "secondary"), ("everywhere", "all")):
            service = self.service(node, name)
            wanted = on == "all" or (on == "primary") == primary
            expect((service["on"], service["wanted"]) == (on, wanted), f"{node}: {service}")

    def expect_after_each_other(self, node, first, then, since):
        """On a node no service of the one office ran beside one of the other."""
        ended = max(self.beats.last(node, name) for name in first)
        began = min(self.beats.first(node, name, since) for name in then)
        expect(ended < began, f"{first} ran on {node} for {ended - began:.3f} s beside {then}")
        print(f"    {node}: {', '.join(then)} begin {began - ended:.3f} s after {', '.join(first)}")

    def expect_group_then_last(self, node):
        """`last` began after both of the group, by the kernel's word."""
        left, right, last = (began_at(self.pids(node, name)[0]) for name in PRIMARY)
        expect(max(left, right) <= last, f"began at {left}, {right}, {last}")


def services_of_the_primary_the_secondary_and_all_nodes_follow_a_failover_and_a_switchover():
    """Those of the two offices never run beside each other on a node; those of all nodes go on."""
    with Everywhere() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.wait_for_secondary("beta")
        cluster.expect_told("alpha", primary=True)
        cluster.expect_told("beta", primary=False)
        cluster.expect_group_then_last("alpha")
        lasting = cluster.pids("beta", "everywhere")

        # The machine of the primary is gone: the secondary's services end there, the primary's begin.
        cluster.part()
        since = time.monotonic()
        cluster.kill_machine(alpha)
        cluster.wait_for_services("beta")
        cluster.expect_after_each_other("beta", SECONDARY, PRIMARY, since)
        cluster.expect_group_then_last("beta")
        cluster.expect_told("beta", primary=True)
        expect(cluster.pids("beta", "everywhere") == lasting, "what runs everywhere was restarted")

        # It comes back, and has what a secondary has.
        alpha.start()
        cluster.wait_in_sync()
        cluster.wait_for_secondary("alpha")
        stay(1)
        expect(cluster.has("beta", PRIMARY, SECONDARY), "the primary has something else now")
        lasting = {name: cluster.pids(name, "everywhere") for name in ("alpha", "beta")}

        # A switchover: both change what they run.
        cluster.part()
        since = time.monotonic()
        beta.ctl("switchover", "demo", "--to", "alpha")
        cluster.wait_for_services("alpha")
        cluster.wait_for_secondary("beta")
        cluster.expect_after_each_other("alpha", SECONDARY, PRIMARY, since)
        cluster.expect_after_each_other("beta", PRIMARY, SECONDARY, since)
        cluster.expect_group_then_last("alpha")
        expect({name: cluster.pids(name, "everywhere") for name in lasting} == lasting,
               "what runs everywhere was restarted")
        cluster.beats.moves = 2
        cluster.beats.expect_never_two(PRIMARY)


SCENARIOS = [services_of_the_primary_the_secondary_and_all_nodes_follow_a_failover_and_a_switchover]
