"""Scenarios: clients do not reach the primary, the cluster does (P4). The office goes to a node that
sees enough of the same targets, and only to such a one; `explain` compares what each of them sees.
"""

import re

from cluster import expect, run, wait_until
from trio import Trio, stay
from trio_explain import explained, office

TARGETS = ("10.99.0.50", "10.99.0.51")
SERVICES = f"""services = [
  {{ reach = ["{TARGETS[0]}", "{TARGETS[1]}"], need = 1 }},
]"""
# So long it stays where nobody sees more, although it could move.
STAYS_S = 4


class Reached(Trio):
    """Three machines, and two hosts beside them that stand for the clients."""

    def __init__(self):
        super().__init__()
        self.options = SERVICES
        self.write_config()

    def _make_namespaces(self):
        super()._make_namespaces()
        for target in TARGETS:
            run("ip", "-n", self.client_namespace, "addr", "add", f"{target}/24", "dev", "link0")

    def blind(self, node):
        """Nothing from the clients' hosts arrives at a node; everything of the cluster does."""
        rules = ("table inet blind { chain i { type filter hook input priority 0; "
                 f"ip saddr {{ {', '.join(TARGETS)} }} drop; }}; }}")
        run("ip", "netns", "exec", node.namespace, "nft", rules)

    def see(self, node):
        """They arrive again."""
        run("ip", "netns", "exec", node.namespace, "nft", "delete table inet blind")


def sees(asked, name):
    """What a node sees of the clients, as another node knows."""
    return next((it["sees"] for it in office(asked)["replicas"] if it["node"] == name), [])


def p4_a_primary_that_clients_do_not_reach_moves_only_to_a_node_that_sees_enough_and_explains():
    with Reached() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        for node in (alpha, beta):
            wait_until("both see the clients", lambda: sees(alpha, node.name)
                       == ["2 of 2 targets (1 must answer)"], 20)
        wait_until("the service runs", lambda: alpha.status()["services"]["state"] == "running", 20)
        before = cluster.office(alpha)["generation"]

        # Nobody sees them: a dead gateway moves nothing, and both counts are told.
        cluster.blind(beta)
        wait_until("beta is blind", lambda: sees(alpha, "beta")
                   == ["0 of 2 targets (1 must answer)"], 20)
        cluster.blind(alpha)
        both = r"alpha sees 0 of 2 targets .*beta sees 0 of 2 targets"
        one = explained(alpha, "clients_unreachable", "reach", "switchover demo --to", both)
        stay(STAYS_S)
        two = explained(alpha, "clients_unreachable", "reach", "switchover demo --to", both)
        expect(two >= one + STAYS_S * 1000 - 500, f"its age went from {one} to {two} ms")
        expect(cluster.office(alpha)["generation"] == before, "the office moved")

        # What would change it does: beta sees them again.
        cluster.see(beta)
        wait_until("beta has the office", lambda: cluster.office(beta)["primary"] == "beta", 20)
        moved = next(it["why"] for it in reversed(cluster.history()) if it["what"] == "release")
        expect(re.fullmatch(r"reach: alpha sees 0 of 2 targets .*, beta sees [12] of 2 targets .*",
                            moved), f"history says: {moved!r}")
        print(f"    {moved}")

        # Each node says why alpha lost it, and alpha does not get it back when the two change.
        words = beta.ctl_raw("explain", "demo", as_json=False)[1]
        told = r"for .*: alpha is the last choice for services: clients do not reach this node"
        expect(re.search(told, words) and "alpha sees of the clients 0 of 2" in words, words)
        cluster.see(alpha)
        wait_until("alpha sees again", lambda: sees(beta, "alpha")
                   == ["2 of 2 targets (1 must answer)"], 20)
        cluster.blind(beta)
        explained(beta, "clients_unreachable", "reach", "switchover demo --to",
                  r"alpha sees [12] of 2 targets .* had the office and failed")
        stay(STAYS_S)
        expect(cluster.office(beta)["primary"] == "beta", "the office went back at once")
        # An operator may know better.
        cluster.wait_in_sync()
        beta.ctl("switchover", "demo", "--to", "alpha")
        expect(cluster.office(alpha)["primary"] == "alpha", "alpha is not primary again")


SCENARIOS = [p4_a_primary_that_clients_do_not_reach_moves_only_to_a_node_that_sees_enough_and_explains]
