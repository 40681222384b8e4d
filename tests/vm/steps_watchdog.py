"""Steps of services.py: which watchdog guards the services of a node, and none."""

import time

from demo_cluster import UNIT
from cluster import expect, wait_until


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
