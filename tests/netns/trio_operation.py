"""Scenarios: three nodes, operators who switch over, pause and force, and replicas that come back
stale or diverged.
"""

import threading
import time

from cluster import Refused, expect, on_each_backing, wait_until
from pauses import longest_wait
from trio import Trio, stay
from trio_explain import hindered
from trio_network import (expect_all_say_well, expect_refuses_clients, expect_says, last_revision,
                          longest_pause, nobody_took_over)
from trio_services import Served

TAKEN_WITHIN_S = 15
# A peer that is silent is given up after 0.7 s, one whose session ended after a second.
WITHOUT_TIME_OUT_S = 0.6
BLOCK = 4096


def d12_a_stale_replica_that_comes_back_alone_refuses_and_the_last_member_serves(backing):
    with Trio(backing=backing) as cluster:
        alpha, beta, gamma = cluster.start(watched=False).nodes.values()
        expect_all_say_well(cluster, "alpha", "beta")
        with alpha.client() as client:
            client.write(0, b"1" * BLOCK, fua=True)
        beta.kill()
        wait_until("alpha is the only member",
                   lambda: cluster.office(alpha)["in_sync"] == ["alpha"], 10)
        expect_alpha_serves_alone(cluster, silent=["beta"])
        with alpha.client() as client:
            client.write(0, b"2" * BLOCK, fua=True)
        alpha.kill()

        beta.start()
        expect_nobody_serves_without_alpha(cluster)
        stay(4)
        expect_nobody_serves_without_alpha(cluster)
        expect(beta.replica()["role"] == "secondary", "a stale replica was promoted")
        explained = cluster.office(beta)["explain"]["refusal"]
        expect((explained["code"], explained["rule"]) == ("sole", "R5d"), f"refused by {explained}")
        print(f"    beta: {explained['rule']}: {explained['why']}")
        expect(cluster.office(gamma)["lease_over_ms"] > 1000, "the witness takes alpha for alive")
        refused = beta.refuses("switchover", "demo", "--to", "beta", code="not_a_member")
        expect(refused.rule == "R11a", f"{refused.rule}: {refused}")
        expect_refuses_clients(beta)

        beta.kill()
        alpha.start()
        cluster.wait_for_primary(alpha)
        expect_alpha_serves_alone(cluster, silent=[], never_heard=["beta"])
        with alpha.client() as client:
            expect(client.read(0, BLOCK) == b"2" * BLOCK, "an acknowledged write is missing")
        beta.start()
        cluster.wait_in_sync()
        expect_all_say_well(cluster, "alpha", "beta")
        cluster.expect_identical()
        expect(gamma.is_running, "the witness ended")


def expect_alpha_serves_alone(cluster, **missed):
    """What alpha, for which beta is as `missed` says, and the witness say while beta is off."""
    facts = {"majority": True, "lost": [], "primary": "alpha", "in_sync": ["alpha"],
             "lease_runs": True}
    expect_says(cluster.alpha, "served by alpha alone: beta is disconnected", level="degraded",
                **missed, **facts)
    expect_says(cluster.gamma, silent=["beta"], **facts)


def expect_nobody_serves_without_alpha(cluster):
    """What beta and the witness say while the only member is off."""
    facts = {"majority": True, "lost": [], "primary": "alpha", "in_sync": ["alpha"],
             "lease_runs": False}
    words = "^not served as far as beta knows: alpha was the only member.*bring alpha back"
    # It was started after alpha was gone.
    expect_says(cluster.beta, words, silent=[], never_heard=["alpha"], level="attention", **facts)
    expect_says(cluster.gamma, silent=["alpha"], never_heard=[], **facts)


def d13_after_a_forced_failover_the_old_primary_is_refused_until_the_operator_gives_its_data_up():
    with Trio() as cluster:
        alpha, beta, _ = cluster.start(watched=False).nodes.values()
        beta.kill()
        wait_until("alpha is the only member",
                   lambda: cluster.office(alpha)["in_sync"] == ["alpha"], 10)
        with alpha.client() as client:
            for block in range(8):
                client.write(block * BLOCK, b"a" * BLOCK, fua=True)
        alpha.kill()
        beta.start()
        wait_until("beta knows the register",
                   lambda: cluster.office(beta)["generation"] > 0, 10)
        refused = beta.refuses("failover", "demo", "--to", "beta", "--allow-data-loss")
        expect(refused.rule == "R5d" and "--old-primary-is-off" in refused.next,
               f"{refused.rule} {refused}")
        beta.ctl("failover", "demo", "--to", "beta", "--allow-data-loss", "--old-primary-is-off")
        cluster.wait_for_primary(beta)
        with beta.client() as client:
            client.write(0, b"b" * BLOCK, fua=True)
            expect(client.read(BLOCK, BLOCK) == bytes(BLOCK), "beta has what it never got")

        alpha.start()
        wait_until("alpha says that it diverged", lambda: alpha.replica()["data"] == "diverged")
        diverged = wait_until("beta counts the diverged blocks",
                              lambda: beta.peer()["diverged_blocks"])
        # After a crash every hot extent counts.
        expect(8 <= diverged <= 1024 + 8, f"{diverged} blocks diverged, 8 were written")
        print(f"    {diverged} diverged blocks; {alpha.status()['verdict']['text']}")
        stay(2)
        expect(alpha.replica()["data"] == "diverged", "alpha was overwritten without an order")
        for node in cluster.nodes.values():
            hindered(node, "alpha", "R11d", "replctl resync demo --discard", r"generation \d+")
        alpha.ctl("resync", "demo", "--discard")
        cluster.wait_in_sync()
        with beta.client() as client:
            expect(client.read(0, BLOCK) == b"b" * BLOCK, "a write of the new lineage is missing")
        cluster.expect_identical()
        expect(any("forced" in entry["what"] for entry in cluster.history()),
               "history does not name the force")


def o3_a_switchover_under_load_loses_nothing():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        for source, target in ((alpha, beta), (beta, alpha), (alpha, beta)):
            began = time.monotonic()
            answer = source.ctl("switchover", "demo", "--to", target.name)
            took = cluster.wait_for_acks(target.name, TAKEN_WITHIN_S)
            print(f"    {answer.get('done', answer)}; first write {took:.2f} s, "
                  f"{time.monotonic() - began:.2f} s with the checks")
            cluster.wait_in_sync()
        cluster.finish()


def o3_a_switchover_whose_target_dies_half_way_leaves_somebody_serving(backing):
    with Trio(backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        for after_s in (0.02, 0.05, 0.1):
            order = threading.Thread(target=try_to, args=(
                alpha, "switchover", "demo", "--to", "beta"))
            order.start()
            stay(after_s)
            beta.kill()
            wait_until("somebody serves", lambda: alpha.replica()["role"] == "primary", 30)
            cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
            order.join(90)
            expect(not order.is_alive(), "the switchover never answers")
            beta.start()
            cluster.wait_in_sync()
            if cluster.primary() is beta:
                cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
                beta.ctl("switchover", "demo", "--to", "alpha")
                cluster.wait_for_primary(alpha)
                cluster.wait_in_sync()
        cluster.finish()


def o3_a_switchover_that_is_cancelled_half_way_leaves_everything_where_it_was():
    """While the services stop; then it does not last, and what was ordered is told so."""
    def services(cluster):
        return [cluster.beat("one", ', stop = "sleep 3", stop_timeout_ms = 20000'),
                cluster.beat("two")]
    with Served(services) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        expect("no switchover" in beta.ctl("switchover", "demo", "--cancel")["already"],
               "there was nothing to cancel")
        answers = []
        order = threading.Thread(target=lambda: answers.append(try_to(
            alpha, "switchover", "demo", "--to", "beta")))
        order.start()
        wait_until("alpha stops its services", lambda: not cluster.pids("alpha", "two"))
        answer = beta.ctl("switchover", "demo", "--cancel")
        expect(answer["done"] == "cancelled; alpha stays primary", f"{answer}")
        order.join(30)
        expect("switchover to beta cancelled" in str(answers[0]), f"it was told {answers[0]}")
        cluster.wait_for_services("alpha")
        expect(cluster.primary() is alpha, "the office moved")
        told = [entry["what"] for entry in cluster.history()]
        expect("switchover cancelled" in told and "release" not in told, f"history: {told}")
        # It is no failure: the next one is done at once.
        beta.ctl("switchover", "demo", "--to", "beta")
        cluster.wait_for_services("beta")
        cluster.expect_never_two(moves=1)


def try_to(node, *words):
    """A command that may be refused; the refusal."""
    try:
        node.ctl(*words)
    except Refused as refusal:
        print(f"    {' '.join(words)}: {refusal}")
        return refusal
    return None


def o4_while_automation_is_paused_nothing_is_taken_over_and_resume_does():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        beta.ctl("pause")
        before = last_revision(cluster)
        alpha.kill()
        stay(4)
        expect(beta.replica()["role"] == "secondary", "beta took over though paused")
        nobody_took_over(cluster, before)
        explained = cluster.office(beta)["explain"]
        expect(explained["refusal"]["code"] == "paused", f"{explained}")
        expect("replctl resume" in explained["refusal"]["next"], f"{explained}")
        beta.ctl("resume")
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after resume")
        alpha.start()
        cluster.finish()


def o4_a_node_on_standby_gives_its_office_away_and_takes_none():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.ctl("standby", "alpha")
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        cluster.wait_in_sync()
        refused = beta.refuses("switchover", "demo", "--to", "alpha", code="standby")
        expect("replctl online alpha" in refused.next, refused.next)
        beta.kill()
        stay(4)
        expect(alpha.replica()["role"] == "secondary", "a node on standby took over")
        explained = cluster.office(alpha)["explain"]["refusal"]
        expect(explained["code"] == "standby", f"{explained}")
        alpha.ctl("online", "alpha")
        cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        beta.start()
        cluster.finish()


def o5_a_configuration_change_that_races_a_failover_is_made_once_and_nothing_is_lost():
    """The register's lease changes by `apply` on the node that takes over, just before its primary
    is killed, while its lease ends, and about when the office is taken."""
    with Trio() as cluster:
        cluster.start()
        for lease_ms, killed_first_s in ((2000, None), (1000, 0.6), (1500, 1.1)):
            old = cluster.primary()
            new = next(node for node in cluster.data_nodes if node is not old)
            cluster.top = f"lease_ms = {lease_ms}"
            cluster.write_config()
            order = threading.Thread(target=try_to, args=(new, "apply"))
            if killed_first_s is None:
                order.start()
            old.kill()
            if killed_first_s is not None:
                stay(killed_first_s)
                order.start()
            took = cluster.wait_for_acks(new.name, TAKEN_WITHIN_S, 1)
            order.join(60)
            expect(not order.is_alive(), "apply never answers")
            old.start()
            cluster.wait_in_sync()
            # Whoever was refused orders it again; what is done is not done twice.
            new.ctl("apply")
            expect(new.ctl("apply") == [], "the file still differs from the register")
            for node in cluster.nodes.values():
                wait_until(f"{node.name} goes by the new lease", lambda it=node, ms=lease_ms:
                           it.ctl("status")["cluster_state"]["lease_ms"] == ms, 10)
            print(f"    lease {lease_ms} ms: {new.name} acknowledged writes after {took:.2f} s")
            cluster.watch.expect_well()
        changes = [entry for entry in cluster.history() if entry["what"] == "lease changed"]
        expect(len(changes) == 3, f"the lease was changed {len(changes)} times: {changes}")
        cluster.finish()


def o8_failovers_in_a_row(count, backing="normal"):
    """The primary is killed and comes back; again and again, under load."""
    with Trio(backing=backing) as cluster:
        cluster.start()
        times = []
        for _ in range(count):
            old = cluster.primary()
            new = next(node for node in cluster.data_nodes if node is not old)
            old.kill()
            times.append(cluster.wait_for_acks(new.name, TAKEN_WITHIN_S, 1))
            old.start()
            cluster.wait_in_sync()
            cluster.watch.expect_well()
        cluster.finish()
        times.sort()
        print(f"    {count} failovers: median {times[count // 2]:.2f} s, worst {times[-1]:.2f} s")


def o8_six_failovers_in_a_row(backing):
    o8_failovers_in_a_row(6, backing)


def o8_a_hundred_failovers_in_a_row():
    o8_failovers_in_a_row(100)


def o8_twenty_switchovers_in_a_row():
    with Trio() as cluster:
        cluster.start()
        for number in range(20):
            target = cluster.data_nodes[(number + 1) % 2]
            cluster.data_nodes[number % 2].ctl("switchover", "demo", "--to", target.name)
            cluster.wait_for_acks(target.name, TAKEN_WITHIN_S, 1)
            cluster.wait_in_sync()
        cluster.finish()
        print(f"    clients waited at most {longest_pause(cluster.watch.acks()):.2f} s")


def h8_a_daemon_that_is_stopped_hands_over_without_a_time_out():
    """SIGTERM, as a stop or reboot by systemd sends it: whoever takes over does not wait for the one
    that left as for one that was lost. From either node, of which one dials the other."""
    with Trio() as cluster:
        cluster.start()
        alpha, beta = cluster.data_nodes
        paused = {alpha: [], beta: []}
        for old, new in ((alpha, beta), (beta, alpha)) * 2:
            since = time.monotonic()
            old.stop()
            cluster.wait_for_acks(new.name, TAKEN_WITHIN_S, 1)
            paused[old].append(longest_wait([ack.answered for ack in cluster.watch.acks()], since))
            old.start()
            cluster.wait_in_sync()
            expect(cluster.primary() is new, f"{new.name} did not stay primary")
        cluster.finish()
        told = {node.name: [round(pause, 2) for pause in pauses] for node, pauses in paused.items()}
        print(f"    clients waited {told} s when the daemon of that node was stopped")
        expect(all(min(pauses) < WITHOUT_TIME_OUT_S for pauses in paused.values()),
               f"each time a time-out was waited for: {told}")


D12 = on_each_backing(d12_a_stale_replica_that_comes_back_alone_refuses_and_the_last_member_serves)
SIX = on_each_backing(o8_six_failovers_in_a_row)

# Each of both backings runs with --long; always the one that can lose more.
SCENARIOS = [
    D12[1],
    d13_after_a_forced_failover_the_old_primary_is_refused_until_the_operator_gives_its_data_up,
    o3_a_switchover_under_load_loses_nothing,
    o3_a_switchover_that_is_cancelled_half_way_leaves_everything_where_it_was,
    o4_while_automation_is_paused_nothing_is_taken_over_and_resume_does,
    o4_a_node_on_standby_gives_its_office_away_and_takes_none,
    o5_a_configuration_change_that_races_a_failover_is_made_once_and_nothing_is_lost,
    SIX[1],
    o8_twenty_switchovers_in_a_row,
    h8_a_daemon_that_is_stopped_hands_over_without_a_time_out,
]
LONG = [
    D12[0],
    *on_each_backing(o3_a_switchover_whose_target_dies_half_way_leaves_somebody_serving),
    SIX[0],
    o8_a_hundred_failovers_in_a_row,
]
