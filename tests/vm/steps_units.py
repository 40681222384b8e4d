"""Steps of services.py: what a unit, an operator, systemd and D-Bus can do to a service."""

import time

from demo_cluster import BEATS, PATIENCE_S, START_LIMIT_S, STOP_LIMIT_S, UNIT
from cluster import expect, wait_until
from trio import Watch, stay

# A failure is noticed within 200 ms on real processors; on emulated ones a look at a unit can take
# longer than that. What must not be in it is a wait for the next look, which comes after 30 s.
NOTICED_WITHIN_MS = 5000
# A stop by force has so long, and what was stopped is told a little later.
KILL_LIMIT_S, SLACK_S = 5, 5
# A start that waits for this file is under way until it is made.
MAY_START = "/run/demo-may-start"
# Words of events that tell of a failure.
FAILURES = ("does not run", "was not done", "did not start", "stop failed", "cannot run",
            "by somebody else", "the lease is over")


def failures(cluster, since):
    """What alpha tells of failures since then."""
    told = [text for _, text in cluster.events(since, [])]
    return [text for text in told if any(word in text for word in FAILURES)]


def kill_it(cluster):
    """Kills the main process of the unit and waits until it runs again; how many milliseconds it
    took to notice that."""
    cluster.service_is("running")
    died = int(cluster.box.inside(f"pid=$(systemctl show -P MainPID {UNIT}); date +%s%3N; "
                                  "kill -KILL $pid"))
    noticed, _ = cluster.wait_for_event(died, UNIT, "SIGKILL")
    cluster.runs_on("alpha", time.monotonic())
    cluster.box.inside("replctl clear demo")
    return noticed - died


def longest_pause(cluster, name, since):
    """The longest time in which the service of a node was not heard, from then until now."""
    beats = [since, *cluster.beats_of(name, since), time.monotonic()]
    return max(later - earlier for earlier, later in zip(beats, beats[1:]))


def step_killed(cluster):
    """V10: a service that is killed is noticed at once, by a signal of systemd."""
    cluster.serve_on("alpha")
    delays = [kill_it(cluster) for _ in range(3)]
    expect(min(delays) <= NOTICED_WITHIN_MS, f"noticed after {delays} ms")
    return f"noticed after {', '.join(map(str, delays))} ms"


def step_by_hand(cluster):
    """V9: an operator who stops or restarts the unit of the primary is told what to use instead,
    and the service comes back in place: no failure, no move; after `replctl stop` a unit that is
    started by hand is stopped, until `replctl start`."""
    cluster.serve_on("alpha")
    cluster.service_is("running")
    tenure = cluster.office(cluster.gamma)["tenure"]
    pauses = []
    for verb in ("stop", "restart"):
        since, began = cluster.clock_ms(), time.monotonic()
        before = cluster.main_process()
        cluster.box.inside(f"systemctl {verb} {UNIT}")
        if verb == "stop":
            cluster.wait_for_event(since, UNIT, "was stopped by somebody else", "use replctl stop")
        cluster.runs_on("alpha", time.monotonic())
        cluster.service_is("running")
        pauses.append(longest_pause(cluster, "alpha", began))
        expect(cluster.main_process() not in (0, before), f"{UNIT} was not {verb}ped at all")
    service = cluster.service_of_alpha()
    expect(service["failures"] == 0, f"counted as a failure: {service}")
    cluster.box.inside("replctl stop demo")
    cluster.service_is("stopped")
    since = cluster.clock_ms()
    cluster.box.inside(f"systemctl --no-block start {UNIT}")
    cluster.wait_for_event(since, UNIT, "started by somebody else")
    cluster.unit_is(["inactive", "failed"])
    cluster.box.inside("replctl start demo")
    cluster.runs_on("alpha", time.monotonic())
    expect(cluster.office(cluster.gamma)["tenure"] == tenure, "the office moved")
    return f"not heard for {' and '.join(f'{pause:.1f}' for pause in pauses)} s"


def step_endless(cluster):
    """V5: a unit that is activating for ever is stopped at the end of start_timeout_ms, restarted
    in place with pauses, and given up; the resource moves once, nothing is left, that is told."""
    cluster.serve_on("beta")
    cluster.change_unit("Type=notify", "TimeoutStartSec=infinity")
    since = cluster.clock_ms()
    cluster.beta.ctl("switchover", "demo", "--to", "alpha")
    cluster.moves.append("alpha")
    cluster.wait_for_event(since, UNIT, "cannot run here",
                           deadline_s=3 * START_LIMIT_S + PATIENCE_S)
    cluster.runs_on("beta", time.monotonic())
    tenure = cluster.office(cluster.gamma)["tenure"]
    ends = [at for at, text in cluster.events(since, ["was not done"])
            if text.startswith(f"{UNIT}: start of {UNIT} ")]
    spans = [(later - earlier) / 1000 for earlier, later in zip([since, *ends], ends)]
    expect(len(spans) == 3, f"{len(spans)} starts failed, there are 2 restarts: {spans}")
    # Before the first restart there is no pause, before the second one a second.
    expect(spans[0] >= START_LIMIT_S and spans[1] >= START_LIMIT_S
           and spans[2] >= START_LIMIT_S + 1, f"starts that failed after {spans} s")
    expect(max(spans) <= 2 * START_LIMIT_S, f"starts that failed after {spans} s")
    cluster.unit_is(["inactive", "failed"])
    left = cluster.box.inside("pgrep -f beat[.]sh || true").split()
    expect(not left, f"processes are left on alpha: {left}")
    trouble = cluster.services_of_alpha()["trouble"]
    expect(trouble["code"] == "services_failed" and "was not done" in trouble["why"], f"{trouble}")
    expect(UNIT in cluster.beta.ctl_raw("explain", as_json=False)[1], "beta does not say so")
    stay(15)
    expect(cluster.office(cluster.gamma)["tenure"] == tenure, "the office moved again")
    expect(cluster.service_of_alpha()["state"] == "stopped", "alpha started it again")
    cluster.change_unit()
    cluster.box.inside("replctl clear demo")
    return "failed after " + ", ".join(f"{span:.1f}" for span in spans) + " s, then beta had it"


def step_renewed(cluster):
    """V6: systemd reads its files or executes itself anew, D-Bus is restarted or killed, in the
    middle of a start and while the service runs: no failure, the next one is noticed at once."""
    delays = {}
    dbus = "dbus.service"
    events = {"daemon-reload": "systemctl daemon-reload",
              "daemon-reexec": "systemctl daemon-reexec",
              "a restart of D-Bus": f"systemctl restart {dbus}",
              "the death of D-Bus": f"kill -KILL $(systemctl show -P MainPID {dbus})"}
    for event, order in events.items():
        cluster.serve_on("beta")
        cluster.box.inside(f"rm -f {MAY_START}")
        cluster.change_unit(
            f"ExecStartPre=/bin/sh -c 'until [ -e {MAY_START} ]; do sleep 0.2; done'")
        since, began = cluster.clock_ms(), time.monotonic()
        cluster.beta.ctl("switchover", "demo", "--to", "alpha")
        cluster.unit_is(["activating"])
        state = cluster.box.inside(
            f"{order}; systemctl show -P ActiveState {UNIT}; touch {MAY_START}").strip()
        expect(state == "activating", f"{event} did not meet a start: {UNIT} was {state}")
        cluster.runs_on("alpha", began)
        cluster.service_is("running")
        process, began = cluster.main_process(), time.monotonic()
        cluster.box.inside(order)
        cluster.runs_on("alpha", time.monotonic())
        cluster.service_is("running")
        pause = longest_pause(cluster, "alpha", began)
        expect(pause < SLACK_S, f"{event}: the service stood still for {pause:.1f} s")
        expect(cluster.main_process() == process, f"{event}: it was started anew")
        wrong = failures(cluster, since)
        expect(not wrong, f"{event}: {wrong}")
        cluster.change_unit()
        delays[event] = kill_it(cluster)
        expect(delays[event] <= 2 * NOTICED_WITHIN_MS, f"noticed after {delays} ms")
    return "killed and noticed: " + ", ".join(f"after {event} {delay} ms"
                                              for event, delay in delays.items())


def step_silent(cluster):
    """A D-Bus that stands still: while the service runs, lease and clients do not notice, and
    status names it with its age; a start waits, says for what, and goes on afterwards."""
    bus = cluster.main_process("dbus.service")

    def is_told():
        service = cluster.service_of_alpha()
        return "systemd does not answer" in service.get("warning", "") and service

    cluster.serve_on("alpha")
    cluster.service_is("running")
    cluster.watch = Watch(cluster, load=False, pause_ms=20, over_tcp=True)
    cluster.wait_for_acks("alpha", PATIENCE_S)
    since, began = cluster.clock_ms(), time.monotonic()
    process = cluster.main_process()
    cluster.box.inside(f"kill -STOP {bus}")
    wait_until("alpha says that it waits for systemd", is_told, PATIENCE_S)
    stay(5)
    text = cluster.box.inside("replctl status || [ $? = 4 ]")
    expect("systemd does not answer" in text and "(for " in text, f"no age: {text}")
    cluster.wait_for_acks("alpha", PATIENCE_S)
    cluster.box.inside(f"kill -CONT {bus}")
    stood = time.monotonic() - began
    wait_until("nothing is said any more", lambda: not is_told(), PATIENCE_S)
    cluster.watch.program.kill()
    pause = longest_pause(cluster, "alpha", began)
    expect(pause < SLACK_S and cluster.main_process() == process, f"not heard for {pause:.1f} s")

    cluster.serve_on("beta")
    began = time.monotonic()
    cluster.box.inside(f"kill -STOP {bus}")
    cluster.beta.ctl("switchover", "demo", "--to", "alpha")
    started = wait_until("the start says that it waits for systemd", is_told, PATIENCE_S)
    expect(started["state"] == "starting" and started["deadline_in_ms"], f"{started}")
    cluster.box.inside(f"kill -CONT {bus}")
    cluster.runs_on("alpha", began)
    cluster.service_is("running")
    expect(not is_told(), f"still said: {cluster.service_of_alpha()}")
    wrong = failures(cluster, since)
    expect(not wrong, f"{wrong}")
    return (f"it stood still for {stood:.0f} s; a start said so after "
            f"{started['since_ms'] / 1000:.1f} s and went on")


def step_stubborn(cluster):
    """V2: a unit that ignores SIGTERM, and that systemd never kills: at a switchover it is killed
    when stop_timeout_ms is over, nothing is called done before, and beta begins after its end."""
    cluster.serve_on("alpha")
    cluster.change_unit("TimeoutStopSec=infinity", "SendSIGKILL=no", "ExecStart=",
                        f"ExecStart=/bin/bash -c 'trap \"\" TERM; exec {BEATS}'")
    cluster.box.inside("replctl restart demo")
    stubborn = wait_until("the unit ignores SIGTERM", lambda: cluster.box.inside(
        f"grep -q '^SigIgn:.*[4567cdef]...$' /proc/$(systemctl show -P MainPID {UNIT})/status "
        "&& echo yes || true"), PATIENCE_S)
    expect(stubborn, "it does not")
    cluster.service_is("running")
    since, began = cluster.clock_ms(), time.monotonic()
    cluster.serve_on("beta")
    ended, first = cluster.beats_of("alpha")[-1], cluster.beats_of("beta", began)[0]
    cluster.wait_for_event(since, UNIT, "stop failed (orderly)", "was not done")
    done = cluster.wait_for_event(since, UNIT, "stopped after")
    expect(STOP_LIMIT_S - 1 <= ended - began <= STOP_LIMIT_S + KILL_LIMIT_S + SLACK_S,
           f"it ran on for {ended - began:.1f} s")
    expect(first > ended, f"beta began {ended - first:.1f} s before the end")
    cluster.unit_is(["inactive", "failed"])
    cluster.change_unit()
    return f"killed after {ended - began:.1f} s, on beta {first - ended:.1f} s later"


def step_unkillable(cluster):
    """V2: a process that nothing can kill, since it writes to a frozen file system: a switchover
    away from it is not done, and says who it is; then the device is failed, all force tried, the
    watchdog resets the machine, and only then beta begins. The last step: it ends the machine."""
    disk, mount = "/run/frozen.img", "/run/frozen"
    cluster.serve_on("alpha")
    cluster.box.inside(
        f"modprobe -a loop ext4; truncate -s 32M {disk}; mkfs.ext4 -q {disk}; mkdir -p {mount}; "
        f"mount -o loop {disk} {mount}; fsfreeze --freeze {mount}")
    cluster.change_unit("ExecStart=",
                        f"ExecStart=/bin/bash -c '(echo stuck > {mount}/file) & exec {BEATS}'")
    cluster.box.inside("replctl restart demo")
    wait_until("a process hangs", lambda: cluster.box.inside(
        f"ps -o stat= --ppid $(systemctl show -P MainPID {UNIT}) || true").startswith("D"),
               PATIENCE_S)
    cluster.service_is("running")
    cluster.wait_in_sync_outside()
    timeout_s = cluster.watchdogs()["i6300ESB timer"][2]
    since, began = cluster.clock_ms(), time.monotonic()
    order = cluster.spawn(
        cluster.bin / "replctl", "--config", cluster.beta.config, "--node", "beta",
        "switchover", "demo", "--to", "beta", log=cluster.dir / "switchover.log")
    cluster.wait_for_event(since, UNIT, "stop failed (by force)", "do not end", "(bash)")
    expect(cluster.office(cluster.gamma)["primary"] == "alpha", "alpha was released")
    last = {}

    def needs_reset():
        last.update(cluster.services_of_alpha())
        return last.get("needs_reset") or not cluster.box.is_running
    wait_until("only a reset is left", needs_reset, PATIENCE_S)
    needed = time.monotonic()
    expect(last.get("needs_reset"), f"alpha ended without saying why: {last}")
    wait_until("the watchdog resets alpha",
               lambda: order.poll() is not None or not cluster.box.is_running,
               timeout_s + 3 * SLACK_S)
    ended = time.monotonic()
    expect(order.poll() is None, "the switchover ended before alpha did")
    cluster.runs_on("beta", began)
    first = cluster.beats_of("beta", began)[0]
    expect(first > ended, f"beta began {ended - first:.1f} s before alpha ended")
    return (f"only a reset was left after {needed - began:.1f} s, it came {ended - needed:.1f} s "
            f"later (time-out {timeout_s} s), and beta began after {first - ended:.1f} s")
