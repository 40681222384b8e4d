"""A cluster whose alpha is a virtual machine that runs replicator.service and, as a service, a
unit; beta runs a command of the same name. Who runs it is heard from outside.
"""

import json
import time

from machines import ASK_AGAIN_S, BEAT_PORT, HERE, LATE_S, PATIENCE_S, WithMachines
from cluster import expect, wait_until
from trio import CLIENT_ADDRESS, stay

UNIT = "demo.service"
START_LIMIT_S, STOP_LIMIT_S, DEMOTE_AFTER_S = 30, 20, 4
# What the unit runs.
BEATS = f"/bin/bash {HERE / 'beat.sh'} alpha {CLIENT_ADDRESS} {BEAT_PORT}"


class Services(WithMachines):
    """alpha runs the unit, beta a command of the same name."""

    watchdog = "required"
    # Whether alpha has a block device, and where it mounts it before the unit starts.
    attaches, mount = False, None

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
        if self.attaches:
            lines = [line for line in lines if "attach =" not in line]
            at = next(at for at, line in enumerate(lines) if "systemd =" in line)
        if self.mount:
            lines.insert(at, f'  {{ filesystem = "{self.mount}", type = "ext4" }},')
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

    def main_process(self, unit=UNIT):
        """The number of its main process."""
        return int(self.box.inside(f"systemctl show -P MainPID {unit}"))

    def change_unit(self, *lines):
        """What its section [Service] has beside its file from now on."""
        text = "\n".join(("[Service]", *lines))
        place = f"/run/systemd/system/{UNIT}.d"
        self.box.inside(f"mkdir -p {place}; cat > {place}/test.conf <<'END'\n{text}\nEND\n"
                        "systemctl daemon-reload")

    def service_is(self, state, deadline_s=PATIENCE_S):
        """Waits until the daemon says so."""
        wait_until(f"alpha says that {UNIT} is {state}",
                   lambda: self.service_of_alpha().get("state") == state, deadline_s)

    # ---------------------------------------------------------------- where it runs

    def serve_on(self, name):
        """Moves the office there, if it is not there yet, and waits for the service."""
        since = time.monotonic()
        self.give_office_to(name)
        self.runs_on(name, since)

    def runs_on(self, name, since, deadline_s=PATIENCE_S):
        """Waits until the service is heard there."""
        first = self.wait_for_service(name, since, deadline_s)
        if not self.moves or self.moves[-1] != name:
            self.moves.append(name)
        return first - since

    def expect_never_two(self):
        """The nodes were heard one after the other, as the office went."""
        # The last of them has only begun, perhaps.
        stay(LATE_S)
        turns = self.turns()
        expect(turns == self.moves, f"the service was heard on {turns}, it was moved to {self.moves}")
