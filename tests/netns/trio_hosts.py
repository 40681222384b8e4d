"""Scenarios: three nodes decide by themselves while daemons are killed, stopped and restarted under
load.
"""

import itertools
import signal
import time

from cluster import BLOCK, expect, on_each_backing, wait_until
from notes import Notes
from trio import Trio, stay
from trio_network import (expect_all_say_well, expect_refuses_clients, expect_says, last_revision,
                          longest_pause, nobody_took_over)

LEASE_S = 1.0
TAKEN_WITHIN_S = 15


def h1_a_killed_primary_is_replaced_and_returns_later(backing):
    with Trio(backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after SIGKILL")
        stay(2 if backing == "volatile" else 5)
        alpha.start()
        cluster.finish()
        expect(cluster.primary() is beta, "the old primary took the office back")


def h1_a_killed_primary_that_never_returns_is_replaced():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after SIGKILL")
        wait_until("alpha left the set", lambda: cluster.office(beta)["in_sync"] == ["beta"], 10)
        cluster.wait_for_acks("beta", 5, 100)
        cluster.watch.finish()


def h1_a_killed_primary_that_is_back_after_100_ms_serves_again_or_is_replaced(backing):
    with Trio(backing=backing) as cluster:
        alpha = cluster.start().alpha
        before = last_revision(cluster)
        alpha.kill()
        stay(0.1)
        alpha.start()
        wait_until("somebody acknowledges writes again", lambda: any(
            ack[1] > cluster.watch.acks()[0][1] and ack[2] > since(cluster)
            for ack in cluster.watch.acks()), TAKEN_WITHIN_S)
        cluster.finish()
        if backing == "normal":
            nobody_took_over_from_another(cluster, before)
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s")


def r5e_a_confirmed_read_waits_until_a_silent_member_has_left_the_set():
    """And is answered at once while the member answers."""
    with Trio(options='reads = "confirmed"') as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        with alpha.client(timeout_s=20) as client:
            client.write(0, b"r" * BLOCK)
            began = time.monotonic()
            for _ in range(50):
                client.read(0, BLOCK)
            each_ms = (time.monotonic() - began) * 20
            beta.signal(signal.SIGSTOP)
            began = time.monotonic()
            expect(client.read(0, BLOCK) == b"r" * BLOCK, "another block was read")
            waited = time.monotonic() - began
            beta.signal(signal.SIGCONT)
        print(f"    a confirmed read took {each_ms:.2f} ms; with a silent member {waited:.2f} s")
        expect(waited > 0.3, "nobody was asked")
        expect(waited < 5, f"it waited {waited:.1f} s")
        cluster.wait_in_sync()


def since(cluster):
    """When the newest break of service was noticed by its client."""
    ends = [float(line[2]) for line in cluster.watch.lines() if line[0] == "end"]
    return max(ends, default=0.0)


def nobody_took_over_from_another(cluster, before):
    """Whoever takes the office since then is alpha, which had it."""
    new = [entry for entry in cluster.takeovers()
           if entry["revision"] > before and entry["primary"] != "alpha"]
    expect(not new, f"somebody took over: {new}")


def h1_a_killed_secondary_is_left_out_and_returns(backing):
    with Trio(backing=backing) as cluster:
        beta = cluster.start().beta
        before = last_revision(cluster)
        for away_s in (0.1, 5 if backing == "normal" else 2):
            beta.kill()
            stay(away_s)
            cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
            beta.start()
            cluster.wait_in_sync()
        cluster.finish()
        nobody_took_over(cluster, before)
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s")


def h1_a_killed_witness_is_noticed_by_nobody_but_the_operator():
    with Trio() as cluster:
        alpha, gamma = cluster.start().alpha, cluster.gamma
        before = last_revision(cluster)
        for away_s in (0.1, 2.5):
            gamma.kill()
            stay(away_s)
            cluster.wait_for_acks("alpha", 2)
            if away_s > 2 * LEASE_S:
                cluster_state = alpha.ctl("status")["cluster_state"]
                silent = [it["name"] for it in cluster_state["nodes"] if it["state"] == "silent"]
                expect(silent == ["gamma"], f"silent: {silent}")
            gamma.start()
        cluster.finish()
        nobody_took_over(cluster, before)
        longest = longest_pause(cluster.watch.acks())
        expect(longest < 1.0, f"clients waited {longest:.2f} s for a lost witness")


def stopped_for(seconds):
    """SIGSTOP of the primary for so long; the cluster when it goes on."""
    def scenario():
        with Trio() as cluster:
            alpha, beta = cluster.start().alpha, cluster.beta
            before = last_revision(cluster)
            alpha.signal(signal.SIGSTOP)
            stay(seconds)
            alpha.signal(signal.SIGCONT)
            if seconds < LEASE_S:
                cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
                nobody_took_over(cluster, before)
            else:
                cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
            cluster.finish()
            expect(cluster.primary() is (alpha if seconds < LEASE_S else beta), "wrong primary")
            if seconds < LEASE_S:
                expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")
    return scenario


def h2_a_primary_stopped_for_half_a_lease_goes_on():
    stopped_for(LEASE_S / 2)()


def h2_a_primary_stopped_for_two_leases_is_replaced_and_never_answers_again():
    stopped_for(2 * LEASE_S)()


def h2_a_primary_stopped_for_30_s_is_replaced_and_never_answers_again():
    stopped_for(30)()


def h2_a_primary_that_goes_on_in_the_middle_of_the_takeover_does_no_harm():
    """At several moments around the end of the lease, whoever wins."""
    with Trio() as cluster:
        cluster.start()
        for stopped_s in (0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3):
            primary = cluster.data_node(cluster.office()["primary"])
            primary.signal(signal.SIGSTOP)
            stay(stopped_s)
            primary.signal(signal.SIGCONT)
            cluster.wait_in_sync()
            cluster.wait_for_acks(cluster.primary().name, TAKEN_WITHIN_S)
        cluster.finish()


def h2_a_stopped_witness_or_secondary_never_moves_the_office():
    with Trio() as cluster:
        cluster.start()
        before = last_revision(cluster)
        for node in (cluster.beta, cluster.gamma):
            node.signal(signal.SIGSTOP)
            stay(3 * LEASE_S)
            cluster.wait_for_acks("alpha", 5)
            node.signal(signal.SIGCONT)
            cluster.wait_in_sync()
        cluster.finish()
        nobody_took_over(cluster, before)


def h2_a_lease_that_lapses_without_a_takeover_costs_a_pause_and_no_error():
    """L4: nobody grants it, since both others stand still; when they go on, so does the primary."""
    with Trio() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        before, generation = last_revision(cluster), cluster.office()["tenure"]
        for leases in (2, 3):
            seen, since = len(cluster.watch.acks()), time.monotonic()
            for node in (beta, gamma):
                node.signal(signal.SIGSTOP)
            stood = time.monotonic()
            wait_until("the lease is over", lambda: "the lease of alpha is over" in
                       alpha.status()["verdict"]["text"], leases * LEASE_S)
            stay(stood + leases * LEASE_S - time.monotonic())
            at_rest = time.monotonic() - stood
            for node in (beta, gamma):
                node.signal(signal.SIGCONT)
            cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
            longest = longest_pause(cluster.watch.acks()[seen - 1:])
            print(f"    both stood still for {at_rest:.2f} s; clients waited {longest:.2f} s")
            expect(at_rest - (stood - since) - 0.1 < longest < at_rest + LEASE_S,
                   f"clients waited {longest:.2f} s, not as long as both stood still")
            cluster.wait_in_sync()
        nobody_took_over(cluster, before)
        expect(cluster.office()["tenure"] == generation, "another tenure began")
        cluster.watch.expect_no_error()
        expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")
        cluster.finish()
        nobody_took_over(cluster, before)


def h6_a_rolling_restart_of_all_daemons_loses_nothing():
    """As an upgrade does it: the secondary, the witness, the primary after a switchover."""
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.restart_in_turn((beta, cluster.gamma))
        beta.ctl("switchover", "demo", "--to", "beta")
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        cluster.restart_in_turn((alpha,))
        cluster.finish()
        expect(cluster.primary() is beta, "the office moved once more")
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s")


def h6_a_primary_that_is_told_to_stop_hands_over_or_is_replaced():
    """SIGTERM under load, without a switchover before."""
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.stop(timeout_s=60)
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after the end of alpha's daemon")
        alpha.start()
        cluster.finish()
        expect(cluster.primary() is beta, "the office moved once more")


def h7_a_cold_start_in_every_order_serves(backing):
    with Trio(backing=backing) as cluster:
        cluster.start(watched=False)
        for order in itertools.permutations(cluster.nodes.values()):
            for node in cluster.nodes.values():
                node.kill()
            for node in order:
                node.spawn()
                wait_until(f"{node.name} answers", node.answers_or_died)
            cluster.wait_in_sync()
            with cluster.primary().client() as client:
                client.write(0, bytes(4096), fua=True)
        cluster.expect_identical()


def h7_a_cold_start_serves_with_any_one_node_missing():
    """Not where all lost their caches: there the missing one is waited for, see R11a."""
    with Trio() as cluster:
        cluster.start(watched=False)
        for missing in cluster.nodes.values():
            for node in cluster.nodes.values():
                node.kill()
            others = [node for node in cluster.nodes.values() if node is not missing]
            for node in others:
                node.spawn()
            wait_until(f"somebody serves without {missing.name}", lambda: any(
                node.replica()["role"] == "primary" for node in others
                if node is not cluster.gamma), 30)
            with cluster.primary().client() as client:
                client.write(4096, bytes(4096), fua=True)
            missing.start()
            cluster.wait_in_sync()
        cluster.expect_identical()


def h7_a_cold_start_with_the_stale_node_first_waits_for_the_last_member(backing):
    """The witness comes before the last member, or after it: served is what that one has."""
    with Trio(backing=backing) as cluster:
        alpha, beta, gamma = cluster.start(watched=False).nodes.values()
        for number, later in enumerate(((gamma, alpha), (alpha, gamma)), 1):
            data = bytes([number]) * BLOCK
            beta.kill()
            wait_until("alpha is the only member",
                       lambda: cluster.office(alpha)["in_sync"] == ["alpha"], 10)
            with alpha.client() as client:
                client.write(0, data, fua=True)
            for node in (alpha, gamma):
                node.kill()
            beta.start()
            expect_says(beta, "^not served", majority=False, level="attention", silent=[],
                        never_heard=["alpha", "gamma"])
            expect_refuses_clients(beta)
            for node in later:
                if node is alpha:
                    expect(beta.replica()["role"] == "secondary", "the stale replica is primary")
                    expect_refuses_clients(beta)
                node.start()
                if node is gamma and later[0] is gamma:
                    expect_says(beta, "^not served .* alpha was the only member", majority=True,
                                primary="alpha", in_sync=["alpha"], level="attention")
                    stay(3 * LEASE_S)
            cluster.wait_for_primary(alpha)
            with alpha.client() as client:
                expect(client.read(0, BLOCK) == data, "an acknowledged write is missing")
            cluster.wait_in_sync()
            expect_all_say_well(cluster, "alpha", "beta")
        cluster.expect_identical()


def h6_a_rolling_restart_under_a_mounted_file_system_and_a_service_is_no_error_to_them():
    """A client of the service is not interrupted until its node is restarted, which hands over; no
    write of the file system fails."""
    with Notes() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before, noticed = last_revision(cluster), len(cluster.interruptions())
        cluster.restart_in_turn((beta, cluster.gamma))
        cluster.items.wait_for_more()
        nobody_took_over(cluster, before)
        news = cluster.interruptions()[noticed:]
        expect(not news, f"the client noticed: {news}")
        for restarted, other in ((alpha, beta), (beta, alpha)):
            expect(cluster.file_system_errors() == 0, f"ext4 met errors on {restarted.name}")
            restarted.stop(timeout_s=60)
            cluster.items.wait_for_more()
            expect(cluster.primary() is other, f"{other.name} does not serve")
            restarted.start()
            cluster.wait_in_sync()
        cluster.items.wait_for_more()
        expect(cluster.file_system_errors() == 0, "ext4 met errors")
        why = [entry["why"] for entry in cluster.takeovers()]
        expect(not any("silent" in it for it in why), f"a stop was taken for a failure: {why}")
        cluster.items.finish(cluster.kept)
        cluster.expect_identical()


RETURNS_LATER = on_each_backing(h1_a_killed_primary_is_replaced_and_returns_later)
SECONDARY = on_each_backing(h1_a_killed_secondary_is_left_out_and_returns)
COLD = [on_each_backing(scenario) for scenario in (
    h7_a_cold_start_in_every_order_serves,
    h7_a_cold_start_with_the_stale_node_first_waits_for_the_last_member)]

# Each of both backings runs with --long; always the one that can lose more.
SCENARIOS = [
    RETURNS_LATER[1],
    h1_a_killed_primary_that_never_returns_is_replaced,
    *on_each_backing(h1_a_killed_primary_that_is_back_after_100_ms_serves_again_or_is_replaced),
    SECONDARY[1],
    h1_a_killed_witness_is_noticed_by_nobody_but_the_operator,
    h2_a_primary_stopped_for_half_a_lease_goes_on,
    h2_a_primary_stopped_for_two_leases_is_replaced_and_never_answers_again,
    h2_a_primary_that_goes_on_in_the_middle_of_the_takeover_does_no_harm,
    h2_a_stopped_witness_or_secondary_never_moves_the_office,
    r5e_a_confirmed_read_waits_until_a_silent_member_has_left_the_set,
    h2_a_lease_that_lapses_without_a_takeover_costs_a_pause_and_no_error,
    h6_a_rolling_restart_of_all_daemons_loses_nothing,
    h6_a_primary_that_is_told_to_stop_hands_over_or_is_replaced,
    h6_a_rolling_restart_under_a_mounted_file_system_and_a_service_is_no_error_to_them,
    *(volatile for _, volatile in COLD),
    h7_a_cold_start_serves_with_any_one_node_missing,
]
LONG = [
    *(plain for plain, _ in COLD),
    RETURNS_LATER[0],
    SECONDARY[0],
    h2_a_primary_stopped_for_30_s_is_replaced_and_never_answers_again,
]
