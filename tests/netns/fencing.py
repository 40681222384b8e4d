"""Scenarios: two nodes without a witness and a fence agent. A lost primary is switched off, that is
confirmed, and only then the other node takes over; every agent that fails or lies promotes nobody.

`fence_dummy` of Debian's fence-agents is the real agent that needs no hardware: a file stands for
the power switch. The others are scripts that keep the same contract, or break it.
"""

import os
import pathlib
import re
import signal
import time

from cluster import BLOCK, Cluster, Skip, expect, wait_until
from kills import Blkload, wait_for_writes
from nbd_client import WRITE
from roles import fill, holds
from watch import PROBE_AT, Watch

DUMMY = pathlib.Path("/usr/sbin/fence_dummy")
SILENCE_MS = 1500

# Keeps the contract; the file `power` beside it is the switch. What stands in `before_off` is
# what makes each scenario.
AGENT = """#!/bin/sh
cd "$(dirname "$0")"
while read -r line; do case "$line" in action=*) action="${{line#action=}}";; esac; done
echo "$action" >> calls
case "$action" in
  metadata) echo '<parameter name="ip" required="1">'; exit 0;;
  monitor) exit 0;;
  off) {before_off}
       echo off > power; exit 0;;
  on) echo on > power; exit 0;;
  status) [ "$(cat power)" = on ] && exit 0; exit 2;;
esac
exit 1
"""


class Fenced(Cluster):
    """Two nodes; each one has a fence agent of its own for the other to call."""

    def __init__(self, agent=None, fencing="auto", before_off=":", fence="", delays=(), **more):
        self.agent, self.fencing, self.fence = agent, fencing, fence
        self.delays = dict(delays)
        self.before_off = before_off
        super().__init__(**more)

    def _config(self, mine):
        lines = [super()._config(mine), ""]
        for name, node in self.nodes.items():
            lines += [f"[node.{name}.fence]", f"fence_after_ms = {SILENCE_MS}", self.fence]
            lines.append(f"delay_ms = {self.delays.get(name, 0)}")
            lines += self._agent(node)
        return f'fencing = "{self.fencing}"\n' + "\n".join(lines)

    def _agent(self, node):
        if self.agent:
            # Without a line end, as the agent writes it itself.
            self.power(node).write_text("on")
            return [f'agent = "{self.agent}"',
                    f'options = {{ type = "file", status_file = "{self.power(node)}" }}']
        place = self.agents(node)
        place.mkdir(exist_ok=True)
        (place / "agent").write_text(AGENT.format(before_off=self.before_off))
        (place / "agent").chmod(0o755)
        self.power(node).write_text("on\n")
        return [f'agent = "{place}/agent"', 'options = { ip = "nowhere" }']

    def agents(self, node):
        """The directory of the agent for a node."""
        return self.dir / f"agent-{node.name}"

    def power(self, node):
        """The file that stands for the power switch of a node."""
        if self.agent:
            return self.dir / f"power-{node.name}"
        return self.agents(node) / "power"

    def agents_at_work(self):
        """The process groups of the agents that run."""
        found = set()
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                    if bytes(self.dir) + b"/agent-" in words:
                        found.add(os.getpgid(int(entry.name)))
                except OSError:
                    continue
        return found

    def calls(self, node):
        """What the agent of a node was asked so far."""
        file = self.agents(node) / "calls"
        return file.read_text().split() if file.exists() else []


def fence(node):
    """Fencing as a node reports it."""
    return node.ctl("status")["fence"]


def wait_for_state(node, word, deadline_s=20):
    """Until fencing is in this state."""
    return wait_until(f"fencing is {word}", lambda: fence(node)["state"] == word and fence(node),
                      deadline_s)


def events(node):
    """The texts of all events."""
    return [line.split('"text":"', 1)[1] for line in node.ctl_raw("events")[1].splitlines()]


def expect_recorded(node, text):
    """In the events, and in the history that outlives a restart."""
    expect(any(text in event for event in events(node)), f"no event says {text!r}")
    history = [entry["why"] for entry in node.ctl("history")]
    expect(text in history, f"the history does not say {text!r}: {history}")


def expect_not_promoted(node):
    """It did not take the office."""
    expect(node.replica()["role"] == "secondary", f"{node.name} took the office")


def a_killed_primary_is_fenced_by_a_real_agent_and_replaced():
    """fence_dummy of Debian. Nothing acknowledged is lost, and the old primary comes back."""
    if not DUMMY.exists():
        raise Skip(f"{DUMMY} is missing: apt install fence-agents")
    with Fenced(agent="fence_dummy") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        code, out, _ = alpha.ctl_raw("check", "--fence", as_json=False)
        expect(code == 0 and "verdict: good" in out, f"check --fence says {code}: {out}")
        verdict = alpha.status()["verdict"]["text"]
        expect("beta switches it off (fence_dummy)" in verdict, f"the verdict is: {verdict}")
        load = Blkload(cluster, alpha, beta)
        child = load.start(10, "--size", PROBE_AT)
        watch = watched(cluster, alpha)
        wait_for_writes(alpha, 200)
        alpha.kill()
        killed = time.monotonic()
        wait_until("beta took over", lambda: beta.replica()["role"] == "primary", 30)
        print(f"    {time.monotonic() - killed:.2f} s from SIGKILL to promoted, "
              f"{SILENCE_MS / 1000} s of it silence")
        expect(cluster.power(alpha).read_text().strip() == "off", "alpha was not switched off")
        wait_for_writes(beta, 100)
        load.finish(child)
        load.verify()
        finish(watch, alpha, beta)
        expect_recorded(beta, "beta fenced alpha (fence_dummy, off confirmed)")
        expect(fence(beta)["state"] == "fenced", f"fencing is {fence(beta)}")
        alpha.start()
        cluster.wait_in_sync()
        cluster.expect_identical()
        wait_for_state(beta, "watching")
        expect(cluster.primary() is beta, "the old primary took the office back")


def watched(cluster, primary, resource="demo"):
    """A watch over who acknowledges writes of a resource, when the primary has acknowledged some."""
    watch = Watch(cluster, load=False, resource=resource)
    wait_for_ack(watch, primary)
    return watch


def wait_for_ack(watch, node):
    """Until a node acknowledges what was sent from now on."""
    since = time.monotonic()
    wait_until(f"{node.name} acknowledges writes", lambda: any(
        ack.node == node.name and ack.sent > since for ack in watch.acks()))


def finish(watch, *order):
    """These had the office in this order, the last one acknowledges writes, and never did two."""
    wait_for_ack(watch, order[-1])
    watch.finish([node.name for node in order])


class Suspended:
    """A write to a primary that must not be acknowledged yet: its connection stays open."""

    def __init__(self, node, block):
        self.node = node
        self.client = node.client()
        self.client.send_request(WRITE, block * BLOCK, BLOCK, b"s" * BLOCK)

    def expect_waits_for(self, peer):
        """Status names the fence, by JSON and in words."""
        def given():
            waits = self.node.replica().get("waits", [])
            return [it for it in waits if it["party"] == "fence" and it["since_ms"] > 0]
        wait = wait_until(f"a write waits for the fence of {peer}", given, 10)[0]
        expect(f"the fence of {peer}" in wait["what"] and wait["limit_ms"] is None, f"{wait}")
        words = self.node.ctl_raw("status", as_json=False)[1]
        expect(re.search(rf"waits for the fence of {peer}: .* \(since [\d.]+ m?s; it goes on when "
                         rf"that is confirmed, or {peer} is back\)", words), words)
        verdict = self.node.status()["verdict"]["text"]
        expect(f"clients wait: {peer}" in verdict, verdict)
        print(f"    {verdict}")

    def expect_done(self):
        """It is acknowledged now."""
        self.client.read_reply()
        self.client.close()


def a_lost_secondary_is_fenced_before_the_primary_goes_on_alone():
    with Fenced(before_off="sleep 2") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(20), b"a")
        beta.kill()
        write = Suspended(alpha, 100)
        write.expect_waits_for("beta")
        expect(alpha.peer()["is_member"], "beta was let go before it was off")
        state = wait_for_state(alpha, "fencing")
        expect(state["explain"]["refusal"]["rule"] == "No witness", f"{state}")
        expect(alpha.peer()["is_member"], "beta was let go before it was off")
        write.expect_done()
        expect(not alpha.peer()["is_member"], "it was acknowledged with beta in the set")
        expect(cluster.calls(beta) == ["off", "status"], f"the agent was asked {cluster.calls(beta)}")
        expect_recorded(alpha, "alpha fenced beta (agent, off confirmed)")
        fill(alpha, range(20, 40), b"a")
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()
        expect(cluster.calls(alpha) == [], "the primary was fenced")


def while_a_fence_is_unconfirmed_writes_wait_and_an_operator_has_a_way_out():
    with Fenced(before_off="echo no way >&2; exit 1", fence="attempts = 1") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(20), b"a")
        beta.kill()
        write = Suspended(alpha, 100)
        refusal = wait_for_state(alpha, "failed")["explain"]["refusal"]
        expect(refusal["code"] == "fence_failed" and "no way" in refusal["why"], f"{refusal}")
        expect("replctl fence beta --is-off" in refusal["next"], f"{refusal}")
        write.expect_waits_for("beta")
        words = alpha.ctl_raw("status", as_json=False)[1]
        expect(re.search(r"tried again in \d+ ms", words), words)
        # Back is one way out.
        beta.start()
        write.expect_done()
        cluster.wait_in_sync()
        # A stopped one is not off, whatever the operator says.
        beta.signal(signal.SIGSTOP)
        write = Suspended(alpha, 101)
        wait_for_state(alpha, "failed")
        refused = alpha.refuses("fence", "beta", "--is-off", code="fence_unconfirmed")
        expect("an operator says that beta is off, but" in refused.why, f"{refused}")
        write.expect_waits_for("beta")
        beta.kill()
        answer = alpha.ctl("fence", "beta", "--is-off")
        expect(answer == {"done": "beta is off by the word of an operator on alpha"}, f"{answer}")
        write.expect_done()
        expect(not alpha.peer()["is_member"], "beta is a member")
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def a_living_peer_is_asked_to_stand_back_and_does_not_take_over_later():
    """An operator disconnects the two: nobody is switched off, the primary goes on alone with the
    promise of the other, which keeps it."""
    with Fenced() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(20), b"a")
        alpha.ctl("disconnect", "demo")
        wait_until("alpha goes on alone", lambda: not alpha.peer()["is_member"], 10)
        expect_recorded(alpha, "beta is alive and stands back: demo goes on alone")
        fill(alpha, range(20, 40), b"b")
        alpha.kill()
        reason = wait_until("beta says why it does not take over", lambda: (
            fence(beta)["explain"] or {}).get("refusal", {}).get("code") == "not_up_to_date"
            and fence(beta)["explain"]["refusal"]["why"])
        expect("promised to stand back" in reason, reason)
        end = time.monotonic() + 2 * SILENCE_MS / 1000
        wait_until("more than the patience is over", lambda: time.monotonic() > end)
        expect(cluster.calls(alpha) == cluster.calls(beta) == [], "somebody was fenced")
        expect_not_promoted(beta)
        alpha.start()
        wait_until("alpha serves again", lambda: alpha.replica()["role"] == "primary")
        cluster.wait_in_sync()
        cluster.expect_identical()
        expect(holds(beta if cluster.primary() is beta else alpha, range(20, 40), b"b"), "lost")


def nobody_is_fenced_because_of_an_operator():
    """`disconnect`, `down` and an orderly stop end sessions; the peer is alive, or released."""
    with Fenced() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta

        def expect_peace(what):
            end = time.monotonic() + 2 * SILENCE_MS / 1000
            wait_until("more than the patience is over", lambda: time.monotonic() > end)
            expect(cluster.calls(alpha) == [], f"alpha was fenced after {what}")
            expect(fence(beta)["state"] == "watching", f"after {what} fencing is {fence(beta)}")

        for node in (alpha, beta):
            node.ctl("disconnect", "demo")
            expect_peace(f"disconnect on {node.name}")
            node.ctl("connect", "demo")
            cluster.wait_in_sync()
        alpha.ctl("down", "demo")
        expect_peace("down")
        alpha.stop()
        expect_peace("an orderly stop")
        expect_not_promoted(beta)


def an_agent_that_takes_its_time_is_waited_for():
    with Fenced(before_off="sleep 30") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        alpha.kill()
        state = wait_for_state(beta, "fencing")
        expect("off runs" in state["activity"], f"it does not say what it does: {state}")
        expect(state["explain"]["refusal"]["rule"] == "No witness", f"no rule: {state}")
        began = time.monotonic()
        wait_until("beta took over", lambda: beta.replica()["role"] == "primary", 60)
        expect(time.monotonic() - began > 25, "it did not wait for its agent")
        expect(cluster.calls(alpha) == ["off", "status"], f"{cluster.calls(alpha)}")
        expect(holds(beta, range(50), b"a"), "data are missing")


def an_agent_that_does_not_end_is_killed_and_promotes_nobody():
    child = "sleep 4; echo off > power"
    with Fenced(before_off=f"({child}) & wait", fence="timeout_ms = 1000\nattempts = 2") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        state = wait_for_state(beta, "failed")
        refusal = state["explain"]["refusal"]
        expect(refusal["code"] == "fence_timed_out", f"the reason is {refusal}")
        expect("--old-primary-is-off" in refusal["next"], f"it does not help: {refusal}")
        wait_until("it is tried again", lambda: cluster.calls(alpha).count("off") == 2, 20)
        wait_until("both attempts failed", lambda: "attempt 2 of 2 failed" in
                   fence(beta)["activity"], 10)
        expect_not_promoted(beta)
        text = beta.ctl_raw("explain", as_json=False)[1]
        expect("rule: No witness" in text and "beta does not take the office" in text, text)
        # The children of a killed agent must not switch anything later.
        end = time.monotonic() + 5
        wait_until("its child would be done", lambda: time.monotonic() > end)
        expect(cluster.power(alpha).read_text().strip() == "on", "a child of the agent lived on")
        # The way of an operator is still there.
        beta.promote("--old-primary-is-off")
        wait_for_state(beta, "watching")


def an_agent_that_fails_is_reported_with_its_words():
    words = "echo Unable to connect to the fence device >&2; exit 1"
    with Fenced(before_off=words) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        refusal = wait_for_state(beta, "failed")["explain"]["refusal"]
        expect(refusal["code"] == "fence_failed", f"the reason is {refusal}")
        expect("off ended with 1: Unable to connect" in refusal["why"], f"{refusal}")
        text = beta.ctl_raw("status", as_json=False)[1]
        expect("Unable to connect" in text and "tried again in" in text, text)
        expect_not_promoted(beta)
        # The old primary comes back: nothing was lost and nobody fences it any more.
        alpha.start()
        wait_for_state(beta, "watching")
        cluster.wait_in_sync()
        expect(cluster.primary() is alpha, "alpha is not primary any more")


def an_agent_that_lies_about_a_stopped_primary_is_refused():
    """SIGSTOP: silent, but the kernel of that machine still accepts connections: it is not off."""
    with Fenced(fence="attempts = 1") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        alpha.signal(signal.SIGSTOP)
        state = wait_for_state(beta, "failed", 30)
        refusal = state["explain"]["refusal"]
        expect(refusal["code"] == "fence_unconfirmed", f"the reason is {refusal}")
        expect(refusal["why"].startswith("fence unconfirmed: agent says that alpha is off, but ")
               and "accepts connections" in refusal["why"], f"{refusal}")
        expect(refusal["rule"] == "No witness" and "replctl fence alpha --is-off" in refusal["next"],
               f"{refusal}")
        first = state["explain"]["since_ms"]
        wait_until("explain counts for how long", lambda: fence(beta)["explain"]["since_ms"]
                   >= first + 500, 10)
        text = beta.ctl_raw("explain", as_json=False)[1]
        expect("beta does not take the office of alpha (for " in text
               and refusal["why"] in text and refusal["next"] in text, text)
        expect(cluster.calls(alpha) == ["off", "status"], f"{cluster.calls(alpha)}")
        expect_not_promoted(beta)
        alpha.signal(signal.SIGCONT)
        wait_for_state(beta, "watching")
        cluster.wait_in_sync()
        expect(cluster.primary() is alpha and holds(alpha, range(50), b"a"), "alpha lost something")
        expect(fence(beta)["failure"]["refusal"]["code"] == "fence_unconfirmed",
               "the lie is forgotten")


def an_agent_that_says_on_after_off_is_refused():
    with Fenced(before_off="exit 0", fence="timeout_ms = 2000\nattempts = 1") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        refusal = wait_for_state(beta, "failed")["explain"]["refusal"]
        expect(refusal["code"] == "fence_unconfirmed", f"the reason is {refusal}")
        expect(cluster.calls(alpha).count("status") > 1, "it was asked once only")
        expect_not_promoted(beta)


def manual_fencing_waits_for_the_operator():
    with Fenced(fencing="manual", fence='action = "reboot"') as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        # Whoever has just started has not listened yet.
        wait_until("beta has listened", lambda: beta.ctl("status")["up_ms"] > 2 * SILENCE_MS)
        beta.refuses("fence", "alpha", code="peer_is_heard")
        beta.refuses("fence", "gamma", code="unknown_peer")
        alpha.kill()
        state = wait_for_state(beta, "suspected")
        refusal = state["explain"]["refusal"]
        expect(refusal["code"] == "fencing_is_manual" and "replctl fence alpha" in refusal["next"],
               f"it does not help: {refusal}")
        end = time.monotonic() + 2 * SILENCE_MS / 1000
        wait_until("more than the patience is over", lambda: time.monotonic() > end)
        expect(cluster.calls(alpha) == [], "it was fenced without an operator")
        answer = beta.ctl("fence", "alpha")
        expect(answer == {"done": "beta fenced alpha (agent, off confirmed)"}, f"{answer}")
        expect(beta.replica()["role"] == "primary", "beta did not take over")
        expect(holds(beta, range(50), b"a"), "data are missing")
        wait_until("alpha is on again", lambda: cluster.calls(alpha) == ["off", "status", "on"])


def after_a_start_nobody_is_fenced_before_he_was_heard():
    """Two nodes that boot together must not switch each other off; an operator can. And who was
    restarted takes nothing over: the other may have gone on alone meanwhile."""
    with Fenced() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        alpha.kill()
        beta.kill()
        beta.start()
        reason = wait_until("it says why it waits", lambda: (fence(beta)["explain"] or {}).get(
            "refusal", {}).get("code") == "not_up_to_date" and fence(beta)["explain"])
        expect("was restarted" in reason["refusal"]["why"], f"{reason}")
        end = time.monotonic() + 2 * SILENCE_MS / 1000
        wait_until("more than the patience is over", lambda: time.monotonic() > end)
        expect(cluster.calls(alpha) == [], "it was fenced")
        beta.ctl("fence", "alpha")
        expect_not_promoted(beta)
        beta.promote("--old-primary-is-off")
        expect(holds(beta, range(50), b"a"), "data are missing")


def a_replica_that_lacks_writes_fences_nobody():
    with Fenced() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        beta.stop()
        wait_until("beta left the set", lambda: not alpha.peer()["is_member"])
        fill(alpha, range(50), b"a")
        alpha.ctl("disconnect", "demo")
        beta.start()
        alpha.kill()
        wait_until("it says why", lambda: (fence(beta)["explain"] or {}).get(
            "refusal", {}).get("code") == "not_up_to_date")
        end = time.monotonic() + 2 * SILENCE_MS / 1000
        wait_until("more than the patience is over", lambda: time.monotonic() > end)
        expect(cluster.calls(alpha) == [], "alpha was fenced for nothing")


def cut_off_with_real_switches(cluster):
    """Both directions are cut; the agents have another way, as real ones have: they know the
    processes."""
    for node in cluster.data_nodes:
        (cluster.agents(node) / "pid").write_text(str(node.process.pid))
    for name in ("alpha", "beta"):
        cluster.cut_from(name)


# Kills what the file says; once.
SWITCH = "kill -9 $(cat pid) || exit 1; rm pid"


def of_two_that_are_cut_off_the_primary_survives_and_nothing_is_lost():
    if os.geteuid() != 0:
        raise Skip("network namespaces need root")
    with Fenced(before_off=SWITCH, namespaces=True) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        watch = watched(cluster, alpha)
        cut_off_with_real_switches(cluster)
        write = Suspended(alpha, 100)
        wait_until("beta is off", lambda: not beta.is_running, 20)
        write.expect_done()
        expect(alpha.is_running and cluster.calls(alpha) == [], "the primary was fenced too")
        fill(alpha, range(100, 120), b"b")
        cluster.heal()
        beta.start()
        cluster.wait_in_sync()
        finish(watch, alpha)
        cluster.expect_identical()
        expect(holds(alpha, range(50), b"a") and holds(alpha, range(100, 120), b"b"), "data missing")


def a_primary_whose_agent_is_slow_acknowledges_nothing_and_is_replaced_without_loss():
    """The secondary's agent is first: the primary, whose own is still at work, is switched off. All
    that it acknowledged is on the other."""
    if os.geteuid() != 0:
        raise Skip("network namespaces need root")
    slow = f'case "$PWD" in *agent-beta) sleep 3600;; esac; {SWITCH}'
    with Fenced(before_off=slow, namespaces=True) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        watch = watched(cluster, alpha)
        cut_off_with_real_switches(cluster)
        write = Suspended(alpha, 100)
        write.expect_waits_for("beta")
        wait_until("beta took over", lambda: beta.replica()["role"] == "primary", 30)
        expect(not alpha.is_running, "alpha lives")
        expect(holds(beta, range(50), b"a"), "data are missing")
        fill(beta, range(200, 230), b"c")
        entry = next(it for it in beta.ctl("history") if it["what"] == "takeover")
        print(f"    {entry['phases']}, paused {entry['paused_ms']} ms")
        expect([name for name, _ in entry["phases"]]
               == ["detected", "fenced", "drained, committed, device open"], f"{entry}")
        expect(entry["paused_ms"] >= SILENCE_MS, f"{entry}")
        cluster.heal()
        alpha.start()
        # It acknowledged nothing alone: it is no stranger to the new lineage.
        cluster.wait_in_sync()
        finish(watch, alpha, beta)
        cluster.expect_identical()
        expect(cluster.primary() is beta and holds(beta, range(200, 230), b"c"), "data are missing")
        # The machine of alpha is off, and its agent with it.
        for pid in cluster.agents_at_work():
            os.killpg(pid, signal.SIGKILL)


def when_each_switches_the_other_off_nothing_is_lost():
    """Both agents are at work at the same time, so that none survives."""
    if os.geteuid() != 0:
        raise Skip("network namespaces need root")
    both = f'sleep 3; {SWITCH}'
    with Fenced(before_off=both, namespaces=True, delays={"beta": 0}) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        watch = watched(cluster, alpha)
        cut_off_with_real_switches(cluster)
        write = Suspended(alpha, 100)
        wait_until("both are off", lambda: not (alpha.is_running or beta.is_running), 30)
        write.client.close()
        cluster.heal()
        alpha.start()
        beta.start()
        wait_until("somebody serves", lambda: any(
            node.replica()["role"] == "primary" for node in cluster.data_nodes), 20)
        cluster.wait_in_sync()
        finish(watch, alpha, cluster.primary())
        cluster.expect_identical()
        expect(holds(cluster.primary(), range(50), b"a"), "data are missing")


def a_duel_has_the_winner_that_the_configuration_names():
    """Each is primary of something, all is cut, each wants to fence the other: alpha is fenced
    later, so it wins, and takes over what beta served, which has acknowledged nothing alone."""
    if os.geteuid() != 0:
        raise Skip("network namespaces need root")
    with Fenced(before_off=SWITCH, namespaces=True, resources=("one", "two"),
                delays={"alpha": 4000}) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.ctl("demote", "two")
        beta.promote(resource="two")
        for resource, node in (("one", alpha), ("two", beta)):
            cluster.wait_in_sync(resource)
            fill(node, range(50), b"a", resource)
        watches = [watched(cluster, alpha, "one"), watched(cluster, beta, "two")]
        cut_off_with_real_switches(cluster)
        wait_until("alpha took over", lambda: alpha.replica("two")["role"] == "primary", 30)
        expect(not beta.is_running and alpha.is_running, "the wrong one was switched off")
        expect(cluster.calls(alpha) == [], "alpha was fenced too")
        expect(alpha.replica("one")["role"] == "primary", "alpha gave its own office up")
        fill(alpha, range(50, 60), b"a", "one")
        expect(holds(alpha, range(50), b"a", "two"), "data are missing")
        expect_recorded(alpha, "alpha fenced beta (agent, off confirmed)")
        cluster.heal()
        beta.start()
        for resource, watch, order in zip(("one", "two"), watches, ([alpha], [beta, alpha])):
            cluster.wait_in_sync(resource)
            finish(watch, *order)
            cluster.expect_identical(resource)


def a_missing_agent_is_seen_before_it_is_needed():
    with Fenced(agent="fence_of_nowhere") as cluster:
        alpha = cluster.start().alpha
        words = "/usr/sbin/fence_of_nowhere cannot be run"
        warnings = alpha.ctl("status")["warnings"]
        expect(any(f"beta cannot be fenced: {words}" in it for it in warnings), f"{warnings}")
        for flags in ([], ["--fence"]):
            code, out, _ = alpha.ctl_raw("check", *flags, as_json=False)
            expect(code == 4 and f"fence of beta: {words}" in out, f"check {flags} says {out}")


def without_an_agent_the_commands_say_what_is_missing():
    with Cluster() as cluster:
        alpha = cluster.start().alpha
        refusal = alpha.refuses("fence", "beta", code="no_fence_agent")
        expect("[node.beta.fence]" in refusal.why, f"{refusal}")
        expect(alpha.ctl("status")["fence"] is None, "fencing without an agent")


SCENARIOS = [
    a_killed_primary_is_fenced_by_a_real_agent_and_replaced,
    a_lost_secondary_is_fenced_before_the_primary_goes_on_alone,
    while_a_fence_is_unconfirmed_writes_wait_and_an_operator_has_a_way_out,
    a_living_peer_is_asked_to_stand_back_and_does_not_take_over_later,
    nobody_is_fenced_because_of_an_operator,
    an_agent_that_does_not_end_is_killed_and_promotes_nobody,
    an_agent_that_fails_is_reported_with_its_words,
    an_agent_that_lies_about_a_stopped_primary_is_refused,
    an_agent_that_says_on_after_off_is_refused,
    manual_fencing_waits_for_the_operator,
    after_a_start_nobody_is_fenced_before_he_was_heard,
    a_replica_that_lacks_writes_fences_nobody,
    of_two_that_are_cut_off_the_primary_survives_and_nothing_is_lost,
    a_primary_whose_agent_is_slow_acknowledges_nothing_and_is_replaced_without_loss,
    when_each_switches_the_other_off_nothing_is_lost,
    a_duel_has_the_winner_that_the_configuration_names,
    a_missing_agent_is_seen_before_it_is_needed,
    without_an_agent_the_commands_say_what_is_missing,
]
LONG = [an_agent_that_takes_its_time_is_waited_for]
