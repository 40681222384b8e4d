"""Scenarios: services on top of a resource. Each service writes into a log outside all nodes as long as
it runs, so that order and exclusion are judged from outside, not by what daemons say.
"""

import json
import os
import pathlib
import signal
import sys
import time

from cluster import Cluster, Skip, expect, wait_until
from trio import Trio, stay

HERE = pathlib.Path(__file__).resolve().parent
TAKEN_WITHIN_S = 15
# A service that is frozen or killed may be caught between a look at the clock and its line.
SLACK_S = 0.005


class Beats:
    """The log of all services: who ran where, from when to when."""

    def __init__(self, path):
        self.path = path
        self.path.touch()

    def lines(self):
        """(word, node, name, time), in the order of time."""
        text = self.path.read_text()
        words = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return sorted(((w, node, name, float(at)) for w, node, name, at in words),
                      key=lambda line: line[3])

    def last(self, node, name):
        """When a service wrote last on a node; 0: never."""
        times = [at for _, where, which, at in self.lines() if (where, which) == (node, name)]
        return max(times, default=0.0)

    def first(self, node, name, since):
        """When a service wrote first on a node since then; none: not yet."""
        times = [at for _, where, which, at in self.lines()
                 if (where, which) == (node, name) and at >= since]
        return min(times, default=None)

    def runs(self, node, name):
        """Whether it wrote just now."""
        return time.monotonic() - self.last(node, name) < 0.2

    def expect_never_two(self, names):
        """No service ever ran on two nodes at a time: the runs of different nodes follow each
        other."""
        for name in names:
            spans, of = [], None
            for _, node, which, at in self.lines():
                if which != name:
                    continue
                if node != of:
                    spans.append([node, at, at])
                    of = node
                spans[-1][2] = at
            # The lines are sorted by time: two that run at once take turns again and again.
            turns = [node for node, *_ in spans]
            short = [span for span in spans if span[2] - span[1] < SLACK_S]
            expect(len(turns) - len(short) <= self.moves + 1,
                   f"{name} ran on two nodes at a time: {len(turns)} turns, {self.moves} moves")

    moves = 0


class Served(Trio):
    """A trio whose resource has services: commands that beat."""

    def __init__(self, services=None, **more):
        self.beats = None
        self.services = services
        self.names = []
        super().__init__(**more)

    def write_config(self, **overrides):
        if self.beats is None:
            self.beats = Beats(self.dir / "beats")
        entries = self.services(self) if self.services else [self.beat("one"), self.beat("two")]
        self.options = "services = [\n" + ",\n".join("  " + entry for entry in entries) + ",\n]"
        super().write_config(**overrides)

    def beat(self, name, more=""):
        """An entry of the list: a service that beats."""
        self.names.append(name)
        beater = (f"{sys.executable} {HERE / 'beater.py'} {self.beats.path} $REPLICATOR_NODE {name}")
        return f'{{ command = "{name}", start = "{beater} &"{more} }}'

    def start(self, watched=False):
        super().start(watched)
        self.wait_for_services("alpha")
        return self

    def service(self, node, name):
        """What a node says of one service."""
        services = self.nodes[node].status()["services"]["services"]
        return next(it for it in services if it["name"] == name)

    def wait_for_services(self, node, deadline_s=20.0):
        """Waits until all services beat on a node."""
        names = list(dict.fromkeys(self.names))
        wait_until(f"services run on {node}",
                   lambda: all(self.beats.runs(node, name) for name in names), deadline_s)

    def pids(self, node, name):
        """The processes of a service on a node."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.beats.path) in words and words[-3:-1] == [node, name]:
                found.append(int(entry.name))
        return found

    def kill_machine(self, node):
        """A machine that is gone: its daemon and all its services end at the same instant."""
        node.signal(signal.SIGSTOP)
        for name in dict.fromkeys(self.names):
            for pid in self.pids(node.name, name):
                os.kill(pid, signal.SIGKILL)
        node.kill()

    def phases(self, name):
        """What a node wrote down about how long the parts of a change took."""
        lines = (self.nodes[name].dir / "history.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["phases"]]

    def close(self, keep=False):
        super().close(keep)
        for node in self.nodes.values():
            for name in dict.fromkeys(self.names):
                for pid in self.pids(node.name, name):
                    os.kill(pid, signal.SIGKILL)

    def expect_order(self, node, since):
        """Services began on a node in the order of the list: by the kernel's word, for the first
        beat of a program that gets no processor comes late."""
        names = list(dict.fromkeys(self.names))
        firsts = [self.beats.first(node, name, since) for name in names]
        expect(all(firsts), f"not all began: {firsts}")
        began = [min(began_at(pid) for pid in self.pids(node, name)) for name in names]
        expect(began == sorted(began), f"began on {node} in the wrong order: {began}")

    def expect_never_two(self, moves):
        """Never on two nodes at a time."""
        self.beats.moves = moves
        self.beats.expect_never_two(dict.fromkeys(self.names))


def began_at(pid):
    """When a process began, in ticks of the kernel."""
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def services_start_in_order_on_the_primary_and_on_the_other_node_when_the_machine_is_gone():
    with Served() as cluster:
        cluster.start()
        cluster.expect_order("alpha", 0)
        for name in ("one", "two"):
            expect(cluster.service("beta", name)["state"] == "stopped", "a secondary runs services")
        since = time.monotonic()
        cluster.kill_machine(cluster.alpha)
        cluster.wait_for_services("beta")
        took = cluster.beats.first("beta", "two", since) - since
        cluster.expect_order("beta", since)
        cluster.expect_never_two(moves=1)
        print(f"    all services run on beta {took:.2f} s after alpha was gone")
        cluster.alpha.start()
        cluster.wait_in_sync()
        told = cluster.beta.ctl_raw("status", as_json=False)[1]
        expect("running    one · two (" in told, told)
        phases = cluster.phases("beta")
        expect(any("services started" in entry["what"] for entry in phases), f"{phases}")


def without_a_witness_services_run_where_an_operator_promotes():
    """By `demote` and `promote`, and by force when the other machine is off; never by themselves."""
    with Served(witness=False) as cluster:
        alpha, beta = cluster.alpha, cluster.beta
        Cluster.start(cluster)
        cluster.wait_for_services("alpha")
        alpha.ctl("demote", "demo")
        for name in ("one", "two"):
            expect(not cluster.pids("alpha", name), f"{name} runs on a node that gave its office up")
        beta.promote()
        cluster.wait_for_services("beta")
        cluster.wait_in_sync()
        cluster.kill_machine(beta)
        stay(2)
        expect(alpha.replica()["role"] == "secondary", "alpha took over by itself")
        expect(not cluster.pids("alpha", "one"), "alpha started a service by itself")
        alpha.take_over()
        cluster.wait_for_services("alpha")
        cluster.expect_never_two(moves=2)


def a_switchover_stops_services_bottom_up_and_starts_them_top_down():
    with Served() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        for source, target in ((alpha, beta), (beta, alpha)):
            since = time.monotonic()
            source.ctl("switchover", "demo", "--to", target.name)
            cluster.wait_for_services(target.name)
            stopped = [line.split('"text":"', 1)[1].split(":")[0]
                       for line in source.ctl_raw("events")[1].splitlines() if ": stopped" in line]
            expect(stopped[-2:] == ["two", "one"], f"{source.name} stopped them so: {stopped}")
            cluster.expect_order(target.name, since)
            pause = (cluster.beats.first(target.name, "two", since)
                     - cluster.beats.last(source.name, "two"))
            print(f"    no service `two` for {pause:.2f} s")
            cluster.wait_in_sync()
        cluster.expect_never_two(moves=2)


def a_service_that_is_killed_is_back_in_place_within_a_moment():
    """From its death to the first thing that its start does; and hooks are told."""
    def services(cluster):
        mark = f'start = "date +%s.%N >> {cluster.dir / "began"}; '
        return [cluster.beat("one"), cluster.beat("two").replace('start = "', mark)]
    with Served(services) as cluster:
        hook, told = cluster.dir / "hook", cluster.dir / "told"
        hook.write_text('#!/bin/sh\necho "$REPLICATOR_EVENT $REPLICATOR_RESOURCE $REPLICATOR_SERVICE '
                        f'$REPLICATOR_WHAT" >> {told}\n')
        hook.chmod(0o755)
        told.touch()
        with open(cluster.alpha.config, "a", encoding="utf-8") as config:
            config.write(f'\n[hooks]\ncommand = "{hook}"\nevents = ["service_failed"]\n')
        alpha = cluster.start().alpha
        wait_until("the daemon says that it runs", lambda: cluster.service("alpha", "two")["state"]
                   == "running", 20)
        took = []
        for round_number in range(1, 4):
            pids = cluster.pids("alpha", "two")
            expect(len(pids) == 1, f"{len(pids)} processes of one service")
            since, killed = time.monotonic(), time.time()
            os.kill(pids[0], signal.SIGKILL)
            wait_until("it is back", lambda since=since: cluster.beats.first(
                "alpha", "two", since + 0.02), 20)
            began = (cluster.dir / "began").read_text().split()
            expect(len(began) == round_number + 1, f"started {len(began)} times")
            took.append(float(began[-1]) - killed)
            wait_until("the daemon says so", lambda: cluster.service("alpha", "two")["state"]
                       == "running", 20)
            # Each time as the first time, without a pause before the restart.
            alpha.ctl("clear", "demo")
        print("    its restart began " + ", ".join(f"{span * 1000:.0f}" for span in took)
              + " ms after its death (goal: 200)")
        expect(min(took) < 1.0, f"never within a second: {took}")
        expect(cluster.service("alpha", "two")["restarts"] == 3, "restarts are not counted")
        expect(cluster.office()["primary"] == "alpha", "the office moved")
        expect(len(cluster.pids("alpha", "one")) == 1, "the other service was touched")
        line = "service_failed demo two two failed"
        wait_until("hooks are told", lambda: told.read_text().splitlines() == [line] * 3, 20)


def an_isolated_primary_freezes_its_services_before_others_start_and_stops_them_later():
    with Served() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        since = time.monotonic()
        cluster.isolate(alpha)
        cluster.wait_for_services("beta")
        for name in ("one", "two"):
            gap = cluster.beats.first("beta", name, since) - cluster.beats.last("alpha", name)
            print(f"    {name}: {gap:.3f} s between the last sign on alpha and the first on beta")
            expect(gap > 0, f"{name} ran on both")
        wait_until("alpha stopped everything", lambda: not cluster.pids("alpha", "one")
                   and not cluster.pids("alpha", "two"), 20)
        took = time.monotonic() - since
        expect(took < 15, f"alpha stopped after {took:.1f} s")
        cluster.heal()
        cluster.wait_in_sync()
        stay(1)
        expect(not cluster.pids("alpha", "one"), "alpha started services again")
        cluster.expect_never_two(moves=1)


def a_node_on_standby_and_a_daemon_that_is_stopped_hand_their_services_over():
    with Served() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.ctl("standby", "alpha")
        cluster.wait_for_services("beta")
        alpha.ctl("online", "alpha")
        cluster.wait_in_sync()
        since = time.monotonic()
        beta.stop()
        cluster.wait_for_services("alpha")
        gap = cluster.beats.first("alpha", "one", since) - since
        print(f"    services began on alpha {gap:.2f} s after the order to stop")
        last = cluster.takeovers()[-1]
        expect("silent" not in last["why"], f"a stop was taken for a failure: {last['why']}")
        expect(not cluster.pids("beta", "one"), "a stopped daemon left services behind")
        cluster.expect_never_two(moves=2)


def a_daemon_that_is_restarted_at_once_goes_on_with_its_services():
    with Served() as cluster:
        alpha = cluster.start().alpha
        pids = {name: cluster.pids("alpha", name) for name in ("one", "two")}
        alpha.kill()
        alpha.start()
        wait_until("somebody serves", lambda: cluster.office()["primary"]
                   and any(node.replica()["role"] == "primary" for node in cluster.data_nodes), 20)
        if cluster.primary() is alpha:
            cluster.wait_for_services("alpha")
            expect({name: cluster.pids("alpha", name) for name in pids} == pids,
                   "services were restarted")
        else:
            cluster.wait_for_services("beta")
            wait_until("alpha stopped what it had", lambda: not cluster.pids("alpha", "one"), 20)


def v1_a_service_that_does_not_start_here_moves_the_office_and_does_not_come_back_at_once():
    def services(cluster):
        flag = cluster.dir / "broken"
        broken = f"if grep -qw $REPLICATOR_NODE {flag} 2>/dev/null; then exit 1; fi; "
        entry = cluster.beat("two", ", restarts = 1")
        return [cluster.beat("one"), entry.replace('start = "', f'start = "{broken}')]
    with Served(services) as cluster:
        cluster.start()
        (cluster.dir / "broken").write_text("alpha\n")
        os.kill(cluster.pids("alpha", "two")[0], signal.SIGKILL)
        cluster.wait_for_services("beta")
        alpha = cluster.alpha.status()["services"]
        expect(alpha["trouble"]["code"] == "services_failed", f"{alpha}")
        expect("two" in alpha["trouble"]["why"], f"{alpha}")
        # Broken everywhere: it stays where it is.
        (cluster.dir / "broken").write_text("alpha beta\n")
        os.kill(cluster.pids("beta", "two")[0], signal.SIGKILL)
        wait_until("beta says so", lambda: cluster.beta.status()["services"]["trouble"], 20)
        takeovers = len(cluster.takeovers())
        stay(6)
        expect(len(cluster.takeovers()) == takeovers, "the office goes round")
        expect(cluster.beats.runs("beta", "one"), "what can run was stopped")
        (cluster.dir / "broken").write_text("")
        cluster.beta.ctl("clear", "demo")
        cluster.wait_for_services("beta")
        expect(cluster.beta.status()["services"]["trouble"] is None, "trouble stays")
        cluster.expect_never_two(moves=1)


def v2_a_stop_that_hangs_is_killed_and_a_switchover_goes_on():
    def services(cluster):
        return [cluster.beat("one"),
                cluster.beat("two", ', stop = "sleep 1000", stop_timeout_ms = 1000')]
    with Served(services) as cluster:
        alpha = cluster.start().alpha
        alpha.ctl("switchover", "demo", "--to", "beta")
        cluster.wait_for_services("beta")
        expect(not cluster.pids("alpha", "two"), "it still runs on alpha")
        expect("stop failed (orderly)" in alpha.log(), "the escalation is not told")
        cluster.expect_never_two(moves=1)


def an_operator_stops_starts_and_restarts_services_and_says_hands_off():
    with Served() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        refused = alpha.refuses("stop", "demo/three", code="unknown_service")
        expect("one, two" in refused.next, refused.next)
        alpha.ctl("stop", "demo/two")
        wait_until("two is stopped", lambda: not cluster.pids("alpha", "two"), 10)
        expect(cluster.beats.runs("alpha", "one"), "one was stopped too")
        alpha.ctl("switchover", "demo", "--to", "beta")
        wait_until("one runs on beta", lambda: cluster.beats.runs("beta", "one"), 20)
        expect(not cluster.pids("beta", "two"), "what an operator stopped was started elsewhere")
        beta.ctl("start", "demo/two")
        cluster.wait_for_services("beta")
        before = cluster.pids("beta", "two")
        alpha.refuses("restart", "demo/two", code="not_running_here")
        beta.ctl("restart", "demo/two")
        wait_until("two is another one", lambda: cluster.pids("beta", "two")
                   and cluster.pids("beta", "two") != before, 10)
        beta.ctl("maintenance", "demo", "on")
        wait_until("beta knows", lambda: beta.status()["services"]["maintenance"], 5)
        os.kill(cluster.pids("beta", "two")[0], signal.SIGKILL)
        stay(2)
        expect(not cluster.pids("beta", "two"), "it was restarted during maintenance")
        beta.ctl("maintenance", "demo", "off")
        cluster.wait_for_services("beta")


def an_agent_has_the_deadlines_that_it_advises():
    """Of OCF's Delay: 30 s to stop, where nothing is advised it would be 60."""
    if not pathlib.Path("/usr/lib/ocf/resource.d/heartbeat/Delay").exists():
        raise Skip("resource-agents is not installed")

    def services(_):
        delays = 'startdelay = "0", stopdelay = "5", mondelay = "0"'
        return [f'{{ ocf = "heartbeat:Delay", name = "slow", params = {{ {delays} }} }}']
    with Served(services) as cluster:
        alpha = cluster.start().alpha
        wait_until("it runs", lambda: cluster.service("alpha", "slow")["state"] == "running", 20)
        alpha.ctl("stop", "demo/slow")

        def stopping():
            service = cluster.service("alpha", "slow")
            return service["deadline_in_ms"] if service["state"] == "stopping" else None
        left_ms = wait_until("it is being stopped", stopping, 20)
        expect(20_000 < left_ms <= 30_000, f"it may take {left_ms} ms")
        wait_until("it is stopped", lambda: cluster.service("alpha", "slow")["state"] == "stopped", 40)


SCENARIOS = [
    services_start_in_order_on_the_primary_and_on_the_other_node_when_the_machine_is_gone,
    a_switchover_stops_services_bottom_up_and_starts_them_top_down,
    without_a_witness_services_run_where_an_operator_promotes,
    a_service_that_is_killed_is_back_in_place_within_a_moment,
    an_isolated_primary_freezes_its_services_before_others_start_and_stops_them_later,
    v1_a_service_that_does_not_start_here_moves_the_office_and_does_not_come_back_at_once,
    v2_a_stop_that_hangs_is_killed_and_a_switchover_goes_on,
    an_agent_has_the_deadlines_that_it_advises,
]
LONG = [
    a_node_on_standby_and_a_daemon_that_is_stopped_hand_their_services_over,
    a_daemon_that_is_restarted_at_once_goes_on_with_its_services,
    an_operator_stops_starts_and_restarts_services_and_says_hands_off,
]
