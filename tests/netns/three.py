"""Three data nodes, which are their own majority: what a third replica gives, how it comes and how
one goes again. On loopback, but where the network is cut: no root is needed.
"""

import random
import signal
import time
import urllib.request

from cluster import BLOCK, MIB, WITNESS, Node, expect, free_port, wait_until
from etcd_site import Site, etcd_lines
from trio import SIZE_MIB, Trio, stay
from trio_http import samples
from trio_members import seen, wait_until_it_votes, wait_until_it_waits_for_a_vote, wipe
from watch import Watch

# So that faults go on to hit members (P6).
HELD_BACK_SHORTLY = {"rejoin_delay_ms": 200, "rejoin_delay_max_ms": 2_000}


class Copies(Trio):
    """A cluster of which every data node has a copy, however many there are."""

    def __init__(self, namespaces=False, **more):
        super().__init__(namespaces=namespaces, **more)

    def add_disk(self, name):
        """An empty disk for a node."""
        for resource, parts in self.resources.items():
            parts["disk"][name] = self.dir / f"{resource}-{name}.img"
            with open(parts["disk"][name], "wb") as file:
                file.truncate(SIZE_MIB * MIB)

    def wait_for_another(self, than):
        """Waits until some other node serves and acknowledges, and gives it."""
        others = [node for node in self.data_nodes if node is not than and node.is_running]
        wait_until(f"another than {than.name} serves", lambda: any(
            node.replica()["role"] == "primary" for node in others))
        found = self.primary()
        self.wait_for_acks(found.name)
        return found

    def have_new_file(self, nodes):
        """Every daemon reads the file, one after the other, while the others go on."""
        self.write_config()
        self.restart_in_turn(nodes, but=("delta",))

    def remove(self, member, name):
        """A node that was stopped loses its vote; a member is asked for it when it has missed it."""
        wait_until(f"{member.name} is served without {name} and has missed it", lambda: (
            name not in self.office(member)["in_sync"]
            and seen(member, name)["silent_ms"] > 1500))
        member.ctl("node", "remove", name)

    def wait_until_heard(self, name):
        """Until all running nodes hear that one, so that it may get a vote."""
        for node in self.nodes.values():
            if node.name != name and node.is_running:
                wait_until(f"{node.name} hears {name}",
                           lambda: seen(node, name)["state"] == "reachable")


class Three(Copies):
    """alpha, beta and gamma, all with disks."""

    def __init__(self, **more):
        super().__init__(**more)
        self.data_nodes = list(self.nodes.values())
        self.alpha.http_port = 0 if self.namespaces else free_port()
        self.add_disk(WITNESS)
        self.write_config()

    def _config(self, mine):
        text = super()._config(mine)
        gamma = self.nodes[WITNESS]
        own = [f'device_dir = "{gamma.device_dir}"']
        if self.tcp:
            own.append(f'nbd_address = "{gamma.host}:{gamma.nbd_port}"')
        text = text.replace("witness = true", "\n".join(own))
        # One that comes later is a witness.
        return text.replace("[node.delta]\n", "[node.delta]\nwitness = true\n")


class Growing(Copies):
    """Two data nodes and a witness; a third data node, delta, comes later."""

    def start(self, watched=True):
        super().start(watched=False)
        self.delta = Node(self, "delta")
        self.data_nodes.append(self.delta)
        self.watch = Watch(self)
        self.wait_for_acks("alpha")
        return self

    def grow(self):
        """As an operator does it: the file everywhere, a disk, and every daemon once anew."""
        size = self.alpha.replica()["size_bytes"]
        self.nodes["delta"] = self.delta
        self.add_disk("delta")
        self.write_config()
        self.delta.ctl("create", "demo", "--size", size)
        self.delta.start()
        for node in (self.gamma, self.beta, self.alpha):
            node.kill()
            node.start()
            self.wait_in_sync(but=("delta",))
        self.wait_until_heard("delta")
        self.alpha.ctl("node", "add", "delta")
        wait_until_it_votes(self.alpha, "delta")
        self.wait_in_sync()

    def shrink(self):
        """delta goes for good."""
        self.alpha.refuses("node", "remove", "delta", code="is_running")
        self.delta.stop()
        self.remove(self.alpha, "delta")
        del self.nodes["delta"], self.resources["demo"]["disk"]["delta"]
        self.data_nodes.remove(self.delta)
        self.have_new_file([self.gamma, self.beta, self.alpha])
        self.wait_in_sync()


class ThreeWithEtcd(Three):
    """The same three, with the register in etcd."""

    def __init__(self):
        self.site = Site().start()
        try:
            super().__init__()
        except BaseException:
            self.site.close()
            raise

    def _config(self, mine):
        first, rest = super()._config(mine).split("\n", 1)
        return "\n".join([first, etcd_lines(self.site, lease_ms=2000), rest])

    def close(self, keep=False):
        super().close(keep)
        self.site.close()


def tells_of_both_peers(cluster, node, others):
    """Status, metrics and explain of a primary name both of its peers."""
    replica = node.replica()
    expect([peer["node"] for peer in replica["peers"]] == others, f"peers: {replica['peers']}")
    expect(sorted(replica["in_sync"]) == sorted([node.name, *others]), f"{replica['in_sync']}")
    text = node.ctl_raw("status", as_json=False)[1]
    explained = node.ctl_raw("explain", as_json=False)[1]
    for other in others:
        expect(f"\n  {other:8} secondary  current" in text, f"status without {other}:\n{text}")
        expect(other in explained, f"explain without {other}:\n{explained}")
    pages = {}
    for path in ("/metrics", "/metrics?names=drbd"):
        address = f"http://127.0.0.1:{node.http_port}{path}"
        with urllib.request.urlopen(address, timeout=10) as page:
            pages[path] = samples(page.read().decode())
    for other in others:
        of_peer = f'{{resource="demo",peer="{other}"}}'
        expect(pages["/metrics"].get(f"replicator_dirty_bytes{of_peer}") == 0,
               f"no series of {other}: {[key for key in pages['/metrics'] if 'peer' in key]}")
        key = f"replicator_peer_acknowledgement_seconds_count{of_peer}"
        expect(pages["/metrics"].get(key, 0) > 0, f"how long {other} takes is not told")
        number = list(cluster.nodes).index(other)
        of_peer = f'{{name="demo",conn_name="{other}",peer_node_id="{number}",volume="0"}}'
        key = f"drbd_peerdevice_outofsync_bytes{of_peer}"
        expect(pages["/metrics?names=drbd"].get(key) == 0, f"no series of {other}")
    expect(node.ctl_raw("check", as_json=False)[0] == 0, "check finds something")


def three_replicas_lose_one_after_the_other_and_no_acknowledged_write():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        verdict = alpha.status()["verdict"]
        expect(verdict["level"] == "safe", f"with three members the verdict is {verdict}")
        tells_of_both_peers(cluster, alpha, ["beta", "gamma"])
        in_sync = cluster.history()[-1]["in_sync"]
        expect(in_sync == ["alpha", "beta", "gamma"], f"history says in sync: {in_sync}")
        alpha.kill()
        first = cluster.wait_for_another(than=alpha)
        second = gamma if first is beta else beta
        wait_until("the two are in sync", lambda: sorted(
            first.replica()["in_sync"]) == ["beta", "gamma"])
        words = "has everything too, but one more failure leaves no majority: alpha is silent"
        wait_until("the verdict tells", lambda: words in first.status()["verdict"]["text"])

        # Of three voters one is no majority: it waits, without an error, and says for whom.
        second.kill()
        wait_until("it says that clients wait, and for whom", lambda: (
            (text := first.status()["verdict"]["text"]).startswith("clients wait: the lease")
            and "alpha is silent" in text and f"{second.name} is silent" in text))
        second.start()
        cluster.wait_for_acks(first.name)
        alpha.start()
        cluster.wait_in_sync()
        first.kill()
        cluster.wait_for_another(than=first)
        first.start()
        cluster.finish()


def a_third_replica_comes_to_a_running_pair_and_takes_over_later():
    with Growing() as cluster:
        alpha, beta, _ = cluster.start().nodes.values()
        cluster.grow()
        # Three data nodes need no witness.
        alpha.ctl("node", "remove", "gamma")
        cluster.gamma.kill()
        alpha.kill()
        first = cluster.wait_for_another(than=alpha)
        alpha.start()
        cluster.wait_in_sync()
        if first is not cluster.delta:
            first.ctl("switchover", "demo", "--to", "delta")
            cluster.wait_for_acks("delta")
        cluster.finish()


def a_third_replica_goes_for_good_and_the_two_left_fail_over_as_before():
    with Growing() as cluster:
        alpha, beta, _ = cluster.start().nodes.values()
        cluster.grow()
        beta.refuses("node", "remove", "alpha", code="is_primary")
        cluster.shrink()
        beta.refuses("node", "remove", "alpha", code="too_few")
        state = alpha.ctl("status")["cluster_state"]
        expect([it["name"] for it in state["nodes"]] == ["alpha", "beta", "gamma"]
               and not state["differences"], f"after the removal: {state}")
        # Its daemon, started again with its old file, is nobody's.
        cluster.delta.start()
        alpha.kill()
        cluster.wait_for_acks("beta")
        alpha.start()
        cluster.finish()
        expect(cluster.delta.replica()["role"] != "primary", "delta serves")
        cluster.delta.kill()


def three_become_a_pair_with_a_witness():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        alpha.refuses("node", "remove", "gamma", code="too_few")
        witness = cluster.nodes["delta"] = Node(cluster, "delta")
        cluster.write_config()
        witness.start()
        cluster.have_new_file([gamma, beta, alpha])
        cluster.wait_until_heard("delta")
        cluster.primary().ctl("node", "add", "delta")
        primary = cluster.primary()
        gone = next(node for node in (gamma, beta) if node is not primary)
        gone.stop()
        left = [node for node in cluster.data_nodes if node is not gone]
        cluster.remove(primary, gone.name)
        cluster.data_nodes = left
        primary.kill()
        cluster.wait_for_another(than=primary)
        primary.start()
        cluster.wait_in_sync(but=(gone.name,))
        cluster.watch.finish()
        cluster.expect_identical()


def a_pair_without_a_witness_gets_a_third_replica_and_then_fails_over_by_itself():
    with Pair() as cluster:
        alpha, beta, gamma = cluster.start()
        cluster.become_three()
        alpha.kill()
        first = cluster.wait_for_another(than=alpha)
        alpha.start()
        cluster.wait_in_sync()
        if first is not gamma:
            first.ctl("switchover", "demo", "--to", "gamma")
            cluster.wait_for_acks("gamma")
        cluster.watch.program.kill()
        cluster.watch.load.stop()
        cluster.watch.load.verify()
        cluster.expect_identical()


class Pair(Three):
    """alpha and beta without a witness; gamma, with a disk, comes later."""

    def __init__(self):
        super().__init__()
        self.later = self.nodes.pop(WITNESS)
        self.data_nodes = [self.alpha, self.beta]
        self.disk_of_later = self.resources["demo"]["disk"].pop(WITNESS)
        self.write_config()

    def _config(self, mine):
        return super()._config(mine) if WITNESS in self.nodes else Trio._config(self, mine)

    def start(self):
        """The pair, by hand as without a witness, under load."""
        self.create()
        self.alpha.start()
        self.beta.start()
        wait_until("the two are connected", lambda: self.alpha.peer().get("state") == "idle")
        self.alpha.promote()
        self.wait_in_sync()
        self.data_nodes.append(self.later)
        self.watch = Watch(self)
        self.wait_for_acks("alpha")
        return self.alpha, self.beta, self.later

    def become_three(self):
        """The file everywhere, a disk, and every daemon once anew, the primary's in the middle."""
        size = self.alpha.replica()["size_bytes"]
        self.nodes[WITNESS] = self.later
        self.resources["demo"]["disk"][WITNESS] = self.disk_of_later
        self.write_config()
        self.later.ctl("create", "demo", "--size", size)
        self.beta.stop()
        self.wait_for_acks("alpha")
        self.later.start()
        self.alpha.kill()
        self.alpha.start()
        self.beta.start()
        self.wait_in_sync()
        expect(self.primary() is self.alpha, "the newest copy does not serve")
        self.wait_for_acks("alpha")


def one_of_three_whose_machine_is_new_is_replaced_while_the_others_go_on():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        wipe(gamma)
        cluster.wait_for_acks("alpha")
        gamma.start()
        wait_until_it_waits_for_a_vote(alpha, "gamma")
        words = "one more failure leaves no majority: gamma has no vote"
        wait_until("the verdict tells", lambda: words in alpha.status()["verdict"]["text"])
        alpha.ctl("node", "replace", "gamma")
        wait_until_it_votes(alpha, "gamma")
        cluster.wait_in_sync()
        expect(len(cluster.takeovers()) == 1, f"somebody took over: {cluster.takeovers()}")
        # Its vote is as good as that of any: beta may go, and it serves when alpha goes too.
        beta.kill()
        cluster.wait_for_acks("alpha")
        beta.start()
        cluster.wait_in_sync()
        alpha.ctl("switchover", "demo", "--to", "gamma")
        cluster.wait_for_acks("gamma")
        gamma.kill()
        cluster.wait_for_another(than=gamma)
        gamma.start()
        cluster.finish()


def the_office_goes_to_each_of_three_and_one_that_was_away_gets_only_what_it_lacks():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        for target in (gamma, beta, alpha, gamma, alpha):
            cluster.primary().ctl("switchover", "demo", "--to", target.name)
            cluster.wait_for_acks(target.name)
            cluster.wait_in_sync()
        takeovers = len(cluster.takeovers())
        for away in (beta, gamma):
            before = alpha.replica()["peers"][0 if away is beta else 1]["sent_bytes"][0]
            away.kill()
            cluster.wait_for_acks("alpha")
            with alpha.client() as client:
                client.write(60 * MIB, b"while it was away".ljust(BLOCK, b"."), fua=True)
            away.start()
            cluster.wait_in_sync()
            sent = alpha.replica()["peers"][0 if away is beta else 1]["sent_bytes"][0] - before
            expect(0 < sent < 40 * MIB, f"{sent} bytes were sent to {away.name} of {SIZE_MIB} MiB")
        expect(len(cluster.takeovers()) == takeovers, "somebody took over")
        for _ in range(3):
            lost = cluster.primary()
            lost.kill()
            cluster.wait_for_another(than=lost)
            lost.start()
            cluster.wait_in_sync()
        cluster.finish()


def a_primary_that_is_cut_off_from_both_others_serves_no_more_and_one_of_them_does():
    with Three(namespaces=True) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        cluster.isolate(alpha)
        others = (beta, gamma)
        wait_until("another serves", lambda: any(
            node.replica()["role"] == "primary" for node in others))
        first = next(node for node in others if node.replica()["role"] == "primary")
        cluster.wait_for_acks(first.name)
        cluster.heal()
        cluster.wait_in_sync()
        # With one link of three cut the set loses one follower at the most, and nobody takes over.
        takeovers = len(cluster.takeovers())
        second = gamma if first is beta else beta
        cluster.cut_link(first, second)
        wait_until(f"{second.name} is out of the set", lambda: second.name not in cluster.office(
            first)["in_sync"])
        cluster.wait_for_acks(first.name)
        cluster.heal()
        cluster.wait_in_sync()
        cluster.cut_link(second, alpha)
        cluster.wait_for_acks(first.name, count=500)
        cluster.heal()
        expect(len(cluster.takeovers()) == takeovers, "somebody took over")
        cluster.finish()


def a_node_that_cannot_get_the_office_stops_all_the_same():
    with Three(top="lease_ms = 5000") as cluster:
        alpha, beta, gamma = cluster.start(watched=False).nodes.values()
        alpha.kill()
        # Halfway through the lease: beta hears gamma still when that is over, proposes, and has no
        # answer.
        wait_until("alpha is missed", lambda: seen(beta, "alpha")["silent_ms"] > 2500)
        gamma.signal(signal.SIGSTOP)
        wait_until("beta wants the office", lambda: beta.replica()["role"] == "promoting")
        began = time.monotonic()
        beta.stop()
        took = time.monotonic() - began
        expect("no majority to decide" in beta.log(), f"it stopped after {took:.1f} s")
        expect(took < 25, f"it took {took:.1f} s")
        gamma.signal(signal.SIGCONT)
        alpha.start()
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def the_last_of_three_is_stopped_and_has_all_when_they_come_back():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        cluster.watch.program.kill()
        cluster.watch.load.stop()
        for node in (gamma, beta, alpha):
            began = time.monotonic()
            node.stop()
            print(f"    {node.name} stopped within {time.monotonic() - began:.1f} s")
        expect("no majority to decide" in alpha.log(), "the last one was stopped by a decision")
        for node in (beta, gamma, alpha):
            node.start()
        cluster.wait_in_sync()
        cluster.watch.load.verify()
        cluster.expect_identical()


def faults_of_a_minute_lose_nothing_on_three():
    with Three(timing=HELD_BACK_SHORTLY) as cluster:
        cluster.start()
        chance = random_with_seed()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            hit = chance.sample(cluster.data_nodes, chance.choice([1, 1, 2, 3]))
            for node in hit:
                chance.choice([node.kill, node.kill, node.stop])()
                a_moment(chance)
            for node in chance.sample(hit, len(hit)):
                node.spawn()
                a_moment(chance)
            if chance.random() < 0.7:
                cluster.wait_in_sync()
            cluster.watch.expect_well()
        cluster.finish()


def power_cuts_of_a_minute_lose_nothing_on_three_while_one_member_is_left():
    with Three(backing="volatile", timing=HELD_BACK_SHORTLY) as cluster:
        cluster.start()
        chance = random_with_seed()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            cluster.wait_in_sync()
            # Two in a row, the second one while the first is away or is being brought up to date.
            hit = chance.sample(cluster.data_nodes, chance.choice([1, 2]))
            for node in hit:
                node.kill()
                a_moment(chance)
                if chance.random() < 0.5:
                    node.spawn()
                    a_moment(chance)
            for node in hit:
                if not node.is_running:
                    node.spawn()
            cluster.watch.expect_well()
        cluster.finish()


def etcd_three_replicas_lose_two_at_once_and_the_last_one_goes_on():
    with ThreeWithEtcd() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        alpha.kill()
        first = cluster.wait_for_another(than=alpha)
        alpha.start()
        cluster.wait_in_sync()
        # The members of etcd are the majority, so one replica may be the last.
        lost = [node for node in cluster.data_nodes if node is not first]
        for node in lost:
            node.kill()
        cluster.wait_for_acks(first.name)
        for node in lost:
            node.start()
        cluster.wait_in_sync()
        first.kill()
        cluster.wait_for_another(than=first)
        first.start()
        cluster.finish()


def random_with_seed():
    """Random numbers, and how to have them again."""
    seed = random.randrange(1 << 32)
    print(f"    seed {seed}")
    return random.Random(seed)


def a_moment(chance):
    """0 to 0.5 s, most often short."""
    stay(chance.random() ** 2 / 2)


SCENARIOS = [three_replicas_lose_one_after_the_other_and_no_acknowledged_write,
             a_third_replica_comes_to_a_running_pair_and_takes_over_later]
LONG = [a_third_replica_goes_for_good_and_the_two_left_fail_over_as_before,
        three_become_a_pair_with_a_witness,
        a_pair_without_a_witness_gets_a_third_replica_and_then_fails_over_by_itself,
        one_of_three_whose_machine_is_new_is_replaced_while_the_others_go_on,
        the_office_goes_to_each_of_three_and_one_that_was_away_gets_only_what_it_lacks,
        a_primary_that_is_cut_off_from_both_others_serves_no_more_and_one_of_them_does,
        etcd_three_replicas_lose_two_at_once_and_the_last_one_goes_on,
        a_node_that_cannot_get_the_office_stops_all_the_same,
        the_last_of_three_is_stopped_and_has_all_when_they_come_back,
        faults_of_a_minute_lose_nothing_on_three,
        power_cuts_of_a_minute_lose_nothing_on_three_while_one_member_is_left]
