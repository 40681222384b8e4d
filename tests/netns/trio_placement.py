"""Scenarios: where resources run: `prefer`, `avoid`, and `with` another resource."""

from cluster import Refused, TestFailed, expect, wait_until
from three import Three
from trio import Trio


class Placed(Trio):
    """A trio with several resources, each with a line of its own in the configuration."""

    def __init__(self, **placements):
        self.placements = placements
        super().__init__(resources=tuple(placements))

    def _config(self, mine):
        text = super()._config(mine)
        for resource, line in self.placements.items():
            text = text.replace(f"[resource.{resource}]\n", f"[resource.{resource}]\n{line}\n")
        return text

    def start(self, watched=False):
        """All daemons; every resource has both members."""
        self.create()
        for node in self.nodes.values():
            node.spawn()
        self.wait_until_whole()
        return self

    def wait_until_whole(self):
        """Waits until every resource has a primary and both members."""
        for resource in self.placements:
            self.wait_in_sync(resource)

    def where(self, seen_by=None):
        """Each resource's primary, as the register has it."""
        return {resource: self.office(seen_by, resource)["primary"] for resource in self.placements}

    def wait_until_at(self, seen_by=None, **places):
        """Waits until each of these resources is primary on that node, and serves there."""
        wait_until(f"the offices are {places}", lambda: all(
            self.where(seen_by)[resource] == name
            and self.nodes[name].replica(resource)["role"] == "primary"
            for resource, name in places.items()), 30)


def a_resource_follows_the_one_that_it_runs_with():
    """By a switchover as by a failover; by itself it does not leave."""
    with Placed(one="", two='with = "one"') as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.wait_until_at(one="alpha", two="alpha")
        for to in ((), ("--to", "beta")):
            try:
                alpha.ctl("switchover", "two", *to)
            except Refused as refused:
                expect(refused.code == "goes_with", f"{refused}")
                expect("switchover one --to beta" in str(refused), f"{refused}")
            else:
                raise TestFailed("two was switched away from one, to be moved back at once")
        expect(cluster.where() == {"one": "alpha", "two": "alpha"}, "it moved")
        alpha.ctl("switchover", "one", "--to", "beta")
        cluster.wait_until_at(one="beta", two="beta")
        cluster.wait_until_whole()
        cluster.isolate(beta)
        beta.cut_power()
        cluster.wait_until_at(alpha, one="alpha", two="alpha")
        cluster.heal()
        beta.start()
        cluster.wait_until_whole()
        for resource in cluster.placements:
            cluster.expect_identical(resource)


def of_two_that_could_take_over_the_one_that_is_liked_does():
    """Where all are well: nobody waits for a preference that cannot be had."""
    with Three() as cluster:
        cluster.options = 'prefer = "alpha"\navoid = "beta"'
        cluster.write_config()
        alpha, beta, gamma = cluster.start().nodes.values()
        alpha.kill()
        expect(cluster.wait_for_another(than=alpha) is gamma, "beta took over, which is avoided")
        alpha.start()
        cluster.wait_in_sync()
        expect(cluster.primary() is gamma, "the office went back by itself")
        gamma.kill()
        expect(cluster.wait_for_another(than=gamma) is alpha, "beta took over, and not alpha")
        cluster.wait_in_sync(but=("gamma",))
        alpha.kill()
        gamma.start()
        cluster.wait_for_acks("beta")
        alpha.start()
        cluster.finish()


SCENARIOS = [a_resource_follows_the_one_that_it_runs_with]
LONG = [of_two_that_could_take_over_the_one_that_is_liked_does]
