"""Scenarios: etcd keeps the register of two data nodes. Its members, real ones, are killed and paused
under load, and so are the nodes.
"""

import signal
import time

from cluster import Cluster, Refused, expect, wait_until
from etcd_site import EtcdPair, Site, etcd_lines, expect_endpoints, pause_leader
from trio import stay
from trio_network import last_revision, longest_pause, nobody_took_over

LEASE_S = 5.0
TAKEN_WITHIN_S = 20
# The lease less its tenth, and what the load notices later.
SUSPENDED_WITHIN_S = 8


def etcd_a_killed_primary_is_replaced_without_loss_and_returns():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        report = cluster.etcd_report(beta)
        expect_endpoints(report, leader=1, follower=2)
        expect(report["trouble"] is None, f"{report}")
        state = cluster.site.get("/replicator/test/state")["value"]
        expect(state["resources"][0]["holder"]["node"] == "alpha", f"{state}")
        alpha.kill()
        killed = time.monotonic()
        why = wait_until("beta says how long the key must be unchanged", lambda: next(
            (it["why"] for it in refusals(cluster, beta) if it["rule"] == "etcd"), None), 5)
        expect("unchanged" in why, why)
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        took = next(ack[2] for ack in cluster.watch.acks() if ack[0] == "beta") - killed
        print(f"    the first write on beta {took:.2f} s after SIGKILL")
        expect(0.8 * LEASE_S < took < 1.8 * LEASE_S, f"beta needed {took:.2f} s")
        alpha.start()
        cluster.finish()
        expect(cluster.primary() is beta, "the old primary took the office back")


def etcd_its_leader_is_killed_under_load_and_then_the_primary_and_nothing_is_lost():
    with EtcdPair() as cluster:
        alpha = cluster.start().alpha
        before = last_revision(cluster)
        leader = wait_until("etcd has a leader", cluster.site.leader, 20)
        leader.kill()
        expect_one_member_less(cluster, leader)
        cluster.wait_for_acks("alpha", 5)
        nobody_took_over(cluster, before)
        cluster.watch.expect_no_error()
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s for etcd")
        killed = time.monotonic()
        alpha.kill()
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        took = next(ack[2] for ack in cluster.watch.acks() if ack[0] == "beta") - killed
        print(f"    the first write on beta {took:.2f} s after SIGKILL of the primary")
        alpha.start()
        leader.start()
        cluster.finish()


def etcd_its_leader_is_paused_under_load_and_nobody_fails_over():
    with EtcdPair() as cluster:
        alpha = cluster.start().alpha
        before = last_revision(cluster)
        leader = pause_leader(cluster.site)
        expect_one_member_less(cluster, leader)
        cluster.wait_for_acks("alpha", 5)
        leader.signal(signal.SIGCONT)
        wait_until("all members are there", lambda: all(
            it["state"] in ("leader", "follower")
            for it in cluster.etcd_report(alpha)["endpoints"]), 20)
        cluster.finish()
        nobody_took_over(cluster, before)
        cluster.watch.expect_no_error()
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s")


def expect_one_member_less(cluster, leader):
    """Another member leads, and status warns of the next failure."""
    alpha = cluster.alpha
    wait_until("another member leads", lambda: cluster.site.leader() not in (None, leader), 20)
    wait_until("status tells", lambda: sum(
        it["state"] == "unreachable" for it in cluster.etcd_report(alpha)["endpoints"]) == 1, 20)
    wait_until("the verdict tells", lambda: "one more failure leaves etcd no majority" in
               alpha.status()["verdict"]["text"], 10)


def refusals(cluster, node):
    """Why a node does not take the office; empty when it has no reason."""
    explained = cluster.office(node)["explain"]
    return [explained["refusal"]] if explained else []


def etcd_without_a_majority_of_it_the_primary_waits_and_goes_on_without_an_error():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        lost = cluster.site.members[:2]
        for member in lost:
            member.kill()
        wait_until("alpha's lease is over", lambda: cluster.office(alpha)["lease_left_ms"] == 0
                   and "clients wait" in alpha.status()["verdict"]["text"], SUSPENDED_WITHIN_S)
        held = len(cluster.watch.acks())
        wait_until("beta says that etcd is silent", lambda: any(
            it["code"] == "no_etcd" for it in refusals(cluster, beta)), 8)
        stay(1.5)
        expect(len(cluster.watch.acks()) - held <= 1, "writes were acknowledged without a lease")
        for member in lost:
            member.start()
        took = cluster.wait_for_acks("alpha", 20)
        print(f"    writes went on {took:.2f} s after etcd's members were started again; "
              f"clients waited {longest_pause(cluster.watch.acks()):.2f} s")
        stay(2 * LEASE_S)
        cluster.finish()
        nobody_took_over(cluster, before)
        cluster.watch.expect_no_error()


def etcd_an_isolated_primary_is_replaced_and_never_acknowledges_again():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.isolate(alpha)
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after the cut")
        wait_until("alpha says that etcd is silent", lambda: any(
            it["code"] == "no_etcd" for it in refusals(cluster, alpha)), 10)
        stay(3)
        cluster.heal()
        cluster.finish()
        expect(cluster.primary() is beta, "the old primary took the office back")


def etcd_a_primary_that_reaches_the_other_node_but_not_etcd_is_replaced():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.cut_from_etcd(alpha)
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after the cut")
        cluster.heal()
        cluster.finish()
        expect(cluster.primary() is beta, "the old primary took the office back")


def etcd_with_only_the_data_link_cut_the_primary_goes_on_alone():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        cluster.cut_link(alpha, beta)
        took = cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        print(f"    writes went on after {took:.2f} s")
        wait_until("beta left the set", lambda: cluster.office(beta)["in_sync"] == ["alpha"], 10)
        stay(2)
        cluster.heal()
        cluster.finish()
        nobody_took_over(cluster, before)


def etcd_a_paused_primary_is_replaced_and_a_switchover_brings_it_back():
    with EtcdPair() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.signal(signal.SIGSTOP)
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        alpha.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        cluster.wait_for_acks("beta", 5)
        ordered = time.monotonic() - 0.2
        beta.ctl("switchover", "demo", "--to", "alpha")
        cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        longest = longest_pause([ack for ack in cluster.watch.acks() if ack[2] >= ordered])
        print(f"    clients waited {longest:.2f} s for the switchover")
        cluster.finish()


def etcd_everything_is_stopped_and_started_and_goes_on():
    with EtcdPair(lease_ms=2000) as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        generation = cluster.office()["generation"]
        for node in (alpha, beta):
            node.kill()
        for member in cluster.site.members:
            member.kill()
        for node in (alpha, beta):
            node.spawn()
        wait_until("alpha says that etcd is silent", lambda: (
            (answer := told(alpha)) and answer["etcd"]["trouble"]
            and answer["etcd"]["trouble"]["code"] == "no_etcd"), 10)
        for member in cluster.site.members:
            member.start()
        cluster.wait_in_sync()
        expect(cluster.office()["generation"] > generation, "the register forgot something")
        cluster.expect_identical()


def told(node):
    """What a node that may just start tells of the cluster."""
    try:
        return node.ctl("status")["cluster_state"]
    except Refused:
        return None


def etcd_check_names_what_is_wrong_and_strangers_below_the_prefix_are_refused():
    site = Site(count=1)
    try:
        with Loopback(site) as cluster:
            alpha = cluster.create().alpha
            problems = check(alpha)
            expect(any("unreachable" in it for it in problems), f"{problems}")
            site.start()
            expect(check(alpha) == [], "etcd is there and empty")
            cluster.start_both()
            expect(any("register revision" in line for line in alpha.ctl("check")["good"]),
                   f"{alpha.ctl('check')}")
            refused = alpha.refuses("node", "replace", "beta", code="etcd")
            expect("no votes" in refused.why, f"{refused}")
            with_another_key(site, cluster)
            with_a_password(site, cluster)
    finally:
        site.close()


class Loopback(Cluster):
    """Two nodes on loopback whose register is in etcd."""

    def __init__(self, site, name="test", options=""):
        self.site, self.etcd_options = site, options
        super().__init__(size_mib=8, name=name)

    def _config(self, mine):
        first, rest = super()._config(mine).split("\n", 1)
        lines = etcd_lines(self.site, 2000, mine.get("etcd", self.etcd_options))
        return "\n".join([first, lines, rest])

    def start_both(self):
        """Starts both nodes and waits until the origin serves."""
        for node in self.data_nodes:
            node.start()
        self.wait_in_sync()


def check(node):
    """What `replctl check` finds wrong with etcd."""
    return [it for it in node.ctl("check")["problems"] if "etcd" in it]


def with_another_key(site, first):
    """Other clusters of this prefix: with another name, with another key, with both the same."""
    for name, words in (("other", "belongs to the cluster \"test\""), ("test", "another key")):
        options = 'prefix = "/replicator/test"'
        with Loopback(site, name=name, options=options) as cluster:
            cluster.create()
            problems = check(cluster.alpha)
            expect(any(words in it for it in problems), f"{problems}")
            for node in cluster.data_nodes:
                node.start()
            wait_until("it refuses the register", lambda: (
                cluster.alpha.ctl("status")["cluster_state"]["etcd"]["trouble"] or {}
            ).get("code") == "foreign_register", 10)
            expect(cluster.alpha.replica()["role"] != "primary", "it serves by a foreign register")
    first.wait_in_sync()
    state = site.get("/replicator/test/state")["value"]
    expect(state["resources"][0]["state"]["primary"], "the first cluster lost its primary")


def with_a_password(site, cluster):
    """etcd begins to want a password: the daemons say so, and go on with it."""
    alpha = cluster.alpha
    for words in (("user", "add", "root:secret"), ("user", "grant-role", "root", "root"),
                  ("auth", "enable")):
        site.ctl(*words, check=words != ("user", "grant-role", "root", "root"))
    site.login = ("--user", "root:secret")
    problems = check(alpha)
    expect(any("user" in it for it in problems), f"{problems}")
    password = cluster.dir / "password"
    options = f'user = "root"\npassword_file = "{password}"'
    password.write_text("wrong\n")
    password.chmod(0o600)
    cluster.write_config(etcd=options)
    problems = check(alpha)
    expect(any("password_file of [etcd]" in it for it in problems), f"{problems}")
    password.write_text("secret\n")
    expect(check(alpha) == [], f"{check(alpha)}")
    for node in cluster.data_nodes:
        node.kill()
    for node in cluster.data_nodes:
        node.start()
    cluster.wait_in_sync()


SCENARIOS = [
    etcd_its_leader_is_killed_under_load_and_then_the_primary_and_nothing_is_lost,
]

LONG = [
    etcd_a_killed_primary_is_replaced_without_loss_and_returns,
    etcd_its_leader_is_paused_under_load_and_nobody_fails_over,
    etcd_without_a_majority_of_it_the_primary_waits_and_goes_on_without_an_error,
    etcd_an_isolated_primary_is_replaced_and_never_acknowledges_again,
    etcd_a_primary_that_reaches_the_other_node_but_not_etcd_is_replaced,
    etcd_with_only_the_data_link_cut_the_primary_goes_on_alone,
    etcd_a_paused_primary_is_replaced_and_a_switchover_brings_it_back,
    etcd_everything_is_stopped_and_started_and_goes_on,
    etcd_check_names_what_is_wrong_and_strangers_below_the_prefix_are_refused,
]
