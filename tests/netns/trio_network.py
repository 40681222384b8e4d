"""Scenarios: three nodes decide by themselves while parts of their network are cut, under load."""

import time

from cluster import TestFailed, expect, wait_until
from trio import Trio, late_acks, stay

TAKEN_WITHIN_S = 15


def nobody_took_over(cluster, before):
    """The office stayed where it was."""
    new = [entry for entry in cluster.takeovers() if entry["revision"] > before]
    expect(not new, f"somebody took over: {new}")


def last_revision(cluster):
    """The newest revision that anybody knows."""
    return cluster.history()[-1]["revision"]


def p1_an_isolated_primary_is_replaced_and_comes_back_as_a_secondary():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        cluster.isolate(alpha)
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    the first write on beta {took:.2f} s after the cut")
        wait_until("alpha says that it has no majority",
                   lambda: not alpha.ctl("status")["cluster_state"]["has_majority"], 5)
        explained = cluster.office(alpha)["explain"]
        expect(explained and explained["refusal"]["code"] == "no_majority", f"{explained}")
        cluster.heal()
        cluster.finish()
        expect(cluster.primary() is beta, "the old primary took the office back")


def p1_an_isolated_secondary_is_left_out_and_the_primary_goes_on():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        cluster.isolate(beta)
        took = cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        wait_until("beta left the set", lambda: not alpha.peer()["is_member"], 5)
        print(f"    writes went on after {took:.2f} s")
        stay(2)
        cluster.heal()
        cluster.finish()
        nobody_took_over(cluster, before)


def p1_an_isolated_witness_changes_nothing_for_clients():
    with Trio() as cluster:
        alpha = cluster.start().alpha
        before, writes = last_revision(cluster), len(cluster.watch.acks())
        cluster.isolate(cluster.gamma)
        wait_until("alpha misses the witness", lambda: any(
            node["name"] == "gamma" and node["state"] == "silent"
            for node in alpha.ctl("status")["cluster_state"]["nodes"]), 10)
        stay(2)
        cluster.wait_for_acks("alpha", 5)
        expect(len(cluster.watch.acks()) > writes + 100, "clients were held up")
        longest = longest_pause(cluster.watch.acks())
        expect(longest < 1.0, f"clients waited {longest:.2f} s for a lost witness")
        cluster.heal()
        cluster.finish()
        nobody_took_over(cluster, before)


def longest_pause(acks):
    """Seconds between two acknowledgements, at most."""
    times = sorted(ack[2] for ack in acks)
    return max((two - one for one, two in zip(times, times[1:])), default=0.0)


def p2_with_only_the_data_link_cut_the_primary_goes_on_with_the_vote_of_the_witness():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        cluster.cut_link(alpha, beta)
        took = cluster.wait_for_acks("alpha", TAKEN_WITHIN_S)
        print(f"    writes went on after {took:.2f} s")
        expect(cluster.office(cluster.gamma)["in_sync"] == ["alpha"], "beta is still in the set")
        stay(3)
        refused = beta.refuses("switchover", "demo", "--to", "beta")
        expect(refused.code in ("not_a_member", "not_heard"), f"{refused.code}: {refused}")
        cluster.heal()
        cluster.finish()
        nobody_took_over(cluster, before)


def one_way(sender, receiver, primary):
    """What `sender` sends to `receiver` is lost for a while; who must be primary meanwhile."""
    with Trio() as cluster:
        cluster.start()
        before = last_revision(cluster)
        receivers = [receiver] if receiver else [it for it in cluster.nodes if it != sender]
        for name in receivers:
            cluster.cut(cluster.nodes[sender], cluster.nodes[name])
        took = cluster.wait_for_acks(primary, TAKEN_WITHIN_S)
        print(f"    {primary} acknowledged writes after {took:.2f} s")
        stay(2)
        cluster.wait_for_acks(primary, TAKEN_WITHIN_S)
        cluster.heal()
        cluster.finish()
        if primary == "alpha":
            nobody_took_over(cluster, before)


def p3_what_the_primary_sends_to_the_secondary_is_lost():
    one_way("alpha", "beta", "alpha")


def p3_what_the_secondary_sends_to_the_primary_is_lost():
    one_way("beta", "alpha", "alpha")


def p3_what_the_primary_sends_to_the_witness_is_lost():
    one_way("alpha", "gamma", "alpha")


def p3_what_the_witness_sends_to_the_primary_is_lost():
    one_way("gamma", "alpha", "alpha")


def p3_nothing_that_the_primary_sends_arrives_and_it_is_replaced():
    one_way("alpha", None, "beta")


def p3_the_primary_hears_nobody_and_is_replaced():
    """It is heard: its requests for the lease arrive, their answers do not."""
    with Trio() as cluster:
        alpha = cluster.start().alpha
        for node in (cluster.beta, cluster.gamma):
            cluster.cut(node, alpha)
        took = cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        print(f"    beta acknowledged writes after {took:.2f} s")
        cluster.heal()
        cluster.finish()
        expect(cluster.primary() is cluster.beta, "the old primary took the office back")


def p6_a_data_link_that_flaps_never_moves_the_office():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        for length_s in (0.1, 0.3, 1.5, 0.1, 2.0, 0.5):
            cluster.cut_link(alpha, beta)
            stay(length_s)
            cluster.heal()
            stay(length_s)
        cluster.wait_for_acks("alpha", 20)
        cluster.finish()
        nobody_took_over(cluster, before)


def p6_a_secondary_that_is_dropped_three_times_comes_back_later_and_status_says_when():
    """Observed with delays long enough for a busy machine; the shipped ones are 5 s and more."""
    timing = {"rejoin_delay_ms": 15_000, "rejoin_delay_max_ms": 60_000}
    with Trio(timing=timing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        for _ in range(2):
            drop_and_heal(cluster)
            cluster.wait_in_sync()
        drop_and_heal(cluster)
        expect_held_back(cluster, 3, 15_000)
        # Clients do not notice a link that breaks meanwhile; the time begins anew.
        writes = len(cluster.watch.acks())
        cluster.cut_link(alpha, beta)
        wait_until("beta is lost", lambda: alpha.peer()["state"] != "held_back", 10)
        cluster.wait_for_acks("alpha", 10)
        cluster.heal()
        healed = time.monotonic()
        expect_held_back(cluster, 3, 15_000)
        longest = longest_pause(cluster.watch.acks()[writes:])
        expect(longest < 1.0, f"clients waited {longest:.2f} s for a replica that is held back")
        cluster.wait_in_sync()
        took = time.monotonic() - healed
        expect(took >= 15, f"beta was back {took:.1f} s after the link was")
        # The fourth time it takes twice as long, unless an operator wants it back now.
        drop_and_heal(cluster)
        expect_held_back(cluster, 4, 30_000)
        told = time.monotonic()
        alpha.ctl("connect", "demo", "--peer", "beta")
        cluster.wait_in_sync(deadline_s=15)
        expect(alpha.peer()["drops"] == 0, "what the operator forgave is still counted")
        print(f"    held back for {took:.1f} s; {time.monotonic() - told:.1f} s after the order")
        cluster.finish()
        nobody_took_over(cluster, before)


def drop_and_heal(cluster):
    """The data link is cut until beta is out of the set."""
    alpha = cluster.alpha
    cluster.cut_link(alpha, cluster.beta)
    wait_until("beta left the set", lambda: not alpha.peer()["is_member"], 10)
    cluster.wait_for_acks("alpha", 10)
    cluster.heal()


def expect_held_back(cluster, drops, delay_ms):
    """What alpha and beta say while beta is held back."""
    alpha, beta = cluster.alpha, cluster.beta
    wait_until("beta is held back", lambda: alpha.peer()["state"] == "held_back", 20)
    told = alpha.status()
    peer = told["replica"]["peers"][0]
    expect(peer["drops"] == drops and f"dropped {drops} times lately" in peer["why"], f"{peer}")
    wait = next(it for it in told["replica"]["waits"] if it["party"] == "held_back")
    expect(wait["since_ms"] < delay_ms and abs(wait["limit_ms"] - delay_ms) <= 1, f"{wait}")
    expect("replctl connect demo --peer beta" in wait["then"], f"{wait}")
    expect("served by alpha alone: beta is held back" in told["verdict"]["text"],
           f"{told['verdict']}")
    expect(any(f"beta was dropped {drops} times lately" in event["text"]
               for event in told["events"]), f"{told['events']}")
    for command in ("status", "explain"):
        text = alpha.ctl_raw(command, "demo", as_json=False)[1]
        line = f"waits for beta to be heard without a break: it was dropped {drops} times lately"
        expect(line in text and " s in all, then it is brought" in text, f"{command}: {text}")
    theirs = beta.status()
    expect(theirs["replica"]["data"] == "outdated" and theirs["replica"]["in_sync"] == ["alpha"],
           f"{theirs['replica']}")
    expect("waits until alpha brings it up to date" in theirs["verdict"]["text"],
           f"{theirs['verdict']}")
    expect(alpha.peer()["state"] == "held_back", "it came back while it was looked at")


def p6_a_primary_whose_whole_network_flaps_is_replaced_at_most_once_and_gets_nothing_back():
    with Trio() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        before = last_revision(cluster)
        for length_s in (0.2, 0.2, 3.0, 0.3, 1.5, 0.2, 2.0):
            cluster.isolate(alpha)
            stay(length_s)
            cluster.heal()
            stay(0.3)
        cluster.wait_for_acks("beta", 20)
        taken = [entry for entry in cluster.takeovers() if entry["revision"] > before]
        cluster.finish()
        expect(cluster.primary() is beta and len(taken) == 1,
               f"the office moved {len(taken)} times: {taken}")


def the_watch_finds_two_primaries_at_a_time():
    """The judge of all these scenarios is not blind."""
    alpha = [("alpha", at, at + 0.01) for at in (1.0, 1.1, 1.2)]
    beta = [("beta", at, at + 0.01) for at in (3.0, 3.1)]
    expect(not late_acks(alpha + beta), "acknowledgements one after the other were blamed")
    late = ("alpha", 1.3, 3.9)
    found = late_acks(sorted(alpha + beta + [late], key=lambda ack: ack[1]))
    expect(found == [late], f"a late acknowledgement was not found: {found}")
    back = ("alpha", 5.0, 5.1)
    expect(not late_acks(alpha + beta + [back]), "a later office of the same node was blamed")
    watch = type("Planted", (), {"acks": lambda _: alpha + beta + [back], "cluster": type(
        "Register", (), {"history": lambda _: [{"primary": "alpha"}, {"primary": "beta"}]})()})()
    from trio import Watch
    try:
        Watch.expect_one_primary_at_a_time(watch)
    except TestFailed:
        return
    raise TestFailed("an office that the register never gave was not found")


SCENARIOS = [
    the_watch_finds_two_primaries_at_a_time,
    p1_an_isolated_primary_is_replaced_and_comes_back_as_a_secondary,
    p1_an_isolated_secondary_is_left_out_and_the_primary_goes_on,
    p1_an_isolated_witness_changes_nothing_for_clients,
    p2_with_only_the_data_link_cut_the_primary_goes_on_with_the_vote_of_the_witness,
    p3_what_the_primary_sends_to_the_secondary_is_lost,
    p3_what_the_secondary_sends_to_the_primary_is_lost,
    p3_nothing_that_the_primary_sends_arrives_and_it_is_replaced,
    p3_the_primary_hears_nobody_and_is_replaced,
    p6_a_primary_whose_whole_network_flaps_is_replaced_at_most_once_and_gets_nothing_back,
]
LONG = [
    p3_what_the_primary_sends_to_the_witness_is_lost,
    p3_what_the_witness_sends_to_the_primary_is_lost,
    p6_a_data_link_that_flaps_never_moves_the_office,
    p6_a_secondary_that_is_dropped_three_times_comes_back_later_and_status_says_when,
]
