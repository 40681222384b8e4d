"""Step of services.py: a file system of the replicated device, and who does not let it go."""

import time

from demo_cluster import PATIENCE_S
from cluster import expect, wait_until

PLACE = "/srv/demo"


def step_respawning(cluster):
    """V3: a unit of somebody else holds the file system, ignores SIGTERM, and systemd starts it again
    at once (Restart=always): a switchover names it, kills it, and the file system is gone from alpha,
    with the kernel's nbd device, before beta begins; then it can be mounted here again."""
    cluster.serve_on("beta")
    cluster.box.inside(f"modprobe -a nbd ext4; mkdir -p {PLACE}")
    cluster.attaches = True
    cluster.restart_alpha(cluster.watchdog)
    cluster.serve_on("alpha")
    cluster.box.inside("mkfs.ext4 -q /var/lib/replicator/dev/demo")
    cluster.serve_on("beta")
    cluster.mount = PLACE
    cluster.restart_alpha(cluster.watchdog)
    cluster.serve_on("alpha")
    source = cluster.box.inside(f"findmnt -n -o SOURCE {PLACE}").strip()
    expect(source.startswith("/dev/nbd"), f"mounted is {source}")
    cluster.box.inside(
        "systemd-run -q --unit=squatter -p Restart=always -p RestartSec=0 -p StartLimitIntervalSec=0 "
        f"bash -c 'trap \"\" TERM; cd {PLACE}; while :; do sleep 1; done'")
    wait_until("it is there", lambda: cluster.box.inside(
        f"readlink /proc/$(systemctl show -P MainPID squatter)/cwd || true").strip() == PLACE,
               PATIENCE_S)
    first_process = cluster.main_process("squatter")
    cluster.wait_in_sync_outside()
    since, began = cluster.clock_ms(), time.monotonic()
    cluster.serve_on("beta")
    cluster.wait_for_event(since, PLACE, "stop failed (orderly)", "busy", f"bash ({first_process})")
    gone = cluster.wait_for_event(since, PLACE, "stopped after")
    expect(cluster.main_process("squatter") not in (0, first_process), "it was not killed")
    expect(not cluster.box.inside(f"findmnt -n {PLACE} || true"), "it is mounted on alpha")
    expect(cluster.box.inside("cat /sys/block/nbd0/size").strip() == "0", "the device is not gone")
    cluster.serve_on("alpha")
    expect(cluster.box.inside(f"findmnt -n -o SOURCE {PLACE}").strip() == source, "not mounted again")
    cluster.serve_on("beta")
    cluster.box.inside("systemctl -q kill -s KILL squatter; systemctl -q stop squatter || true")
    cluster.attaches, cluster.mount = False, None
    cluster.restart_alpha(cluster.watchdog)
    return f"let go {(gone[0] - since) / 1000:.1f} s after the order, which took {time.monotonic() - began:.0f} s in all"
