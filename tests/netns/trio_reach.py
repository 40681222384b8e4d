"""Scenarios: clients do not reach the primary, the cluster does (P4). The office goes to a node that
sees enough of the same targets, and only to such a one; `explain` compares what each of them sees.
"""

import json
import re
import sys
import time

from cluster import expect, run, wait_until
from trio import Trio, stay
from trio_explain import explained, office

TARGETS = ("10.99.0.50", "10.99.0.51")
PORT = 8080
# So long it stays where nobody sees more, although it could move.
STAYS_S = 4
# A node that its clients did not reach gets the office back after a minute at the earliest.
TROUBLE_S = 60
FLAPS = 6


def asking(*targets):
    """The list of services: at least one of these must answer."""
    return f"services = [\n  {{ reach = {json.dumps(targets)}, need = 1 }},\n]"


class Reached(Trio):
    """Three machines, and two hosts beside them that stand for the clients."""

    def __init__(self, services=asking(*TARGETS)):
        super().__init__()
        self.options = services
        self.write_config()

    def _make_namespaces(self):
        super()._make_namespaces()
        for target in TARGETS:
            run("ip", "-n", self.client_namespace, "addr", "add", f"{target}/24", "dev", "link0")

    def blind(self, node):
        """The clients' hosts hear nothing of a node, not even its ARP; everybody of the cluster does."""
        mac = run("ip", "-n", node.namespace, "-br", "link", "show", "link0").stdout.split()[2]
        rules = (f"table netdev deaf_to_{node.name} {{ chain i {{ type filter hook ingress device "
                 f"link0 priority 0; ether saddr {mac} drop; }}; }}")
        run("ip", "netns", "exec", self.client_namespace, "nft", rules)

    def see(self, node):
        """They hear it again."""
        run("ip", "netns", "exec", self.client_namespace, "nft",
            f"delete table netdev deaf_to_{node.name}")


class Linked(Reached):
    """Data nodes have a link of their own to the clients, of which only the carrier is looked at."""

    def __init__(self):
        super().__init__('services = [\n  { reach = [], interface = "clients0" },\n]')

    def _make_namespaces(self):
        super()._make_namespaces()
        for node in self.data_nodes:
            port = f"clients-{node.name}"
            run("ip", "-n", node.namespace, "link", "add", "clients0", "type", "veth", "peer", "name",
                port, "netns", self._namespace("bridge"))
            run("ip", "-n", node.namespace, "link", "set", "clients0", "up")
            run("ip", "-n", self._namespace("bridge"), "link", "set", port, "up")

    def plug(self, node, state):
        run("ip", "-n", self._namespace("bridge"), "link", "set", f"clients-{node.name}", state)

    def blind(self, node):
        """Its cable is pulled."""
        self.plug(node, "down")

    def see(self, node):
        """It is plugged in again."""
        self.plug(node, "up")


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


def moves_and_comes_back(cluster, well, blind):
    """The primary loses its clients: the other one has the office; what each sees is told in these
    words before and after."""
    alpha, beta = cluster.start(watched=False).alpha, cluster.beta
    for node in (alpha, beta):
        wait_until(f"{node.name} sees {well}", lambda node=node: sees(alpha, node.name) == [well], 20)
    since = time.monotonic()
    cluster.blind(alpha)
    wait_until("beta has the office", lambda: cluster.office(beta)["primary"] == "beta", 30)
    print(f"    beta has the office {time.monotonic() - since:.2f} s later")
    wait_until(f"alpha sees {blind}", lambda: sees(beta, "alpha") == [blind], 20)
    moved = next(it["why"] for it in reversed(cluster.history()) if it["what"] == "release")
    expect(moved == f"reach: alpha sees {blind}, beta sees {well}", f"history says: {moved!r}")
    cluster.see(alpha)
    wait_until("alpha sees again", lambda: sees(beta, "alpha") == [well], 20)
    expect(cluster.office(beta)["primary"] == "beta", "the office went back by itself")


def p4_hosts_that_are_asked_by_arp_decide_where_the_office_is():
    with Reached(asking(*(f"arp:{target}" for target in TARGETS))) as cluster:
        moves_and_comes_back(cluster, "2 of 2 targets (1 must answer)",
                             "0 of 2 targets (1 must answer)")


def p4_hosts_that_are_asked_by_tcp_decide_where_the_office_is():
    """A server that refuses connections is no better than one that is not there."""
    with Reached(asking(*(f"tcp:{target}:{PORT}" for target in TARGETS))) as cluster:
        server = cluster.spawn("ip", "netns", "exec", cluster.client_namespace, sys.executable, "-m",
                               "http.server", PORT, log=cluster.dir / "server.log")
        moves_and_comes_back(cluster, "2 of 2 targets (1 must answer)",
                             "0 of 2 targets (1 must answer)")
        server.kill()
        wait_until("both see that nobody listens", lambda: all(
            sees(cluster.alpha, name) == ["0 of 2 targets (1 must answer)"]
            for name in ("alpha", "beta")), 20)
        expect(cluster.office()["primary"] == "beta", "it moved although nobody sees more")


def p4_the_carrier_of_the_link_to_clients_decides_where_the_office_is():
    with Linked() as cluster:
        moves_and_comes_back(cluster, "a link with a carrier", "a link without a carrier")


def p4_two_nodes_whose_clients_come_and_go_in_turn_do_not_throw_the_office_at_each_other():
    """Each time that the primary is blind the other one sees, so that each would be better off: a
    node that lost the office so does not get it back for a minute, and twice as long the next time."""
    with Linked() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        well, dark = "a link with a carrier", "a link without a carrier"
        began = time.monotonic()
        for flap in range(FLAPS):
            blind, seeing = ((alpha, beta), (beta, alpha))[flap % 2]
            cluster.blind(blind)
            wait_until(f"{blind.name} is blind and {seeing.name} is not", lambda: (
                sees(cluster.gamma, blind.name), sees(cluster.gamma, seeing.name))
                == ([dark], [well]), 20)
            if flap == 0:
                wait_until("beta has the office",
                           lambda: cluster.office(beta)["primary"] == "beta", 20)
            # Long enough for a decision to fall.
            stay(2)
            cluster.see(blind)
            wait_until(f"{blind.name} sees again",
                       lambda: sees(cluster.gamma, blind.name) == [well], 20)
        took = time.monotonic() - began
        moves = [it for it in cluster.history() if it["what"] == "release"]
        print(f"    {FLAPS} flaps in {took:.0f} s, the office moved {len(moves)} time(s)")
        expect(moves, "the first one moved nothing")
        expect(len(moves) <= 1 + took // TROUBLE_S, f"it moved {len(moves)} times in {took:.0f} s")


SCENARIOS = [
    p4_a_primary_that_clients_do_not_reach_moves_only_to_a_node_that_sees_enough_and_explains,
    p4_hosts_that_are_asked_by_arp_decide_where_the_office_is,
    p4_the_carrier_of_the_link_to_clients_decides_where_the_office_is,
]
LONG = [
    p4_hosts_that_are_asked_by_tcp_decide_where_the_office_is,
    p4_two_nodes_whose_clients_come_and_go_in_turn_do_not_throw_the_office_at_each_other,
]
