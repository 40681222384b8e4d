"""Scenarios: whoever asks why a node is not primary gets the rule, the values compared, since when,
and the command that would change it; and status names the party that is stopped.
"""

import re
import shutil
import signal

from cluster import expect, wait_until
from nbd_client import WRITE
from throttled_disk import ThrottledDisk
from trio import Trio, Watch, stay

MIB = 1 << 20


def explained(node, code, rule, next_words, values=r"\d"):
    """`explain` of a node gives this reason, with all that belongs to it, and its age grows."""
    def given():
        found = office(node)["explain"]
        if not found or found["refusal"]["code"] != code:
            return None
        # A reason may come in other words while nodes and disks are still being seen.
        return found if re.search(values, found["refusal"]["why"]) else None
    first = wait_until(f"{node.name} explains {code}", given, 20)
    refusal = first["refusal"]
    expect(refusal["rule"] == rule, f"{code} names the rule {refusal['rule']!r}, not {rule}")
    expect(next_words in refusal["next"], f"the next step is {refusal['next']!r}")
    words = node.ctl_raw("explain", "demo", as_json=False)[1]
    expect(rule in words and refusal["next"] in words, f"replctl explain shows:\n{words}")
    print(f"    {node.name}, for {first['since_ms']} ms: {rule}: {refusal['why']}; "
          f"{refusal['next']}")
    return first["since_ms"]


def office(node):
    """The office of demo, or what there is of it, as a node tells."""
    offices = node.ctl("status")["cluster_state"]["resources"]
    return next((it for it in offices if it["name"] == "demo"), {"explain": None, "replicas": []})


def hindered(cluster, asked, name, rule, next_words):
    """Any node says why the replica of another could not be promoted."""
    def given():
        found = [it["hindrance"] for it in office(asked)["replicas"] if it["node"] == name]
        return found and found[0] and found[0]["rule"] == rule and found[0]
    found = wait_until(f"{asked.name} says that {name} is hindered by {rule}", given, 20)
    expect(next_words in found["next"], f"the next step is {found['next']!r}")
    print(f"    {asked.name} about {name}: {rule}: {found['why']}; {found['next']}")


def explain_lease_runs_no_majority_paused_and_standby():
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        one = explained(beta, "lease_runs", "L2", "wait", r"alpha runs here for another \d+ ms")
        stay(0.6)
        two = explained(beta, "lease_runs", "L2", "wait")
        expect(two >= one + 500, f"its age went from {one} to {two} ms in 600 ms")
        beta.ctl("pause")
        explained(beta, "paused", "operator", "replctl resume", "paused = true")
        beta.ctl("resume")
        beta.ctl("standby", "beta")
        explained(beta, "standby", "operator", "replctl online beta", "beta")
        refused = alpha.refuses("switchover", "demo", "--to", "beta", code="standby")
        expect(refused.rule == "operator" and "replctl online beta" in refused.next, f"{refused}")
        beta.ctl("online", "beta")
        cluster.isolate(beta)
        explained(beta, "no_majority", "L6", "recover --without", r"1 of 3 voters.*silent for \d+ ms")


def explain_not_a_member_and_stale():
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        cluster.cut_link(alpha, beta)
        with alpha.client() as client:
            client.write(0, b"x" * 4096, fua=True)
        wait_until("beta left the set", lambda: office(alpha)["in_sync"] == ["alpha"], 10)
        refused = alpha.refuses("switchover", "demo", "--to", "beta", code="not_a_member")
        expect(refused.rule == "R11a" and re.search(r"generation \d+", refused.why), f"{refused}")
        hindered(cluster, cluster.gamma, "beta", "R11a", "bring alpha back")
        alpha.kill()
        explained(beta, "sole", "R5d", "replctl failover demo", r"generation \d+")


def explain_no_origin():
    with Trio() as cluster:
        cluster.create_flags = ()
        cluster.alpha.ctl("init")
        for node in cluster.data_nodes:
            node.ctl("create", "demo")
        for node in cluster.nodes.values():
            node.spawn()
        wait_until("alpha answers", cluster.alpha.answers_or_died)
        explained(cluster.alpha, "no_origin", "R11b", "replctl init demo --from", "origin")


def explain_a_higher_generation_on_disk_than_in_the_register():
    """All registers are restored from an old copy; the disks know better."""
    with Trio() as cluster:
        cluster.start(watched=False)
        copies = cluster.dir / "copies"

        def restart(between):
            for node in cluster.nodes.values():
                node.kill()
            between()
            for node in cluster.nodes.values():
                node.spawn()

        def save():
            for node in cluster.nodes.values():
                shutil.copytree(node.dir / "register", copies / node.name)

        def restore():
            for node in cluster.nodes.values():
                shutil.rmtree(node.dir / "register")
                shutil.copytree(copies / node.name, node.dir / "register")

        restart(save)
        cluster.wait_in_sync()
        for target in (cluster.beta, cluster.alpha):
            cluster.alpha.ctl("switchover", "demo", "--to", target.name)
            cluster.wait_in_sync()
        restart(restore)
        for node in cluster.data_nodes:
            wait_until(f"{node.name} answers", node.answers_or_died)
            explained(node, "register_went_back", "R11c", "replctl invalidate demo",
                      r"generation \d+ as committed, the majority \d+")


def explain_a_drain_that_hangs():
    """R2c: writes of the dead primary are still on their way to the disk of the taker."""
    with ThrottledDisk(64) as disk, Trio(
            disks={("demo", "beta"): disk.path}, timing={"drain_limit_ms": 1000}) as cluster:
        alpha, beta = cluster.create().alpha, cluster.beta
        for node in (alpha, cluster.gamma):
            node.spawn()
        beta.spawn(wrap=disk.wrap)
        cluster.wait_in_sync()
        with alpha.client() as client:
            disk.throttle(MIB // 4)
            for number in range(12):
                client.send_request(WRITE, number * MIB, MIB, b"d" * MIB)
            wait_until("writes wait for beta", lambda: any(
                "beta" in wait["what"] for wait in alpha.replica()["waits"]))
            alpha.kill()
        explained(beta, "disk_hangs", "R2c", "promote the other node", r"within \d+ s")
        disk.throttle(1 << 40)
        cluster.wait_for_primary(beta, 30)


def status_names_the_party_that_is_stopped():
    """Each is stopped in turn; status says for whom one waits, and for how long already."""
    with Trio(timing={"peer_silence_ms": 5000, "ping_interval_ms": 1000}) as cluster:
        alpha = cluster.start(watched=False).alpha
        cluster.watch = Watch(cluster, load=False)
        cluster.wait_for_acks("alpha")

        def waits_for(words, deadline_s=5):
            def given():
                found = [it for it in alpha.replica()["waits"] if words in it["what"]]
                return found and found[0]["since_ms"] > 0 and found[0]
            found = wait_until(f"status names: {words}", given, deadline_s)
            print(f"    {found['what']} ({found['since_ms']} ms)")

        cluster.beta.signal(signal.SIGSTOP)
        waits_for("acknowledgement of beta")
        cluster.beta.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        cluster.wait_for_acks("alpha")

        cluster.gamma.signal(signal.SIGSTOP)
        silent = wait_until("status names gamma", lambda: [
            it for it in alpha.ctl("status")["cluster_state"]["nodes"]
            if it["state"] == "silent" and it["silent_ms"] > 0], 10)
        expect([it["name"] for it in silent] == ["gamma"], f"{silent}")
        expect("gamma is silent for" in alpha.status()["verdict"]["text"], "the verdict is silent")

        cluster.beta.signal(signal.SIGSTOP)
        wait_until("the verdict names the lease", lambda: "the lease of alpha is over" in
                   alpha.status()["verdict"]["text"], 10)
        cluster_state = wait_until("the majority is missed", lambda: (
            lambda it: it if not it["has_majority"] else None)(
                alpha.ctl("status")["cluster_state"]), 10)
        expect(cluster_state["no_majority_ms"] >= 0, "no age")
        print(f"    {alpha.status()['verdict']['text']}")
        for node in (cluster.beta, cluster.gamma):
            node.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        text = cluster.primary().status()["verdict"]["text"]
        expect(re.fullmatch(r"safe\. Any one node may fail now; \w+ would take over in about 1\.3 s",
                            text), text)
        cluster.watch.finish()


def status_names_a_disk_and_a_log_write_that_do_not_end():
    with ThrottledDisk(64) as disk, Trio(disks={("demo", "alpha"): disk.path}) as cluster:
        alpha = cluster.create().alpha
        for node in (cluster.beta, cluster.gamma):
            node.spawn()
        alpha.spawn(wrap=disk.wrap)
        cluster.wait_in_sync()
        with alpha.client() as client:
            disk.throttle(MIB // 4)
            for number in range(9):
                client.send_request(WRITE, number * 4 * MIB, MIB, b"d" * MIB)
            for party in ("the disk", "the activity log"):
                found = wait_until(f"status names {party}", lambda party=party: [
                    it for it in alpha.replica()["waits"]
                    if it["what"] == party and it["since_ms"] > 0], 10)
                print(f"    {party} ({found[0]['since_ms']} ms)")
        disk.throttle(1 << 40)


SCENARIOS = [
    explain_lease_runs_no_majority_paused_and_standby,
    explain_not_a_member_and_stale,
    explain_no_origin,
    explain_a_higher_generation_on_disk_than_in_the_register,
    explain_a_drain_that_hangs,
    status_names_the_party_that_is_stopped,
    status_names_a_disk_and_a_log_write_that_do_not_end,
]
