#!/usr/bin/env python3
"""Real daemons, killed, stopped, cut off and switched over at random under load. At the end both
disks are equal and nothing that was acknowledged is missing.

    chaos.py [--minutes N] [--seed S] [--backing volatile|plain|both]

The faults strike for N minutes (15): with `both`, the default, half of the time on each backing.
Volatile drops at SIGKILL what was not flushed, as a power cut would; plain is a file, one of the
two behind a throttled loop device. A seed (random, and printed) draws the same faults again; when
exactly they strike is up to the machine. After a failure everything is kept and named: logs,
metadata, journal, disks.

Exit code: 0 passed, 1 failed, 77 it cannot be tried here (no root).
"""

import argparse
import contextlib
import heapq
import itertools
import os
import random
import shutil
import signal
import sys
import time
import traceback

from chaos_loads import CheckedLoad, FioArea, Serving
from chaos_operator import Operator
from cluster import MIB, POLL_S, Cluster, Refused, Skip, TestFailed, expect, wait_until
from throttled_disk import ThrottledDisk
from watch import Watch

DISK_MIB = 384
CHECKED_MIB = 320
PROBE_MIB = 376
FIO_AREAS = ((320, 4, 4, 1000), (336, 8, 16, 500), (352, 16, 64, 200))
CONVERGES_WITHIN_S = 120
ENDS_WITHIN_S = 60
WAITS_FOR_CLIENTS_S = 3
MEAN_GAP_S = 1.2
LOOKS_EVERY_S = 0.15
SLOW_BYTES_S = 2 << 20

# Weights of the faults; those whose name is a method of `Chaos` of that name.
FAULTS = {
    "kill the primary": 14, "kill the secondary": 6, "kill both": 3, "stop the primary": 4,
    "stop the secondary": 4, "cut both ways": 3, "cut one way": 5, "let the link flap": 3,
    "hand over": 6, "restart orderly": 4, "disconnect": 2, "invalidate the secondary": 1,
    "resync in full": 1, "slow the disk": 4,
}


class Chaos:
    """One run over one cluster."""

    def __init__(self, cluster, backing, draw, throttled):
        self.cluster, self.backing, self.draw, self.throttled = cluster, backing, draw, throttled
        self.began = time.monotonic()
        self.due, self.numbers = [], itertools.count()
        self.counts = dict.fromkeys(FAULTS, 0)
        self.power_losses = 0
        self.stopped = set()
        self.ended_by_us = set()
        self.cuts = set()
        self.serving = Serving()
        self.operator = Operator(self)
        self.story_file = open(cluster.dir / "story", "w", encoding="utf-8")
        self.load = self.watch = None
        self.areas = []

    # ---------------------------------------------------------------- telling

    def say(self, text):
        """One line of the story."""
        line = f"{time.monotonic() - self.began:8.2f}  {text}"
        print(line, flush=True)
        print(line, file=self.story_file, flush=True)

    # ---------------------------------------------------------------- time

    def later(self, delay_s, action):
        """Does something after a while."""
        heapq.heappush(self.due, (time.monotonic() + delay_s, next(self.numbers), action))

    def pass_time(self, until):
        """Does what is due, and lets the operator look, until then."""
        while time.monotonic() < until or any(entry[0] <= until for entry in self.due):
            while self.due and self.due[0][0] <= time.monotonic():
                heapq.heappop(self.due)[2]()
            self.operator.look()
            self.expect_well()
            wait = min([until] + [entry[0] for entry in self.due]) - time.monotonic()
            time.sleep(max(POLL_S, min(wait, LOOKS_EVERY_S)))

    def expect_well(self):
        """No load found anything wrong, and no daemon ended by itself."""
        self.load.expect_well()
        self.watch.expect_well()
        for area in self.areas:
            expect(area.failure is None, area.failure)
        for name, node in self.cluster.nodes.items():
            expect(node.is_running or name in self.ended_by_us,
                   f"the daemon of {name} ended by itself with {node.process.returncode}")

    # ---------------------------------------------------------------- what the faults are made of

    def nodes_running(self):
        """Those whose daemon runs and can answer, and was not asked to end."""
        return [node for node in self.cluster.nodes.values()
                if node.is_running and node.name not in self.stopped | self.ended_by_us]

    def kill(self, node):
        """SIGKILL. When that took the last copy of unflushed writes, the checker is told."""
        if not node.is_running:
            return
        if self.operator.primary in (node, None):
            self.serving.interrupt()
        self.ended_by_us.add(node.name)
        node.kill()
        self.stopped.discard(node.name)
        if self.operator.primary is node:
            self.operator.primary = None
        if self.backing == "volatile" and not self.operator.somebody_holds_all():
            self.power_losses += 1
            self.say("    no replica has the unflushed writes any more")
            self.load.tell("power-lost")

    def start(self, node):
        """The daemon again, unless it must stay dead for a command of the operator."""
        if node.is_running:
            return
        if self.operator.relies_on_death_of is node:
            self.later(0.1, lambda: self.start(node))
            return
        self.say(f"    {node.name} is started")
        self.ended_by_us.discard(node.name)
        node.spawn(self.wrap(node))

    def wrap(self, node):
        """What stands in front of its command."""
        return self.throttled.wrap if self.throttled and node is self.cluster.alpha else ()

    def freeze(self, node):
        """SIGSTOP."""
        node.signal(signal.SIGSTOP)
        self.stopped.add(node.name)

    def thaw(self, node):
        """SIGCONT, if it still lives."""
        if node.name in self.stopped:
            self.stopped.discard(node.name)
            node.signal(signal.SIGCONT)
            self.say(f"    {node.name} goes on")

    def cut(self, *names):
        """What these nodes send is lost."""
        for name in names:
            if name not in self.cuts:
                self.cuts.add(name)
                self.cluster.cut_from(name)

    def heal(self):
        """The link works."""
        if self.cuts:
            self.cuts.clear()
            self.cluster.heal()

    # ---------------------------------------------------------------- the faults

    def strike(self):
        """Draws one fault and lets it happen, if it can happen now."""
        kinds, weights = zip(*FAULTS.items())
        kind = self.draw.choices(kinds, weights)[0]
        if getattr(self, kind.replace(" ", "_"))():
            self.counts[kind] += 1

    def role(self, primary):
        """The running primary, or the other running node."""
        leader = self.operator.primary
        found = [node for node in self.nodes_running() if leader and (node is leader) == primary]
        return found[0] if found else None

    def kill_and_return(self, node, why):
        """Kills, and starts again some time later."""
        if node is None:
            return False
        away = self.draw.choice((0.1, self.draw.uniform(0.1, 2), self.draw.uniform(1, 5)))
        self.say(f"{why} {node.name} is killed, for {away:.1f} s")
        self.kill(node)
        self.later(away, lambda: self.start(node))
        return True

    def kill_the_primary(self):
        return self.kill_and_return(self.role(True), "the primary")

    def kill_the_secondary(self):
        return self.kill_and_return(self.role(False), "the secondary")

    def kill_both(self):
        running = self.nodes_running()
        if len(running) < 2:
            return False
        self.draw.shuffle(running)
        self.kill_and_return(running[0], "both:")
        gap = self.draw.choice((0, 0.01, 0.3))
        self.later(gap, lambda: self.kill_and_return(running[1], "both:"))
        return True

    def stop_for_a_while(self, node, why):
        if node is None:
            return False
        away = self.draw.choice((0.1, self.draw.uniform(0.2, 1.5), self.draw.uniform(1, 4)))
        self.say(f"{why} {node.name} is stopped for {away:.1f} s")
        self.freeze(node)
        self.later(away, lambda: self.thaw(node))
        return True

    def stop_the_primary(self):
        return self.stop_for_a_while(self.role(True), "the primary")

    def stop_the_secondary(self):
        return self.stop_for_a_while(self.role(False), "the secondary")

    def cut_for_a_while(self, names):
        if self.cuts:
            return False
        away = self.draw.choice((self.draw.uniform(0.1, 1), self.draw.uniform(1, 5)))
        self.say(f"what {' and '.join(names)} sends is lost for {away:.1f} s")
        self.cut(*names)
        self.later(away, self.heal)
        return True

    def cut_both_ways(self):
        return self.cut_for_a_while(["alpha", "beta"])

    def cut_one_way(self):
        return self.cut_for_a_while([self.draw.choice(("alpha", "beta"))])

    def let_the_link_flap(self):
        if self.cuts:
            return False
        at = 0.0
        self.say("the link flaps")
        for _ in range(self.draw.randrange(2, 7)):
            names = self.draw.choice((["alpha"], ["beta"], ["alpha", "beta"]))
            self.later(at, lambda names=names: self.cut(*names))
            at += self.draw.choice((0.05, 0.3, 1.3))
            self.later(at, self.heal)
            at += self.draw.choice((0.05, 0.3, 1.0))
        return True

    def hand_over(self):
        return self.operator.hand_over()

    def restart_orderly(self):
        """As for an upgrade: a primary is demoted, then SIGTERM."""
        running = self.nodes_running()
        if not running or self.operator.running:
            return False
        node = self.draw.choice(running)
        if node is self.operator.primary:
            self.serving.interrupt()
            if not self.command(node, "demote", "demo", "--drop-clients"):
                return False
        self.say(f"{node.name} is asked to end, and started again")
        self.ended_by_us.add(node.name)
        node.signal(signal.SIGTERM)
        process, since = node.process, time.monotonic()
        self.later(0.1, lambda: self.wait_for_end(node, process, since))
        return True

    def wait_for_end(self, node, process, since):
        """Starts it again when it has ended. One that resumed its office just then waits for its
        clients, for ever by design: they do not go, so it is killed."""
        if process.poll() is not None:
            codes = (0, -signal.SIGKILL)
            expect(process.returncode in codes, f"{node.name} ended with {process.returncode}")
            self.start(node)
            return
        asked = time.monotonic() - since
        expect(asked < ENDS_WITHIN_S or node.name in self.stopped,
               f"{node.name} does not end within {ENDS_WITHIN_S} s of SIGTERM")
        if asked > WAITS_FOR_CLIENTS_S and node.name not in self.stopped:
            if node.replica()["role"] == "primary":
                self.say(f"    {node.name} waits for its clients: killed")
                self.kill(node)
        self.later(0.1, lambda: self.wait_for_end(node, process, since))

    def command(self, node, *words):
        """A command of which it does not matter whether it is done."""
        if node is None:
            return False
        try:
            node.ctl(*words, timeout=20)
        except (Refused, TestFailed) as refusal:
            self.say(f"{node.name}: {' '.join(words)}: {refusal}")
            return False
        self.say(f"{node.name}: {' '.join(words)}")
        return True

    def disconnect(self):
        running = self.nodes_running()
        node = self.draw.choice(running) if running else None
        if not self.command(node, "disconnect", "demo"):
            return False
        self.later(self.draw.uniform(0.1, 3), lambda: self.command(
            node if node in self.nodes_running() else None,
            "connect", "demo"))
        return True

    def invalidate_the_secondary(self):
        return self.command(self.role(False), "invalidate", "demo")

    def resync_in_full(self):
        return self.command(self.role(True), "resync", "demo", "--full")

    def slow_the_disk(self):
        if not self.throttled:
            return False
        away = self.draw.uniform(1, 4)
        self.say(f"the disk of alpha is slow for {away:.1f} s")
        self.throttled.throttle(SLOW_BYTES_S)
        self.later(away, self.throttled.heal)
        return True

    # ---------------------------------------------------------------- the run

    def run(self, minutes, seed):
        """All of it; the table at the end."""
        self.cluster.create()
        for node in self.cluster.nodes.values():
            node.start(self.wrap(node))
        wait_until("the two have met",
                   lambda: self.cluster.alpha.peer().get("state") == "idle")
        self.cluster.alpha.promote()
        self.cluster.wait_in_sync()
        self.operator.primary = self.cluster.alpha
        self.operator.appointed.append("alpha")
        self.serving.set(self.cluster.alpha)
        self.load = CheckedLoad(self.cluster, CHECKED_MIB, 400, seed)
        self.watch = Watch(self.cluster, load=False, probe_at=PROBE_MIB * MIB)
        wait_until("the watch sees writes", self.watch.acks)
        self.areas = [FioArea(self.serving, self.cluster.dir, number + 1, *shape)
                      for number, shape in enumerate(FIO_AREAS)]
        for area in self.areas:
            area.start()
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            gap = self.draw.expovariate(1 / MEAN_GAP_S)
            if self.draw.random() < 0.2:
                gap += 4  # now and then there is time for everything to be well
            self.pass_time(min(end, time.monotonic() + gap))
            if time.monotonic() < end:
                self.strike()
        return self.converge_and_check()

    def converge_and_check(self):
        """The faults are over: everything becomes well by itself and by the operator's rules."""
        self.say("no more faults; what is dead, stopped or cut comes back")
        self.pass_time(max([time.monotonic()] + [entry[0] for entry in self.due]))
        self.heal()
        healed = time.monotonic()
        for node in self.cluster.nodes.values():
            self.thaw(node)
            self.start(node)
        for node in self.cluster.nodes.values():
            wait_until(f"{node.name} answers", node.answers_or_died)
            self.command(node, "connect", "demo")
        while not self.operator.all_is_well():
            if time.monotonic() - healed > CONVERGES_WITHIN_S:
                raise TestFailed(f"after {CONVERGES_WITHIN_S} s still not both in sync")
            self.pass_time(time.monotonic() + 0.1)
        took = time.monotonic() - healed
        self.say(f"both are in sync after {took:.1f} s")
        self.serving.end()
        for area in self.areas:
            area.join(300)
            expect(not area.is_alive(), f"{area.name} does not end")
            expect(area.failure is None, area.failure)
        loaded = self.load.stop()
        self.cluster.wait_in_sync()
        checked = self.load.verify()
        # Whoever was never asked to become primary serves only what it has served before.
        self.watch.finish(self.operator.appointed)
        primary = self.cluster.primary()
        for area in self.areas:
            if area.content is not None:
                expect(area.verify(primary, self.serving.interruptions), f"{area.name} is lost")
        size = self.cluster.expect_identical()
        self.say("the disks are equal, and nothing that was acknowledged is missing")
        return self.table(took, loaded, checked, size)

    def table(self, converged_s, loaded, checked, size):
        """What happened, in numbers."""
        blocks = sum(area.read_back for area in self.areas)
        rows = [(kind, count) for kind, count in self.counts.items() if count]
        rows.insert(0, ("faults", sum(self.counts.values())))
        rows += [
            ("tenures", self.operator.tenures()),
            ("take-overs from a dead primary", self.operator.take_overs),
            ("planned hand-overs", self.operator.hand_overs),
            ("refusals of the operator's commands", sum(self.operator.refusals.values())),
            ("losses of all unflushed writes", self.power_losses),
            ("blkload: writes acknowledged", loaded["acked_writes"]),
            ("blkload: flushes acknowledged", loaded["acked_flushes"]),
            ("blkload: reads checked", loaded["reads"] + checked["reads"]),
            ("blkload: writes of unknown outcome", loaded["unknown_writes"]),
            ("blkload: longest pause, ms", loaded["longest_pause_ms"]),
            ("fio: bursts, of them interrupted", f"{sum(a.bursts for a in self.areas)}, "
                                                f"{sum(a.interrupted for a in self.areas)}"),
            ("fio: blocks read back and right", blocks),
            ("compared on both disks, MiB", size >> 20),
            ("converged after, s", f"{converged_s:.1f}"),
        ]
        return rows


def keep_evidence(chaos):
    """Adds what would be gone to the directory, and says where it is."""
    for node in chaos.cluster.nodes.values():
        out = node.ctl_raw("dump", "demo", timeout=30)[1]
        (node.dir / "dump.json").write_text(out)
        if node.is_running and node.name not in chaos.stopped:
            (node.dir / "status.json").write_text(node.ctl_raw("status", timeout=30)[1])
    if chaos.throttled:
        shutil.copy(chaos.throttled.file, chaos.cluster.dir / "demo-alpha.img")
    print(f"kept: {chaos.cluster.dir} (story, */log, */dump.json, journal, blkload.log, *.img)",
          flush=True)


def run_once(backing, minutes, seed):
    """One backing; true when all is well."""
    print(f"\n== {backing} backing, {minutes:g} minutes, seed {seed}", flush=True)
    draw = random.Random(f"{seed} {backing}")
    with contextlib.ExitStack() as stack:
        throttled, disks, kept = None, None, False
        if backing == "plain":
            try:
                throttled = stack.enter_context(ThrottledDisk(DISK_MIB))
                disks = {("demo", "alpha"): throttled.path}
            except Skip as why:
                print(f"no slow disk: {why}")
        # Held back for a moment only (P6), so that faults go on to hit members.
        timing = {"rejoin_delay_ms": 200, "rejoin_delay_max_ms": 2_000}
        cluster = Cluster(size_mib=DISK_MIB, namespaces=True, disks=disks, timing=timing,
                          backing="normal" if backing == "plain" else backing,
                          options="log_extents = 64", name="chaos")
        chaos = Chaos(cluster, backing, draw, throttled)
        try:
            rows = chaos.run(minutes, seed)
            panics = [node.name for node in cluster.nodes.values() if "panicked at" in node.log()]
            expect(not panics, f"the daemon of {panics} panicked")
        except Exception as error:
            kept = True
            chaos.say(f"FAILED: {error}")
            if not isinstance(error, TestFailed):
                traceback.print_exc(file=sys.stdout)
            keep_evidence(chaos)
            print(cluster.evidence(), flush=True)
            return False
        finally:
            chaos.serving.end()
            cluster.close(keep=kept)
    print(f"\n{backing} backing, {minutes:g} minutes, seed {seed}: passed")
    for what, value in rows:
        print(f"  {what:38} {value:>10}")
    print(flush=True)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 20))
    parser.add_argument("--backing", choices=("volatile", "plain", "both"), default="both")
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("cutting links needs network namespaces, and those need root")
        return 77
    backings = ("volatile", "plain") if given.backing == "both" else (given.backing,)
    minutes = given.minutes / len(backings)
    return 0 if all([run_once(backing, minutes, given.seed) for backing in backings]) else 1


if __name__ == "__main__":
    sys.exit(main())
