"""How long a client of a service waits when the machine of the primary goes down by its own systemd:
ext4, a floating address and a small service that makes each line durable, as in client_pauses.py; the
primary is a virtual machine, the other data node, the witness and the client are outside, on its bridge.
`reboot.py --services` calls this. Every run is one machine's whole way: told to go down, off, booted
again, in sync, primary again by a switchover.

The pause is the longest time without an answer that began when the order reached the machine or later.
Printed are, in seconds: `systemd` from the order to the first line of the daemon's stop, in which the
service still answers (`noticed` in the table); and of the pause: `silent`, how long there was no answer
when that stop began, from a machine that is busy; `stop`, from there or from the last answer, until the
last service has stopped; `release`, until the other node knows that the office is free; `take`, until it
starts the first service; `start`, until its first answer.
"""

import contextlib
import datetime
import os
import signal
import time

from machines import AGENT_PORT, BOOT_S, LEASE_MS, PATIENCE_S, WithMachines
from client_pauses import own_time, told
from cluster import expect, run, wait_until
from example import ADDRESS
from machine_clock import clock_ahead_s
from notes import PORT, Notes
from onlooker import Onlooker, mac_of
from pauses import Kind, Pause, longest_wait
from trio import stay

# A hand-over that took so long was none.
HANDED_OVER_S = LEASE_MS / 1000 * 0.6
# After a switchover the machine has other things to do for a while.
SETTLED_S = 5
# Each costs an emulated server a thread.
KNOCKS_EVERY_S = 0.25


class RebootedNotes(WithMachines, Notes):
    """alpha is a virtual machine whose state outlives it."""

    def __init__(self):
        super().__init__()
        self.onlooker = None
        self.box.looks += ("tail -n 60 /var/lib/replicator/log",)

    def config_inside(self, node):
        # Run directory and devices are where they are on every machine, and gone with its power.
        lines = super().config_inside(node).splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith(("run_dir", "device_dir")))
        return text.replace('"link0"', '"eth0"').replace('attach = "fuse"', 'attach = "nbd"')

    def start(self, watched=False):
        self.create()
        self.make_state(self.alpha)
        self.boot()
        for node in (self.beta, self.gamma):
            node.start()
        self.box.wait_until_up()
        self.wait_in_sync_outside(BOOT_S)
        self.begin_writing(begins_within_s=PATIENCE_S)
        macs = {self.box.mac: "alpha", mac_of(self.beta.namespace): "beta"}
        self.onlooker = Onlooker(self, ADDRESS, PORT, macs, knocks_every_s=KNOCKS_EVERY_S)
        return self

    def boot(self):
        """Switches the machine on."""
        self.box.boot("reboot_services_inside.sh", str(AGENT_PORT), limit_s=3600,
                      options=("--disk", self.state(self.alpha)))

    def go_on(self, whether):
        """The client stands still while nothing is measured: nobody else gets a processor beside it."""
        self.items.program.send_signal(signal.SIGCONT if whether else signal.SIGSTOP)

    def fetch_log(self, ahead_s):
        """The log of alpha's daemon, whose machine is off, becomes that of its node, by our clock."""
        text = run("debugfs", "-R", "cat log", self.state(self.alpha)).stdout
        lines, at = [], "1970-01-01T00:00:00+00:00"
        for line in text.splitlines():
            word, _, rest = line.partition(" ")
            try:
                seen = datetime.datetime.fromisoformat(word)
            except ValueError:
                rest = line
            else:
                at = (seen - datetime.timedelta(seconds=ahead_s)).isoformat()
            lines.append(f"{at} {rest}\n")
        self.alpha.log_path.write_text("".join(lines))

    def close(self, keep=False):
        if self.onlooker:
            self.onlooker.close()
        super().close(keep)


def one_run(cluster, verb):
    """The machine is told to go down, and comes back; how long the client waited."""
    cluster.give_office_to("alpha")
    cluster.go_on(True)
    cluster.items.wait_for_more(deadline_s=PATIENCE_S)
    stay(SETTLED_S)
    cluster.items.wait_for_more(deadline_s=PATIENCE_S)
    before = cluster.answers()[-1][2]
    expect(before.startswith("alpha"), f"{before} answers, alpha is primary")
    revision = cluster.history()[-1]["revision"]
    ahead_s = clock_ahead_s(cluster.client_namespace, cluster.box.host)
    since, since_1970 = time.monotonic(), time.time()
    # Its agent is stopped by this, perhaps before it answers; whether it worked is seen below.
    with contextlib.suppress(OSError):
        cluster.box.tell(f"systemctl --no-block {verb}")
    first = wait_until("the service answers again", lambda: [
        ended for began, ended, who in cluster.answers()
        if began > since and who.startswith("beta")], PATIENCE_S)[0]
    stay(0.3)
    cluster.go_on(False)
    answers = cluster.answers()
    last = max(ended for _, ended, who in answers if who == before)
    wait = longest_wait([ended for _, ended, _ in answers], since)
    wait_until("the machine is off", lambda: not cluster.box.is_running, PATIENCE_S)
    code = cluster.box.process.wait()
    expect(code == 0, f"the machine did not go down well ({code})")
    cluster.fetch_log(ahead_s)
    pause = explained(cluster, wait, since_1970,
                      (since_1970 + last - since, since_1970 + first - since))
    expect(pause.release + pause.take < HANDED_OVER_S, "between stop and start of the services "
           f"{pause.release + pause.take:.2f} s went by: a time-out, not a hand-over")
    changes = [entry for entry in cluster.history() if entry["revision"] > revision]
    expect(any(entry["what"].startswith("release") and entry["by"] == "alpha" for entry in changes),
           f"alpha never released the office: {[(it['what'], it['by']) for it in changes]}")
    cluster.boot()
    cluster.box.wait_until_up()
    cluster.wait_in_sync_outside(BOOT_S)
    return pause


def explained(cluster, waited, since, answered):
    """The pause with its parts, by the logs of both nodes; `answered`: when alpha did last, and beta
    first."""
    last_at, answered_at = answered
    alpha, beta = cluster.alpha, cluster.beta
    stopping = [at for at, _ in told(alpha, since, r"INFO stopping$")]
    expect(stopping, "alpha's log has no orderly stop")
    stopped = max(at for at, _ in told(alpha, since, r"\S+: stopped after \d+ ms"))
    released = max(at for at, _ in told(beta, since, r"register revision \d+: release ")
                   if at < answered_at)
    starting = min(at - int(match[1]) / 1000
                   for at, match in told(beta, since, r"\S+: started after (\d+) ms"))
    pause = Pause(waited, stopping[0] - since, own_time(alpha, beta, since, answered_at))
    pause.silent = max(0.0, stopping[0] - last_at)
    pause.stop = stopped - max(stopping[0], last_at)
    pause.release = released - stopped
    pause.take, pause.start = starting - released, answered_at - starting
    return pause


def measure(verb, runs, times):
    """All runs of one way to go down on one cluster."""
    with RebootedNotes() as cluster:
        cluster.start()
        for _ in range(runs):
            load = os.getloadavg()[0]
            times.append(one_run(cluster, verb))
            one = times[-1]
            print(f"\n    {one:.3f} (systemd {one.noticed:.3f}; silent {one.silent:.3f}, stop "
                  f"{one.stop:.3f}, release {one.release:.3f}, take {one.take:.3f}, start "
                  f"{one.start:.3f}; own {one.own:.3f}; load {load:.1f})", end="", flush=True)
        print()
        cluster.items.finish(cluster.kept, told=False)
        cluster.onlooker.expect_never_two()
        cluster.expect_identical()


# No goal: on emulated processors what the services themselves take is most of it.
KINDS = {verb: Kind(None, f"`systemctl {verb}` of the machine (emulated)", True, None)
         for verb in ("reboot", "poweroff")}
