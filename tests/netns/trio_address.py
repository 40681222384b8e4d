"""A floating address on a trio, seen by an outside client on the bridge: it asks all the time who has the
address, and hears every answer. Never two nodes at a time; the pauses are printed."""

import signal
import time

from cluster import expect, run, wait_until
from floating_address import Bystander
from trio import Trio

FLOATING = "10.99.0.100"


class Addressed(Trio):
    """A trio whose resource has a floating address and nothing else."""

    def write_config(self, **overrides):
        self.options = f'services = [ {{ address = "{FLOATING}/24" }} ]'
        super().write_config(**overrides)

    def start(self, watched=False):
        super().start(watched)
        mac = self.mac(self.client_namespace)
        self.bystander = Bystander(self.client_namespace, "10.99.0.9", mac)
        self.bystander.listen()
        self.bystander.ask_for_ever(FLOATING)
        self.wait_for_answer("alpha", 0)
        return self

    def mac(self, namespace):
        """The hardware address of a node's link."""
        return run("ip", "-n", namespace, "-br", "link", "show", "link0").stdout.split()[2]

    def answers(self, name, since=0):
        """When a node answered for the address."""
        mac = self.mac(self.nodes[name].namespace)
        return [frame.at for frame in self.bystander.heard(("answer",), mac, FLOATING)
                if frame.at > since]

    def wait_for_answer(self, name, since, deadline_s=30):
        """Waits until a node has the address; when it answered first."""
        return wait_until(f"{name} answers for {FLOATING}", lambda: self.answers(name, since),
                          deadline_s)[0]

    def expect_never_two(self, before, after, first):
        """The one had stopped to answer when the other began."""
        late = [at for at in self.answers(before) if at > first]
        expect(not late, f"{before} answered {late[-1] - first if late else 0:.3f} s after {after}")

    def close(self, keep=False):
        if getattr(self, "bystander", None):
            self.bystander.close()
        super().close(keep)


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
]
LONG = [
    the_address_moves_when_its_node_is_cut_off,
    the_address_moves_when_the_daemon_of_its_node_is_stopped,
    the_address_moves_at_a_switchover_without_a_wait,
]
