#!/usr/bin/env python3
"""The whole daemon under a real systemd and with a real watchdog device: alpha is a virtual machine that
runs replicator.service and, as a service, a unit; beta and the witness are outside, and so is who
hears on which node the service runs. V9 (enabled at boot, started by hand), V10 and O2 (missing, busy,
armed, fed, switched off) of the scenarios, with one machine.

    services.py [STEP...]       only these of the steps below, in their order; all by default

Exit code: 0 all well, 1 something failed, 77 it cannot be tried here (no root).
"""

import json
import sys
import time

from machines import AGENT_PORT, ASK_AGAIN_S, BEAT_PORT, HERE, WithMachines, exit_code
from cluster import expect, wait_until
from trio import CLIENT_ADDRESS

UNIT = "demo.service"
START_LIMIT_S, STOP_LIMIT_S, DEMOTE_AFTER_S = 30, 20, 4
# A failure is noticed within 200 ms on real processors; on emulated ones a look at a unit can take
# longer than that. What must not be in it is a wait for the next look, which comes after 30 s.
NOTICED_WITHIN_MS = 5000
PATIENCE_S = 300


class Services(WithMachines):
    """alpha runs the unit, beta a command of the same name."""

    watchdog = "required"

    def __init__(self):
        super().__init__(timing={"demote_after_ms": DEMOTE_AFTER_S * 1000})
        self.moves = []

    def write_config(self, **overrides):
        start = f"bash {HERE / 'beat.sh'} beta {CLIENT_ADDRESS} {BEAT_PORT} &"
        self.options = f'services = [\n  {{ command = "{UNIT}", start = "{start}" }},\n]'
        super().write_config(**overrides)

    def _config(self, mine):
        return super()._config(mine).replace("[node.beta]", '[node.beta]\nwatchdog = "off"', 1)

    def config_inside(self, node):
        lines = super().config_inside(node).splitlines()
        at = next(at for at, line in enumerate(lines) if "command =" in line)
        lines[at] = (f'  {{ systemd = "{UNIT}", start_timeout_ms = {START_LIMIT_S * 1000}, '
                     f"stop_timeout_ms = {STOP_LIMIT_S * 1000}, restarts = 2 }},")
        lines.insert(1, f'watchdog = "{self.watchdog}"')
        return "\n".join(lines) + "\n"

    # ---------------------------------------------------------------- what is looked at

    def restart_alpha(self, watchdog):
        """alpha's daemon ends, and another one begins that wants another watchdog."""
        self.watchdog = watchdog
        self.box.inside("systemctl stop replicator")
        text = self.config_inside(self.alpha)
        self.box.inside(f"cat > /etc/replicator/replicator.toml <<'END'\n{text}END\n"
                    "systemctl start replicator")

    def services_of_alpha(self):
        """What the daemon of alpha says of its services; none while it does not."""
        found = self.box.status().get("resources") or [{}]
        return found[0].get("services") or {"trouble": None, "state": "", "services": [{}]}

    def service_of_alpha(self):
        """And of the one it has."""
        return self.services_of_alpha()["services"][0]

    def watchdog_of_alpha(self):
        """The watchdog as alpha's daemon tells of it."""
        return (self.box.status().get("guard") or {}).get("watchdog") or {}

    def watchdogs(self):
        """What the kernel says of each: its identity and (device, state, time-out)."""
        text = self.box.inside("cd /sys/class/watchdog; for it in watchdog*; do "
                           "echo $(cat $it/identity)/$it/$(cat $it/state)/$(cat $it/timeout); done")
        rows = [line.split("/") for line in text.splitlines()]
        return {name: (f"/dev/{device}", state, int(timeout)) for name, device, state, timeout in rows}

    def events(self, since_ms, words):
        """Events of alpha since then that have all these words: (when, text)."""
        lines = self.box.inside("replctl --json events").splitlines()
        found = [json.loads(line) for line in lines]
        return [(it["at_unix_ms"], it["text"]) for it in found
                if it["at_unix_ms"] >= since_ms and all(word in it["text"] for word in words)]

    def wait_for_event(self, since_ms, *words, deadline_s=120):
        """The first of them."""
        def told():
            time.sleep(ASK_AGAIN_S)
            return self.events(since_ms, words)
        return wait_until(f"alpha tells: {' ... '.join(words)}", told, deadline_s)[0]

    def clock_ms(self):
        """The time in the machine."""
        return int(self.box.inside("date +%s%3N"))

    def unit_is(self, states, deadline_s=60):
        """Waits until systemd says so; how long that took."""
        began = time.monotonic()
        words = " ".join(states)
        self.box.inside(f"for try in $(seq {int(deadline_s * 4)}); do "
                        f"case ' {words} ' in *\" $(systemctl show -P ActiveState {UNIT}) \"*) exit;; esac; "
                        "sleep 0.25; done; exit 1", deadline_s * 3)
        return time.monotonic() - began

    def service_is(self, state, deadline_s=PATIENCE_S):
        """Waits until the daemon says so."""
        wait_until(f"alpha says that {UNIT} is {state}",
                   lambda: self.service_of_alpha().get("state") == state, deadline_s)

    # ---------------------------------------------------------------- where it runs

    def serve_on(self, name):
        """Moves the office there, if it is not there yet, and waits for the service."""
        since = time.monotonic()
        if self.office(self.gamma)["primary"] != name:
            self.wait_in_sync_outside()
            self.beta.ctl("switchover", "demo", "--to", name)
        self.runs_on(name, since)

    def runs_on(self, name, since, deadline_s=PATIENCE_S):
        """Waits until the service is heard there."""
        first = self.wait_for_service(name, since, deadline_s)
        if not self.moves or self.moves[-1] != name:
            self.moves.append(name)
        return first - since

    def wait_in_sync_outside(self):
        """Both are members and the one that is not primary has everything."""
        wait_until("both replicas are in sync", lambda: (
            lambda office: len(office["in_sync"]) == 2 and office["primary"])(
                self.office(self.gamma)), PATIENCE_S)

    def expect_never_two(self):
        """The nodes were heard one after the other, as the office went."""
        turns = self.turns()
        expect(turns == self.moves, f"the service was heard on {turns}, it was moved to {self.moves}")


def step_missing(cluster):
    """O2: a watchdog that is not there forbids services here, and says so; V9: a unit that is enabled
    and runs since boot is stopped, and reported."""
    cluster.box.inside(f"systemctl -q enable {UNIT}; systemctl start {UNIT}")
    since, began = cluster.clock_ms(), time.monotonic()
    cluster.box.inside("systemctl start replicator", 180)
    took = cluster.unit_is(["inactive", "failed"])
    told = time.monotonic() - began
    cluster.wait_for_event(since, "is enabled at boot", f"systemctl disable {UNIT}")
    cluster.box.inside(f"systemctl -q disable {UNIT}")
    for node in (cluster.beta, cluster.gamma):
        node.start()
    cluster.beats.clear()
    cluster.runs_on("beta", 0)
    trouble = wait_until("alpha says why not", lambda: cluster.services_of_alpha()["trouble"], 60)
    expect(trouble["code"] == "watchdog_missing" and "/dev/watchdog9" in trouble["why"], f"{trouble}")
    for command in ("status", "explain"):
        expect("/dev/watchdog9" in cluster.box.inside(f"replctl {command} || [ $? = 4 ]"), command)
    expect("/dev/watchdog9" in cluster.beta.ctl_raw("explain", as_json=False)[1],
           "beta does not know why alpha runs no services")
    return f"a unit that ran since boot was stopped {told:.1f} s after the daemon began ({took:.1f} s seen)"


def step_busy(cluster):
    """O2: one that another program has; with `auto` the next one is taken. V9: a unit started by hand
    on the node that is not primary is stopped, and that is told."""
    busy = cluster.watchdogs()["Software Watchdog"][0]
    cluster.box.inside(f"systemd-run -q --unit=feeder bash -c 'exec 9> {busy}; "
                   "trap \"echo -n V >&9; exit\" TERM; while :; do echo >&9; sleep 1; done'")
    wait_until("another program has it", lambda: cluster.watchdogs()["Software Watchdog"][1] == "active")
    cluster.restart_alpha(busy)
    why = wait_until("alpha says why not", lambda: (cluster.services_of_alpha()["trouble"]), 60)["why"]
    expect(f"{busy} is in use by another program" in why, why)
    cluster.service_is("stopped")
    began = time.monotonic()
    since = cluster.clock_ms()
    cluster.box.inside(f"systemctl --no-block start {UNIT}")
    cluster.wait_for_event(since, UNIT, "started by somebody else")
    took = cluster.unit_is(["inactive", "failed"])
    ran = time.monotonic() - began
    stray = cluster.beats_of("alpha")
    span = stray[-1] - stray[0] if stray else 0
    expect(span < 10, f"what was started by hand beside the primary's ran for {span} s")
    cluster.beats.clear()
    cluster.restart_alpha("auto")
    found = wait_until("auto takes the other one", lambda: (
        lambda it: it if it.get("is_armed") else None)(cluster.watchdog_of_alpha()), 60)
    expect(found["device"] == cluster.watchdogs()["i6300ESB timer"][0], f"{found}")
    cluster.box.inside("systemctl stop replicator feeder")
    left = cluster.watchdogs()
    expect(all(state == "inactive" for _, state, _ in left.values()), f"armed after a stop: {left}")
    return f"started by hand on the secondary: heard for {span:.1f} s, stopped after {ran:.1f} s ({took:.1f})"


def step_armed(cluster):
    """O2: armed with the time-out that fits before the service starts, fed while it runs."""
    cluster.restart_alpha("required")
    cluster.serve_on("alpha")
    at_start = cluster.box.inside("cat /run/watchdogs-at-start").split()
    expect("active" in at_start, f"the watchdogs when the service began: {at_start}")
    device, state, timeout = cluster.watchdogs()["i6300ESB timer"]
    told = cluster.watchdog_of_alpha()
    expect(state == "active" and told["is_armed"] and told["is_in_time"]
           and told["device"] == device and told["timeout_s"] == timeout, f"{told}")
    expect(timeout <= cluster.lease_ms * 1.1 / 1000 + 0.3, f"{timeout} s for {cluster.lease_ms} ms")
    status = cluster.box.inside("replctl status || [ $? = 4 ]")
    expect(f"watchdog {device} armed" in status, status)
    return f"{device}, {timeout} s, armed when the service began"


def step_killed(cluster):
    """V10: a service that is killed is noticed at once, by a signal of systemd."""
    cluster.serve_on("alpha")
    delays = []
    for _ in range(3):
        cluster.service_is("running")
        died = int(cluster.box.inside(f"pid=$(systemctl show -P MainPID {UNIT}); date +%s%3N; "
                                  "kill -KILL $pid"))
        noticed, text = cluster.wait_for_event(died, UNIT, "SIGKILL")
        delays.append(noticed - died)
        cluster.runs_on("alpha", time.monotonic())
        cluster.box.inside("replctl clear demo")
    expect(min(delays) <= NOTICED_WITHIN_MS, f"noticed after {delays} ms: {text}")
    return f"noticed after {', '.join(map(str, delays))} ms"


STEPS = {name.removeprefix("step_"): step for name, step in list(globals().items())
         if name.startswith("step_")}
NEEDED = ("missing", "armed")


def play(chosen):
    """All steps with one machine."""
    with Services() as cluster:
        cluster.create()
        cluster.watchdog = "/dev/watchdog9"
        began = time.monotonic()
        cluster.box.boot("services_inside.sh", CLIENT_ADDRESS, str(BEAT_PORT), str(AGENT_PORT),
                     options=("--watchdog",), limit_s=3000)
        cluster.listen()
        cluster.box.wait_until_up()
        print(f"ok      the machine is up ({time.monotonic() - began:.0f} s)", flush=True)
        for name, step in STEPS.items():
            if chosen and name not in chosen and name not in NEEDED:
                continue
            began = time.monotonic()
            told = step(cluster)
            what = " ".join(step.__doc__.split())
            print(f"ok      {what}\n            {told} ({time.monotonic() - began:.0f} s)", flush=True)
            cluster.expect_never_two()


if __name__ == "__main__":
    sys.exit(exit_code(lambda: play(sys.argv[1:])))
