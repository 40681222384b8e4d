#!/usr/bin/env python3
"""The whole daemon under a real systemd and with a real watchdog device: alpha is a virtual machine
that runs replicator.service and, as a service, a unit; beta and the witness are outside, and so is
who hears on which node the service runs. O2, V2, V3, V5, V6, V9 and V10 of the scenarios, with one
machine; the steps are in steps_watchdog.py, steps_mount.py and steps_units.py.

    services.py [STEP...]       only these steps, in their order, and those they need; default: all

Exit code: 0 all well, 1 something failed, 77 it cannot be tried here (no root).
"""

import sys
import time

import steps_mount
import steps_units
import steps_watchdog
from machines import AGENT_PORT, BEAT_PORT, exit_code
from demo_cluster import Services
from trio import CLIENT_ADDRESS

STEPS = {name.removeprefix("step_"): step for steps in (steps_watchdog, steps_mount, steps_units)
         for name, step in vars(steps).items() if name.startswith("step_")}
NEEDED = ("missing", "armed")


def play(chosen):
    """All steps with one machine."""
    with Services() as cluster:
        cluster.create()
        cluster.watchdog = "/dev/watchdog9"
        began = time.monotonic()
        cluster.box.boot("services_inside.sh", CLIENT_ADDRESS, str(BEAT_PORT), str(AGENT_PORT),
                     options=("--watchdog",), limit_s=6000)
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
