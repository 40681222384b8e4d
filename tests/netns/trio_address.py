"""A floating address on a trio, seen by an outside client on the bridge: it asks all the time who has the
address, and hears every answer. Never two nodes at a time; the pauses are printed."""

import errno
import re
import signal
import socket
import time

from cluster import expect, in_namespace, run, wait_until
from floating_address import ETH_ARP, ETH_IPV6, Bystander, say_gratuitously
from trio import CLIENT_ADDRESS, Trio

FLOATING = "10.99.0.100"
ETH_P_ALL = 3


class Addressed(Trio):
    """A trio whose resource has a floating address and nothing else."""

    address, length, own_address, protocol = FLOATING, 24, CLIENT_ADDRESS, ETH_ARP

    def write_config(self, **overrides):
        self.options = f'services = [ {{ address = "{self.address}/{self.length}" }} ]'
        super().write_config(**overrides)

    def start(self, watched=False):
        super().start(watched)
        self.listen()
        self.wait_for_answer("alpha", 0)
        return self

    def listen(self):
        """The client asks and hears from now on."""
        mac = self.mac(self.client_namespace)
        self.bystander = Bystander(self.client_namespace, self.own_address, mac)
        self.bystander.listen(self.protocol)
        self.bystander.ask_for_ever(self.address)

    def mac(self, namespace):
        """The hardware address of a node's link."""
        return run("ip", "-n", namespace, "-br", "link", "show", "link0").stdout.split()[2]

    def answers(self, name, since=0, kinds=("answer",)):
        """When a node answered for the address, or said so otherwise."""
        mac = self.mac(self.nodes[name].namespace)
        return [frame.at for frame in self.bystander.heard(kinds, mac, self.address)
                if frame.at > since]

    def wait_for_answer(self, name, since, deadline_s=30):
        """Waits until a node has the address; when it answered first."""
        return wait_until(f"{name} answers for {self.address}", lambda: self.answers(name, since),
                          deadline_s)[0]

    def expect_never_two(self, before, after, first):
        """The one had stopped to answer when the other began."""
        late = [at for at in self.answers(before) if at > first]
        expect(not late, f"{before} answered {late[-1] - first if late else 0:.3f} s after {after}")

    def close(self, keep=False):
        if getattr(self, "bystander", None):
            self.bystander.close()
        super().close(keep)


class Addressed6(Addressed):
    """The same with IPv6; the nodes' own addresses stay what they are."""

    address, length, own_address, protocol = "fd99::100", 64, "fd99::9", ETH_IPV6

    def _make_namespaces(self):
        super()._make_namespaces()
        places = [node.namespace for node in self.nodes.values()] + [self.client_namespace]
        for number, place in zip((1, 2, 3, 9), places):
            run("ip", "-n", place, "addr", "add", f"fd99::{number}/64", "dev", "link0", "nodad")

    def expect_without_detection(self, name):
        """The kernel of a node does not ask first whether somebody else has the address: that would
        take a second, and who has it was decided by the lease."""
        shown = run("ip", "-n", self.nodes[name].namespace, "-6", "-o", "addr", "show", "dev", "link0",
                    "to", self.address).stdout
        expect("nodad" in shown and "tentative" not in shown, f"{name} has it so: {shown!r}")


def moves(what, hit, mend):
    """Something happens to the primary; the address is on the other node, never on both."""
    with Addressed() as trio:
        trio.start()
        began = time.monotonic()
        hit(trio, trio.nodes["alpha"])
        first = trio.wait_for_answer("beta", began)
        last = max(trio.answers("alpha"))
        mend(trio, trio.nodes["alpha"])
        wait_until("all is well again", lambda: trio.office(trio.nodes["beta"])["primary"] == "beta")
        trio.expect_never_two("alpha", "beta", first)
        print(f"    {what}: alpha silent after {max(last - began, 0):.2f} s, beta answers after "
              f"{first - began:.2f} s, nobody for {first - last:.2f} s")


def an_ipv6_address_fails_over_and_is_advertised_unasked():
    """By SIGKILL and by a switchover back; clients are told, and duplicate detection delays nothing."""
    with Addressed6() as trio:
        alpha, beta = trio.start().alpha, trio.beta
        trio.expect_without_detection("alpha")
        for source, target, hit in (
                (alpha, beta, alpha.kill),
                (beta, alpha, lambda: beta.ctl("switchover", "demo", "--to", "alpha"))):
            began = time.monotonic()
            hit()
            first = trio.wait_for_answer(target.name, began)
            trio.expect_without_detection(target.name)
            told = wait_until(f"{target.name} advertises it unasked", lambda target=target: trio.answers(
                target.name, began, ("advertisement",)), 10)[0]
            trio.expect_never_two(source.name, target.name, min(first, told))
            gap = min(first, told) - max(trio.answers(source.name))
            print(f"    {target.name} says so after {told - began:.2f} s, nobody had it for {gap:.2f} s")
            if not alpha.is_running:
                alpha.start()
            trio.wait_in_sync()
            again = told + 0.5
            wait_until("it is advertised again", lambda target=target: trio.answers(
                target.name, again, ("advertisement",)), 10)


def the_address_moves_when_the_daemon_of_its_node_is_killed():
    """SIGKILL, not restarted: the guard takes it away."""
    moves("SIGKILL", lambda trio, node: node.kill(), lambda trio, node: None)


def the_address_moves_when_its_node_is_cut_off():
    """The node lives and withdraws it itself."""
    moves("isolated", lambda trio, node: trio.isolate(node), lambda trio, node: trio.heal())


def the_address_moves_when_the_daemon_of_its_node_is_stopped():
    """SIGSTOP: the guard takes it away; after SIGCONT it stays away."""
    moves("SIGSTOP", lambda trio, node: node.signal(signal.SIGSTOP),
          lambda trio, node: node.signal(signal.SIGCONT))


def the_address_moves_at_a_switchover_without_a_wait():
    """The old node has removed it before the new one adds it."""
    moves("switchover", lambda trio, node: node.ctl("switchover", "demo"), lambda trio, node: None)


class Told(Addressed):
    """With a hook on every node that writes down what it is told of the address."""

    def create(self):
        hook, self.told = self.dir / "hook", self.dir / "told"
        hook.write_text('#!/bin/sh\necho "$REPLICATOR_NODE $REPLICATOR_EVENT $REPLICATOR_RESOURCE '
                        f'$REPLICATOR_SERVICE: $REPLICATOR_WHY" >> {self.told}\n')
        hook.chmod(0o755)
        self.told.touch()
        for node in self.nodes.values():
            with open(node.config, "a", encoding="utf-8") as config:
                config.write(f'\n[hooks]\ncommand = "{hook}"\nevents = ["address_conflict"]\n')
        return super().create()

    def wait_for_hook(self, pattern):
        """Waits until a hook was told such a line."""
        wait_until(f"a hook is told {pattern!r}", lambda: any(
            re.search(pattern, line) for line in self.told.read_text().splitlines()), 20)

    def service(self, name):
        """What a node says of the address."""
        return self.nodes[name].status()["services"]["services"][0]

    def stranger(self, verb):
        """Somebody else on the network takes the address, or gives it up; his hardware address."""
        run("ip", "-n", self.client_namespace, "addr", verb, f"{FLOATING}/24", "dev", "link0")
        return self.mac(self.client_namespace)


def p7_an_address_that_somebody_else_has_is_not_taken_and_status_explain_and_hook_name_him():
    """Before the first start: both nodes find it in use, the office does not go round; when he has gone
    it is taken without anybody's help."""
    with Told() as trio:
        mac = trio.stranger("add")
        Trio.start(trio, watched=False)
        trio.listen()
        in_use = f"{FLOATING} is in use on this network, by {mac}"
        # Both nodes try it: the office moves once, and stays where nobody is better off.
        wait_until("both nodes have tried it", lambda: all(
            in_use in trio.service(name)["last_failure"] for name in ("alpha", "beta")), 60)
        primary = wait_until("somebody has the office", lambda: trio.office()["primary"], 20)
        shown = trio.nodes[primary].ctl_raw("status", as_json=False)[1]
        expect(in_use in shown and "is tried again in" in shown, f"status says\n{shown}")
        trio.wait_for_hook(rf"^alpha address_conflict demo {FLOATING}/24: .*{in_use}")
        words = f"cannot run services: {FLOATING}/24 does not run here: {in_use}"
        wait_until("explain says so of both", lambda: all(
            f"{name} {words}" in trio.nodes[primary].ctl_raw("explain", "demo", as_json=False)[1]
            for name in ("alpha", "beta")), 20)
        moved = len(trio.history())
        expect(not any(trio.answers(name) for name in ("alpha", "beta")), "a node answered for it")
        trio.stranger("del")
        since = time.monotonic()
        wait_until("a node answers for it", lambda: any(
            trio.answers(name) for name in ("alpha", "beta")), 90)
        expect(len(trio.history()) <= moved + 1, "the office went round")
        wait_until("it runs, by its own words", lambda: trio.service(
            trio.office()["primary"])["state"] == "running", 20)
        print(f"    taken {time.monotonic() - since:.0f} s after he gave it up")


def p7_a_second_owner_who_comes_later_is_reported_and_announced_against():
    """The one who has it by right keeps it, says so again, and tells status and hook."""
    with Told() as trio:
        trio.start()
        mac = trio.stranger("add")
        said = time.monotonic()
        say_gratuitously(trio.client_namespace, FLOATING, mac)
        both = f"{mac} says that it has {FLOATING} too"
        wait_until("status warns", lambda: both in trio.service("alpha")["warning"], 20)
        trio.wait_for_hook(rf"^alpha address_conflict demo {FLOATING}/24: .*{both}")
        shown = trio.alpha.ctl_raw("status", as_json=False)[1]
        expect(both in shown, f"status says\n{shown}")
        wait_until("alpha announces it against him",
                   lambda: trio.answers("alpha", said, ("request",)), 20)
        expect(trio.service("alpha")["state"] == "running", "it was given up")
        trio.stranger("del")
        wait_until("the warning ends", lambda: not trio.service("alpha")["warning"], 60)


class Silent(Addressed):
    """The client hears everything, also what its machine drops, and asks nothing."""

    protocol = ETH_P_ALL

    def listen(self):
        self.bystander = Bystander(self.client_namespace, self.own_address, "")
        self.bystander.listen(self.protocol)

    def wait_for_answer(self, name, since, deadline_s=30):
        """By its own words."""
        wait_until(f"{name} has {self.address}", lambda: self.nodes[name].status()[
            "services"]["state"] == "running", deadline_s)


def p7_a_switch_that_loses_the_first_announcements_delays_clients_and_loses_none():
    """A client that holds the old owner for right is told again, without asking: it knows the new one
    soon after frames get through."""
    with Silent() as trio:
        trio.start()
        client = trio.client_namespace

        def known():
            words = run("ip", "-n", client, "neigh", "show", FLOATING).stdout.split()
            return words[words.index("lladdr") + 1] if "lladdr" in words else None

        def reaches():
            with in_namespace(client), socket.socket() as link:
                link.settimeout(1)
                # Nobody listens there: whoever has the address says so.
                return link.connect_ex((FLOATING, 9)) == errno.ECONNREFUSED
        # It would ask by itself only much later.
        run("ip", "netns", "exec", client, "sysctl", "-q", "-w",
            "net.ipv4.neigh.link0.base_reachable_time_ms=3600000")
        wait_until("the client reaches it", reaches, 10)
        expect(known() == trio.mac(trio.alpha.namespace), f"it is at {known()}")
        mac = trio.mac(trio.beta.namespace)
        run("ip", "netns", "exec", client, "nft",
            "table netdev lost { chain i { type filter hook ingress device link0 priority 0; "
            f"ether saddr {mac} drop; }}; }}")
        began = time.monotonic()
        trio.alpha.kill()
        trio.wait_for_answer("beta", began)
        wait_until("beta has announced it three times",
                   lambda: len(trio.answers("beta", began, ("request",))) >= 3, 10)
        expect(known() != mac, "the client has heard them")
        run("ip", "netns", "exec", client, "nft", "delete table netdev lost")
        opened = time.monotonic()
        wait_until("the client knows the new owner", lambda: known() == mac, 60)
        print(f"    told {time.monotonic() - opened:.2f} s after frames get through")
        wait_until("the client reaches it again", reaches, 10)


def write_lease(nodes, lease_ms):
    """Another lease in the file of these nodes."""
    for node in nodes:
        lines = [line for line in node.config.read_text().splitlines()
                 if not line.startswith("lease_ms")]
        node.config.write_text("\n".join([f"lease_ms = {lease_ms}", *lines, ""]))


def address_and_guard_go_by_the_lease_of_the_register_whatever_the_file_says():
    """A shorter one is applied to daemons that run; the taker has another one in its file."""
    with Addressed() as trio:
        alpha, beta, gamma = trio.start().nodes.values()

        def expect_it_lasts(lease_ms, *nodes):
            for node in nodes:
                wait_until(f"the guard of {node.name} goes by {lease_ms} ms",
                           lambda: node.ctl("status")["guard"]["lease_ms"] == lease_ms)
            # What was added before is gone by then, if nobody refreshes it.
            since = time.monotonic() + 2.5
            wait_until(f"the address lasts under a lease of {lease_ms} ms",
                       lambda: trio.answers("alpha", since) or trio.answers("beta", since))

        expect_it_lasts(1000, alpha, beta)
        write_lease((alpha, beta, gamma), 600)
        alpha.ctl("apply")
        expect_it_lasts(600, alpha, beta)
        write_lease((beta, gamma), 2000)
        first = next(it for it in (alpha, beta) if it.name == trio.office()["primary"])
        other = beta if first is alpha else alpha
        other.stop()
        other.start()
        trio.wait_in_sync()
        began = time.monotonic()
        first.kill()
        taken = trio.wait_for_answer(other.name, began)
        trio.expect_never_two(first.name, other.name, taken)
        expect_it_lasts(600, other)
        first.start()
        trio.wait_in_sync()
        beta.ctl("apply")
        expect_it_lasts(2000, alpha, beta)


SCENARIOS = [
    the_address_moves_when_the_daemon_of_its_node_is_killed,
    address_and_guard_go_by_the_lease_of_the_register_whatever_the_file_says,
    an_ipv6_address_fails_over_and_is_advertised_unasked,
    p7_a_second_owner_who_comes_later_is_reported_and_announced_against,
]
LONG = [
    the_address_moves_when_its_node_is_cut_off,
    the_address_moves_when_the_daemon_of_its_node_is_stopped,
    the_address_moves_at_a_switchover_without_a_wait,
    p7_an_address_that_somebody_else_has_is_not_taken_and_status_explain_and_hook_name_him,
    p7_a_switch_that_loses_the_first_announcements_delays_clients_and_loses_none,
]
