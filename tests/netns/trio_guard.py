"""Scenarios: the guard. A daemon that is killed or stopped and does not come back leaves neither services
nor addresses behind, and the other node's services begin only after those of this one stand still.
Services and the address are watched from outside: by their log, and by a client on the bridge.
"""

import os
import pathlib
import signal
import time

from cluster import expect, wait_until
from trio import Trio
from trio_services import Served

CGROUPS = pathlib.Path("/sys/fs/cgroup/unified")
DEMOTE_AFTER_S = 4.0
# The guard kills what it froze after that; the rest is for a slow machine.
KILLED_WITHIN_S = DEMOTE_AFTER_S + 20
NAMES = ("one", "two")


class Guarded(Served):
    """A trio with two services. With `has_cgroups` its daemons see the machine's cgroups; without them
    the guard has process groups."""

    def __init__(self, has_cgroups=False, **more):
        timing = {"demote_after_ms": int(DEMOTE_AFTER_S * 1000)}
        super().__init__(timing=timing, **more)
        self.has_cgroups = has_cgroups and (CGROUPS / "cgroup.procs").exists()
        for node in self.nodes.values():
            node.sees_machine = self.has_cgroups

    def start(self, watched=False):
        """Until the daemon, too, says that all of them run."""
        super().start(watched)
        wait_until("alpha says that its services run", lambda: all(
            self.service("alpha", name)["state"] == "running" for name in NAMES), 20)
        # Without cgroups they are looked for, a moment after they began.
        wait_until("the guard knows their processes",
                   lambda: self.guard()["groups"] >= len(NAMES), 20)
        return self

    def guard(self, name="alpha"):
        """The guard as the daemon of a node tells of it."""
        return self.nodes[name].ctl("status")["guard"]

    def guards(self, name="alpha"):
        """Processes that guard a node."""
        found, directory = [], bytes(self.nodes[name].dir)
        for entry in pathlib.Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if entry.name.isdigit() and b"guard" in words and directory in words:
                found.append(int(entry.name))
        return found

    def expect_always_ready(self, pid):
        """Nothing that a guard needs is swapped out, and it runs before every ordinary program."""
        def locked_kib():
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            return next(int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmLck:")
        wait_until(f"the guard {pid} has its memory locked", lambda: locked_kib() > 0, 10)
        wait_until(f"the guard {pid} has a real-time priority", lambda: os.sched_getscheduler(pid)
                   & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR, 10)
        expect(os.sched_getparam(pid).sched_priority > 0, "its priority is 0")

    def has_processes(self, name="alpha"):
        """Whether anything of the services of a node is left."""
        return any(self.pids(name, service) for service in NAMES)

    def expect_still_before_others(self, since):
        """The services of alpha stood still before those of beta began."""
        for name in NAMES:
            last, first = self.beats.last("alpha", name), self.beats.first("beta", name, since)
            print(f"    {name}: alpha still after {max(last - since, 0):.2f} s, beta begins after "
                  f"{first - since:.2f} s")
            expect(last < first, f"{name} ran on both for {last - first:.3f} s")

    def wait_until_killed(self, since):
        """The guard ends what it froze."""
        wait_until("the guard killed what it froze", lambda: not self.has_processes(),
                   KILLED_WITHIN_S)
        took = time.monotonic() - since
        expect(took >= DEMOTE_AFTER_S, f"killed after {took:.1f} s, a daemon might have been back")
        print(f"    nothing of them is left on alpha after {took:.1f} s")

    def close(self, keep=False):
        super().close(keep)
        # What was killed with its daemon has nobody who removes its cgroups.
        for node in self.nodes.values():
            top = CGROUPS / node.cgroup_name
            for group in [it for it in top.glob("*") if it.is_dir()] + [top]:
                wait_until(f"{group} is empty", lambda group=group: is_removed(group), 10)


def is_removed(group):
    """Removes a cgroup, if nothing is left in it."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def gone_for_good(has_cgroups, hit):
    """A daemon stands still for ever: what it ran does not go on."""
    with Guarded(has_cgroups=has_cgroups) as cluster:
        alpha = cluster.start().alpha
        expect(len(cluster.guards()) == 1, f"guards: {cluster.guards()}")
        since = time.monotonic()
        hit(alpha)
        cluster.wait_for_services("beta")
        cluster.expect_still_before_others(since)
        cluster.wait_until_killed(since)
        cluster.expect_never_two(moves=1)
        if alpha.is_running:
            alpha.signal(signal.SIGCONT)
        else:
            alpha.start()
        cluster.wait_in_sync()
        expect(not cluster.has_processes(), "alpha runs services again")
        expect(len(cluster.guards()) == 1, f"guards: {cluster.guards()}")
        cluster.expect_never_two(moves=1)


def a_daemon_that_is_killed_and_not_back_leaves_no_services_behind():
    gone_for_good(False, lambda node: node.kill())


def a_daemon_that_is_stopped_leaves_no_services_behind_and_follows_when_it_goes_on():
    gone_for_good(True, lambda node: node.signal(signal.SIGSTOP))


def a_daemon_that_is_killed_leaves_nothing_in_its_cgroups():
    gone_for_good(True, lambda node: node.kill())


def a_daemon_that_is_stopped_leaves_no_process_groups_behind():
    gone_for_good(False, lambda node: node.signal(signal.SIGSTOP))


def comes_back_late(has_cgroups):
    """What the guard froze never goes on beside the new primary's, also not for a moment."""
    with Guarded(has_cgroups=has_cgroups) as cluster:
        alpha = cluster.start().alpha
        since = time.monotonic()
        alpha.kill()
        cluster.wait_for_services("beta")
        cluster.expect_still_before_others(since)
        frozen = {name: cluster.beats.last("alpha", name) for name in NAMES}
        alpha.start()
        wait_until("alpha stopped what the other daemon left", lambda: not cluster.has_processes(), 30)
        expect({name: cluster.beats.last("alpha", name) for name in NAMES} == frozen,
               "they went on for a moment")
        cluster.wait_in_sync()
        cluster.expect_never_two(moves=1)


def a_daemon_that_comes_back_too_late_kills_what_was_frozen():
    comes_back_late(False)


def a_daemon_that_comes_back_too_late_kills_what_was_frozen_in_its_cgroups():
    comes_back_late(True)


def a_guard_that_is_killed_is_started_again_and_does_its_work():
    with Guarded(has_cgroups=True) as cluster:
        alpha = cluster.start().alpha
        before = cluster.guard()
        expect([before["pid"]] == cluster.guards(), f"{before}, {cluster.guards()}")
        cluster.expect_always_ready(before["pid"])
        pids = {name: cluster.pids("alpha", name) for name in NAMES}
        os.kill(before["pid"], signal.SIGKILL)
        after = wait_until("another guard", lambda: (lambda it: it if it["restarts"] == 1 and it["pid"]
                           not in (0, before["pid"]) else None)(cluster.guard()), 20)
        expect("the guard is gone" in alpha.log(), "the log does not say so")
        told = alpha.ctl_raw("status", as_json=False)[1]
        expect("started again once" in told, told)
        wait_until("one guard", lambda: cluster.guards() == [after["pid"]], 10)
        os.kill(after["pid"], signal.SIGSTOP)
        after = wait_until("a third guard", lambda: (lambda it: it if it["restarts"] == 2 and it["pid"]
                           else None)(cluster.guard()), 20)
        wait_until("one guard", lambda: cluster.guards() == [after["pid"]], 10)
        cluster.expect_always_ready(after["pid"])
        expect({name: cluster.pids("alpha", name) for name in NAMES} == pids, "services restarted")
        expect(cluster.beats.runs("alpha", "one"), "services stand still")
        since = time.monotonic()
        alpha.kill()
        cluster.wait_for_services("beta")
        cluster.expect_still_before_others(since)
        cluster.wait_until_killed(since)


def a_daemon_that_ends_orderly_takes_its_guard_along():
    with Guarded(has_cgroups=True) as cluster:
        alpha = cluster.start().alpha
        old = cluster.guards()
        alpha.stop()
        expect(not cluster.guards(), "a guard is left")
        expect(not cluster.has_processes(), "services are left")
        cluster.wait_for_services("beta")
        alpha.start()
        cluster.wait_in_sync()
        expect(len(cluster.guards()) == 1 and cluster.guards() != old, f"{cluster.guards()}")
        alpha.ctl("switchover", "demo", "--to", "alpha")
        cluster.wait_for_services("alpha")
        pids = {name: cluster.pids("alpha", name) for name in NAMES}
        alpha.kill()
        alpha.start()
        wait_until("somebody serves", lambda: any(
            node.replica()["role"] == "primary" for node in cluster.data_nodes), 20)
        if cluster.primary() is alpha:
            cluster.wait_for_services("alpha")
            expect({name: cluster.pids("alpha", name) for name in NAMES} == pids,
                   "services were restarted")
        else:
            wait_until("alpha stopped what it had", lambda: not cluster.has_processes(), 20)
        expect(len(cluster.guards()) == 1, f"{cluster.guards()}")
        expect(cluster.guard()["restarts"] == 0, f"{cluster.guard()}")


class Unwatched(Served):
    """A trio whose nodes require a watchdog, and none of them has it."""

    watchdog = "/dev/replicator-has-no-such-watchdog"

    def _config(self, mine):
        return super()._config(mine).replace("\n", f'\nwatchdog = "{self.watchdog}"\n', 1)

    def told(self, command):
        """What alpha tells of it in words."""
        return self.alpha.ctl_raw(command, as_json=False)[1]


def no_service_runs_while_every_node_lacks_the_watchdog_it_requires():
    with Unwatched() as cluster:
        Trio.start(cluster, watched=False)
        alpha, beta = cluster.alpha, cluster.beta
        wait_until("alpha says that its services may not run",
                   lambda: alpha.status()["services"]["state"] == "forbidden", 20)
        status, why = cluster.told("status"), cluster.told("explain")
        expect("no service runs: a watchdog is required" in status, status)
        for node in ("alpha", "beta"):
            expect(f"{node} cannot run services: a watchdog is required" in why, why)
        expect("modprobe softdog" in why and cluster.watchdog in why, why)
        # The data are served, where they were: nobody is better off.
        expect(cluster.office()["primary"] == "alpha", f"{cluster.office()}")
        alpha.ctl("start", "demo")
        # With one that need not have it the services are where they may run.
        cluster.watchdog = "off"
        cluster.write_config()
        beta.stop()
        beta.start()
        cluster.wait_for_services("beta")
        expect(not cluster.beats.last("alpha", "one"), "one ran on alpha")
        expect(cluster.office()["primary"] == "beta", f"{cluster.office()}")


SCENARIOS = [
    a_daemon_that_is_killed_and_not_back_leaves_no_services_behind,
    a_daemon_that_is_stopped_leaves_no_services_behind_and_follows_when_it_goes_on,
    a_daemon_that_comes_back_too_late_kills_what_was_frozen,
    a_guard_that_is_killed_is_started_again_and_does_its_work,
    no_service_runs_while_every_node_lacks_the_watchdog_it_requires,
]
LONG = [
    a_daemon_that_is_killed_leaves_nothing_in_its_cgroups,
    a_daemon_that_is_stopped_leaves_no_process_groups_behind,
    a_daemon_that_comes_back_too_late_kills_what_was_frozen_in_its_cgroups,
    a_daemon_that_ends_orderly_takes_its_guard_along,
]
