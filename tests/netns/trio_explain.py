"""Scenarios: whoever asks why a node is not primary gets the rule, the values compared, since when,
and the command that would change it; and status names the party that is stopped.
"""

import os
import re
import shutil
import signal
from contextlib import ExitStack

from cluster import Skip, expect, run, wait_until
from nbd_client import WRITE
from throttled_disk import ThrottledDisk
from trio import Trio, stay
from watch import Watch

MIB = 1 << 20


# An age has grown when it is so much more.
GROWN_MS = 300


def explained(node, code, rule, next_words, values=r"\d", no_command=""):
    """`explain` of a node gives this reason, with all that belongs to it: what it compared, a step
    that names a command, unless `no_command` says why there is none, and an age that grows."""
    def given(older_than_ms=-1):
        found = office(node)["explain"]
        if not found or found["refusal"]["code"] != code or found["since_ms"] < older_than_ms:
            return None
        # A reason may come in other words while nodes and disks are still being seen.
        return found if re.search(values, found["refusal"]["why"]) else None
    first = wait_until(f"{node.name} explains {code}", given, 20)
    refusal = first["refusal"]
    expect(refusal["rule"] == rule, f"{code} names the rule {refusal['rule']!r}, not {rule}")
    expect_step(refusal["next"], next_words, no_command)
    words = node.ctl_raw("explain", "demo", as_json=False)[1]
    expect(rule in words and refusal["next"] in words, f"replctl explain shows:\n{words}")
    wait_until(f"{node.name} says that {code} lasts for longer than {first['since_ms']} ms",
               lambda: given(first["since_ms"] + GROWN_MS), 10)
    print(f"    {node.name}, for {first['since_ms']} ms: {rule}: {refusal['why']}; "
          f"{refusal['next']}")
    return first["since_ms"]


def expect_step(step, words, no_command=""):
    """The next step has these words and names a command, or there is a reason why not."""
    expect(words in step, f"the next step is {step!r}")
    expect(("replctl " in step) != bool(no_command),
           f"the next step is {step!r}, a command is not needed since {no_command!r}")


def office(node):
    """The office of demo, or what there is of it, as a node tells."""
    offices = node.ctl("status")["cluster_state"]["resources"]
    return next((it for it in offices if it["name"] == "demo"), {"explain": None, "replicas": []})


def hindered(asked, name, rule, next_words, values="", no_command=""):
    """Any node says why the replica of another could not be promoted, with all that belongs to it,
    and its age grows."""
    def given(older_than_ms=-1):
        found = next((it for it in office(asked)["replicas"] if it["node"] == name), {})
        why = found.get("hindrance")
        return (why and why["rule"] == rule and re.search(values, why["why"])
                and found["hindered_ms"] >= older_than_ms and found)
    found = wait_until(f"{asked.name} says that {name} is hindered by {rule}", given, 20)
    why = found["hindrance"]
    expect_step(why["next"], next_words, no_command)
    words = asked.ctl_raw("explain", "demo", as_json=False)[1]
    expect(f"{name} could not be promoted (for " in words and rule in words
           and why["next"] in words, f"replctl explain shows:\n{words}")
    wait_until("its age grows", lambda: given(found["hindered_ms"] + GROWN_MS), 10)
    print(f"    {asked.name} about {name}: {rule}: {why['why']}; {why['next']}")


def explain_lease_runs_no_majority_paused_and_standby():
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        explained(beta, "lease_runs", "L2", "replctl switchover demo --to beta",
                  r"alpha runs here for another \d+ ms")
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


def status_of_a_dead_primary_says_that_its_lease_is_over_since_when_and_what_is_awaited():
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        beta.ctl("pause")
        runs = office(beta)
        expect(runs["lease_over_ms"] is None and runs["lease_left_ms"] > 0, f"{runs}")
        alpha.kill()
        for node in (beta, cluster.gamma):
            first = wait_until(f"{node.name} says that the lease is over",
                               lambda it=node: office(it)["lease_over_ms"], 10)
            wait_until(f"{node.name} says what is awaited", lambda it=node:
                       "replctl resume" in office(it)["awaits"], 10)
            wait_until("its age grows", lambda it=node, than=first:
                       office(it)["lease_over_ms"] >= than + 300, 10)
            shown = node.ctl_raw("status", as_json=False)[1]
            line = re.search(r"primary alpha since generation \d+, lease over for .*", shown)
            expect(line and "replctl resume" in line.group(), f"{node.name} shows:\n{shown}")
            print(f"    {node.name}: {line.group()}")
        alpha.start()
        wait_until("the lease runs again", lambda: office(beta)["lease_over_ms"] is None, 20)
        beta.ctl("resume")
        cluster.wait_in_sync()


def explain_not_a_member_and_stale():
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        cluster.cut_link(alpha, beta)
        with alpha.client() as client:
            client.write(0, b"x" * 4096, fua=True)
        wait_until("beta left the set", lambda: office(alpha)["in_sync"] == ["alpha"], 10)
        refused = alpha.refuses("switchover", "demo", "--to", "beta", code="not_a_member")
        expect(refused.rule == "R11a" and re.search(r"generation \d+", refused.why), f"{refused}")
        hindered(cluster.gamma, "beta", "R11a", "bring alpha back", r"generation \d+")
        alpha.kill()
        explained(beta, "sole", "R5d", "replctl failover demo", r"generation \d+")


def explain_no_origin():
    with Trio() as cluster:
        alpha, beta = cluster.alpha, cluster.beta
        alpha.ctl("init")
        alpha.ctl("create", "demo")
        for node in cluster.nodes.values():
            node.spawn()
        wait_until("alpha answers", alpha.answers_or_died)
        explained(alpha, "no_origin", "R11b", "on beta: replctl create demo", "the disk of beta")
        follow(beta, office(alpha)["explain"]["refusal"]["next"])
        explained(alpha, "no_origin", "R11b", "replctl init demo --from", "origin")
        follow(alpha, office(alpha)["explain"]["refusal"]["next"].replace("NODE", "alpha"))
        cluster.wait_for_primary(alpha)


def follow(node, step):
    """Runs on a node, whose daemon runs, every command that a next step names."""
    commands = re.findall(r"replctl ([^;]+)", step)
    expect(commands, f"the next step names no command: {step!r}")
    for command in commands:
        node.ctl(*command.split())


def status_and_explain_say_that_a_node_cannot_make_its_votes_durable():
    """Its register cannot be written: said with the cause, its age, and what is to be done; over when
    the disk works again."""
    with Trio() as cluster:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        files = sorted(beta.dir.glob("**/register.[01]"))
        expect(len(files) == 2, f"{files}")
        if run("chattr", "+i", *files, check=False).returncode != 0:
            raise Skip("no file can be made immutable here")
        try:
            def trouble():
                nodes = beta.ctl("status")["cluster_state"]["nodes"]
                return next(it for it in nodes if it["name"] == "beta")["trouble"]
            # Something that is to be promised durably.
            alpha.ctl("pause")
            found = wait_until("beta says so", trouble, 20)
            expect(found["code"] == "record_not_durable" and found["rule"] == "L5", f"{found}")
            expect("Operation not permitted" in found["why"] and "state_dir" in found["next"], f"{found}")
            for command in ("status", "explain"):
                words = beta.ctl_raw(command, as_json=False)[1]
                expect("beta     data node  here · has no vote" in words
                       and "this node does not vote until that works" in words, f"{command}:\n{words}")
            age = re.compile(r"for (\d+) ms: this node")
            first = int(age.search(found["why"])[1])
            wait_until("its age grows", lambda: int(age.search(trouble()["why"])[1]) > first + 1000, 10)
            print(f"    {found['why']}; {found['next']}")
        finally:
            run("chattr", "-i", *files)
        wait_until("it votes again", lambda: not trouble(), 10)


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


IN_USE = "mounts and processes are the operator's own: he ends them, then it goes on by itself"


def explain_an_old_instance_that_is_still_open():
    """R15: the device of an earlier time in office, mounted and held open, keeps its node from
    taking the office again, until its users are gone. Without network namespaces: a daemon that is
    started in one gets a copy of the mount in a mount namespace of its own, which keeps it busy."""
    if os.geteuid() != 0:
        raise Skip("a device needs root")
    with Trio(namespaces=False, attach="fuse") as cluster, ExitStack() as at_end:
        alpha, beta = cluster.start(watched=False).alpha, cluster.beta
        device = alpha.device_dir / "demo"
        wait_until("alpha has its device", device.exists)
        run("mkfs.ext4", "-q", device)
        mount = cluster.dir / "mount"
        mount.mkdir()
        run("mount", device, mount)
        at_end.callback(run, "umount", "-l", mount, check=False)
        (mount / "file").write_text("something")
        run("sync", "-f", mount)
        reader = open(device, "rb", buffering=0)
        at_end.callback(reader.close)
        alpha.kill()
        cluster.wait_for_primary(beta)
        alpha.start()
        cluster.wait_in_sync()
        words = rf"is mounted on {mount}.*open in process {os.getpid()} \(python3\)"
        # What a node that has just started says of itself is a fifth of a second late.
        for node in (cluster.gamma, beta):
            hindered(node, "alpha", "R15", "unmount it or end these processes", no_command=IN_USE)
        refused = beta.refuses("switchover", "demo", "--to", "alpha", code="old_device_in_use")
        expect(refused.rule == "R15" and re.search(words, refused.why), f"{refused}")
        expect(alpha.status()["device"]["state"] == "leftover", f"{alpha.status()['device']}")
        beta.kill()
        explained(alpha, "old_device_in_use", "R15", "unmount it", words, IN_USE)
        expect(alpha.replica()["role"] == "secondary", "alpha took the office")
        # A restart changes nothing: the old instance is found again.
        alpha.kill()
        alpha.start()
        explained(alpha, "old_device_in_use", "R15", "unmount it", words, IN_USE)
        run("umount", mount)
        explained(alpha, "old_device_in_use", "R15", "unmount it", "open in process", IN_USE)
        reader.close()
        cluster.wait_for_primary(alpha)
        wait_until("alpha has its device", lambda: alpha.status()["device"]["state"] == "attached")
        run("mount", device, mount)
        expect((mount / "file").read_text() == "something", "the file is not there any more")
        run("umount", mount)
        # Whoever comes back removes what it left.
        beta.start()
        cluster.wait_in_sync()
        for node in (beta, alpha):
            node.stop()


# Its mount is the machine's: a daemon of another scenario that starts in a namespace copies it.
explain_an_old_instance_that_is_still_open.is_alone = True


def explain_a_drain_that_hangs():
    """R2c: writes of the dead primary are still on their way to the disk of the taker."""
    with ThrottledDisk(64) as disk, Trio(
            disks={("demo", "beta"): disk.path}, timing={"drain_limit_ms": 1000}) as cluster:
        cluster.start(watched=False, wraps={"beta": disk.wrap})
        alpha, beta = cluster.alpha, cluster.beta
        with alpha.client() as client:
            disk.throttle(MIB // 4)
            for number in range(12):
                client.send_request(WRITE, number * MIB, MIB, b"d" * MIB)
            wait_until("writes wait for beta", lambda: any(
                "beta" in wait["what"] for wait in alpha.replica()["waits"]))
            alpha.kill()
        explained(beta, "disk_hangs", "R2c", "replctl switchover", r"[1-9]\d* earlier writes within \d+ s")
        wait_until("its age grows from attempt to attempt", lambda: (
            office(beta)["explain"] or {"since_ms": 0})["since_ms"] > 4000, 20)
        disk.heal()
        cluster.wait_for_primary(beta, 30)


def waits_of(node):
    """What the replica of a node waits for; nothing while it does not answer."""
    return node.replica().get("waits", [])


def told_wait(node, party, words, limit_ms, then, deadline_s=10):
    """Status names the party that is waited for, since when, until when, and what happens then: as
    JSON and in words."""
    def given():
        seen.extend(waits_of(node))
        found = [it for it in seen if it["party"] == party and words in it["what"]
                 and it["since_ms"] > 0
                 and (it["limit_ms"] is None if low is None else
                      it["limit_ms"] is not None and low <= it["limit_ms"] <= high)]
        return found and found[-1]
    (low, high), seen = limit_ms or (None, None), []
    wait = wait_until(f"status names {party}: {words}, until {low}..{high} ms", given, deadline_s)
    expect(then in wait["then"], f"what happens then: {wait}")
    given_up = "" if low is None else r", given up after [\d.]+ m?s, then"
    line = re.compile(rf"waits for {re.escape(wait['what'])} \(since [\d.]+ m?s{given_up}.*{then}")

    def worded():
        out = node.ctl_raw("status", "demo", as_json=False)[1]
        return line.search(out)
    found = wait_until(f"replctl status says {line.pattern}", worded, deadline_s)
    print(f"    {found.group()})")


def status_names_the_party_that_is_stopped():
    """Each is stopped in turn; status says for whom one waits, for how long already, when that is
    given up, and what happens then."""
    with Trio(timing={"peer_silence_ms": 5000, "ping_interval_ms": 1000}) as cluster:
        alpha = cluster.start(watched=False).alpha
        cluster.watch = Watch(cluster, load=False)
        cluster.wait_for_acks("alpha")

        cluster.beta.signal(signal.SIGSTOP)
        told_wait(alpha, "peer", "acknowledgement of beta", (3000, 6000),
                  "beta is taken out of the in-sync set", 5)
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
        told_wait(alpha, "lease", "the lease", (9000, 11000), "the office is given up")
        wait_until("the verdict names the lease", lambda: "the lease of alpha is over" in
                   alpha.status()["verdict"]["text"], 10)
        cluster_state = wait_until("the majority is missed", lambda: (
            lambda it: it if not it["has_majority"] else None)(
                alpha.ctl("status")["cluster_state"]), 10)
        expect(cluster_state["no_majority_ms"] >= 0, "no age")
        print(f"    {alpha.status()['verdict']['text']}")
        told_wait(alpha, "majority", "the majority's decision on", None,
                  "it goes on when a majority answers")
        for node in (cluster.beta, cluster.gamma):
            node.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        # Who stood still says with its next heartbeat that it hears the others again.
        words = r"safe\. Any one node may fail now; \w+ would take over in about 1\.3 s"
        wait_until("the verdict is safe again", lambda: re.fullmatch(
            words, cluster.primary().status()["verdict"]["text"]), 10)
        cluster.watch.finish()


def status_names_a_disk_a_log_write_and_the_writes_of_a_dead_process():
    with ThrottledDisk(64) as disk, Trio(disks={("demo", "alpha"): disk.path}) as cluster:
        alpha = cluster.start(watched=False, wraps={"alpha": disk.wrap}).alpha
        with alpha.client() as client:
            disk.throttle(MIB // 4)
            for number in range(9):
                client.send_request(WRITE, number * 4 * MIB, MIB, b"d" * MIB)
            told_wait(alpha, "disk", "the disk", (8000, 20000), "another member takes over")
            told_wait(alpha, "activity_log", "the activity log", (8000, 20000),
                      "another member takes over")
            pid = alpha.process.pid
            alpha.kill()
        alpha.spawn(wrap=disk.wrap)
        wait = wait_until("the start says what it waits for", lambda: alpha.answers_or_died() and (
            alpha.status()["start_waits"] or {}).get("since_ms", 0) > 0
            and alpha.status()["start_waits"], 20)
        print(f"    {wait}")
        expect(wait["party"] == "lock" and wait["limit_ms"] is None, f"{wait}")
        expect(f"locked by process {pid}, which is dead: its last writes" in wait["what"], f"{wait}")
        words = alpha.ctl_raw("status", as_json=False)[1]
        expect(re.search(r"demo · starting for [\d.]+ m?s: waiting for", words), words)
        expect("it goes on by itself when that lets the disk go" in words, words)
        disk.heal()
        cluster.wait_in_sync()


def status_names_a_resync_that_does_not_go_on():
    with ThrottledDisk(64) as disk, Trio(disks={("demo", "beta"): disk.path}) as cluster:
        cluster.start(watched=False, wraps={"beta": disk.wrap})
        alpha, beta = cluster.alpha, cluster.beta
        beta.stop()
        with alpha.client() as client:
            for number in range(16):
                client.write(number * 2 * MIB, b"r" * MIB)
        disk.throttle(MIB // 2)
        beta.spawn(wrap=disk.wrap)
        told_wait(alpha, "resync", "the resync of beta", (5000, 12000), "beta counts as lost", 20)
        text = alpha.status()["verdict"]["text"]
        expect(re.search(r"served by alpha alone: beta is being brought up to date, \d+ % done", text),
               text)
        disk.heal()
        cluster.wait_in_sync()


def phases_of(node, what):
    """The newest such change of the office in the history of a node, with its parts."""
    def given():
        found = [it for it in node.ctl("history") if it["what"] == what and it["phases"]]
        return found and found[-1]
    entry = wait_until(f"{node.name} has timed a {what}", given, 10)
    words = node.ctl_raw("history", "demo", as_json=False)[1]
    parts = " · ".join(f"{name} {ms} ms" for name, ms in entry["phases"])
    expect(parts in words, f"replctl history does not say {parts}:\n{words}")
    print(f"    {node.name}: {what}: {parts}; paused {entry['paused_ms']} ms")
    return dict(entry["phases"]), entry["paused_ms"]


def history_tells_how_long_each_part_of_a_change_of_office_took():
    device = {"attach": "fuse"} if os.path.exists("/dev/fuse") else {}
    with Trio(**device) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        parts = ["durable, lease held", *(["device open"] if device else [])]
        alpha.kill()
        cluster.wait_for_acks("beta")
        lost = cluster.watch.acks()
        took, paused_ms = phases_of(beta, "takeover")
        expect(list(took) == ["detected", "lease waited", "drained", "committed", *parts], f"{took}")
        before = sum(took[it] for it in list(took)[:5])
        expect(800 <= took["detected"] + took["lease waited"] <= 3000, f"{took}")
        expect(abs(before - paused_ms) <= 20, f"the parts make {before} ms, not {paused_ms}")
        # A client's own stop watch, which began at its last answer.
        last = max(ack[2] for ack in lost if ack[0] == "alpha")
        first = min(ack[2] for ack in lost if ack[0] == "beta")
        expect(paused_ms <= (first - last) * 1000 + 1200, f"{paused_ms} ms, {first - last} s")
        alpha.start()
        cluster.wait_in_sync()
        beta.ctl("switchover", "demo", "--to", "alpha")
        cluster.wait_for_acks("alpha")
        took, paused_ms = phases_of(alpha, "takeover")
        expect(list(took) == ["handed over", "drained", "committed", *parts], f"{took}")
        expect(0 < paused_ms < 5000, f"paused for {paused_ms} ms")
        took, _ = phases_of(beta, "release")
        expect(list(took) == ["device closed", "drained and flushed", "released"], f"{took}")
        # It is kept over a restart.
        beta.stop()
        beta.start()
        phases_of(beta, "release")
        cluster.finish()


SCENARIOS = [
    explain_lease_runs_no_majority_paused_and_standby,
    status_of_a_dead_primary_says_that_its_lease_is_over_since_when_and_what_is_awaited,
    explain_not_a_member_and_stale,
    explain_no_origin,
    status_and_explain_say_that_a_node_cannot_make_its_votes_durable,
    explain_a_higher_generation_on_disk_than_in_the_register,
    explain_an_old_instance_that_is_still_open,
    explain_a_drain_that_hangs,
    status_names_the_party_that_is_stopped,
    status_names_a_disk_a_log_write_and_the_writes_of_a_dead_process,
    status_names_a_resync_that_does_not_go_on,
    history_tells_how_long_each_part_of_a_change_of_office_took,
]
