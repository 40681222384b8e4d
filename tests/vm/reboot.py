#!/usr/bin/env python3
"""H8: the primary is a virtual machine whose systemd reboots it or switches it off; the other data node,
the witness and a client that writes are outside, on the same bridge. The office must be handed over:
released by the primary, and taken long before its lease could have run out.

    reboot.py [reboot|poweroff]...      both by default
    reboot.py --services [--runs N] [--json FILE] [--markdown FILE] [reboot|poweroff]...
                                        how long a client of a service waits, see reboot_services.py

Exit code: 0 all well, 1 something failed, 77 it cannot be tried here (no root).
"""

import os
import sys
import time

import reboot_services
from machines import BOOT_S, LEASE_MS, WithMachines, exit_code
from cluster import expect, wait_until
from pauses import run_all
from reboot_services import HANDED_OVER_S
from trio import CLIENT_ADDRESS
from watch import Watch


class Reboot(WithMachines):
    """A trio whose alpha is a virtual machine; the replicas have the shipped time-outs."""

    session = {}

    def say_now(self):
        """Lets the machine go down: its script waits for this port to open."""
        return self.spawn("ip", "netns", "exec", self.client_namespace, sys.executable, "-c",
                          "import socket, time; s = socket.create_server(('', 4444)); "
                          "s.accept(); time.sleep(600)", log=os.devnull)


def goes_down(verb):
    """One run; seconds that the client waited."""
    with Reboot() as cluster:
        cluster.create()
        machine = cluster.box
        # At a word of ours its script does `verb`.
        machine.boot("reboot_inside.sh", verb, CLIENT_ADDRESS)
        for node in (cluster.beta, cluster.gamma):
            node.start()
        wait_until("the machine is primary and both replicas are in sync", lambda:
                   not machine.is_running or (
                       cluster.office(cluster.beta)["primary"] == "alpha"
                       and len(cluster.office(cluster.beta)["in_sync"]) == 2), BOOT_S)
        expect(machine.is_running, "the machine ended before it joined")
        cluster.watch = Watch(cluster, load=False, pause_ms=20, over_tcp=True)
        cluster.wait_for_acks("alpha", 60)
        cluster.say_now()
        wait_until("the machine goes down", lambda: "GOING DOWN" in machine.console(), 60)
        cluster.wait_for_acks("beta", 120)
        acks = cluster.watch.acks()
        last = max(ack[2] for ack in acks if ack[0] == "alpha")
        first = min(ack[2] for ack in acks if ack[0] == "beta")
        changes = cluster.history()
        told = [f"{entry['what']} by {entry['by']}" for entry in changes]
        expect(any(entry["what"].startswith("release") and entry["by"] == "alpha"
                   for entry in changes), f"alpha never released the office: {told}")
        expect(first - last < HANDED_OVER_S, f"{first - last:.2f} s between the last answer of alpha "
               f"and the first of beta: a time-out, not a hand-over: {told}")
        code = machine.process.wait(timeout=180)
        expect(code == 0, f"the machine did not go down well ({code})")
        cluster.watch.expect_one_primary_at_a_time()
        return first - last


def main():
    for verb in sys.argv[1:] or ["reboot", "poweroff"]:
        began = time.monotonic()
        pause = goes_down(verb)
        print(f"ok      systemctl {verb} of the primary is a hand-over: the client waited "
              f"{pause:.2f} s, the lease is {LEASE_MS / 1000:.0f} s "
              f"({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    if "--services" in sys.argv:
        sys.argv.remove("--services")
        sys.exit(run_all(reboot_services.__doc__, reboot_services.KINDS, reboot_services.measure))
    sys.exit(exit_code(main))
