"""The end of the demo: PostgreSQL on the replicated disk, behind a floating address. Three machines in
network namespaces on a bridge, a client beside them that reconnects; twice the machine of the
primary is lost, once dead and once cut off alive. Every committed row must be there."""

import os
import shutil
import time

from cluster import Skip, expect, wait_until
from example import ADDRESS
from trio_postgres import Database, postgres_binaries

ROWS = 100


def left_out():
    """Why this part cannot be shown here; none when it can."""
    if os.geteuid() != 0:
        return "it needs root, for network namespaces and mounts"
    missing = [name for name in ("ip", "nft", "unshare", "nsenter") if not shutil.which(name)]
    if missing:
        return f"it needs {', '.join(missing)}"
    try:
        postgres_binaries()
    except Skip as why:
        return f"it {why}"
    return None


def begin(told, cluster):
    told.chapter("What people run on it: PostgreSQL, behind a floating address")
    told.line("alpha, beta and gamma again, now each a machine of its own on a network, and a client")
    told.line(f"on a fourth one. The services of the resource, as in tools/deploy/examples: mount "
              f"ext4,")
    told.line(f"take the address {ADDRESS}, start PostgreSQL")
    began = time.monotonic()
    cluster.start()
    told.line(f"initdb, resync, and PostgreSQL answers on alpha: {time.monotonic() - began:.1f} s")
    rows = cluster.rows()
    rows.wait_for_more(ROWS)
    told.line(f"the client knows {ADDRESS} and nothing else; it inserts numbered rows, one a commit, "
              f"and connects")
    told.line(f"again when it is cut off: {len(rows.promises())} rows committed")
    return rows


def taken_over(told, cluster, rows, node, since):
    """Waits until clients go on with a node; how long they waited."""
    wait_until(f"{node.name} is primary", lambda: cluster.office(node)["primary"] == node.name, 30)
    rows.wait_for_more(ROWS)
    last = node.ctl("status")["cluster_state"]["last_change"]
    told.line(f"the register: {last}")
    return rows.longest_pause(since)


def power_is_cut(told, cluster, rows):
    alpha, beta = cluster.alpha, cluster.beta
    told.chapter("The machine of the database dies: SIGKILL of everything on alpha, its cable pulled")
    since = time.monotonic()
    cluster.isolate(alpha)
    alpha.cut_power()
    pause = taken_over(told, cluster, rows, beta, since)
    told.line(told.bold(f"the client waited {pause:.2f} s; it writes to beta now"))
    cluster.heal()
    alpha.start()
    cluster.wait_in_sync()
    told.line("alpha is back, with everything, as the secondary")
    return pause


def network_is_cut(told, cluster, rows):
    alpha, beta = cluster.alpha, cluster.beta
    told.chapter("The other way round: beta lives, and is cut off from everybody")
    since = time.monotonic()
    cluster.isolate(beta)
    pause = taken_over(told, cluster, rows, alpha, since)
    told.line(told.bold(f"the client waited {pause:.2f} s; it writes to alpha now"))
    cluster.heal()
    cluster.wait_in_sync()
    expect(cluster.office(alpha)["primary"] == "alpha", "alpha did not stay primary")
    told.line("beta is back: it had stopped its database by itself, and follows")
    return pause


def tell(told):
    """The whole part: lines for the summary."""
    with Database() as cluster:
        rows = begin(told, cluster)
        killed = power_is_cut(told, cluster, rows)
        cut = network_is_cut(told, cluster, rows)
        told.chapter("Is every committed row there?")
        promised, _ = rows.finish(cluster.kept, told=False)
        told.line(told.bold(f"{promised} rows were committed, none is missing"))
    return [("PostgreSQL, client's wait, machine dead", f"{killed:.2f} s"),
            ("PostgreSQL, client's wait, machine cut off", f"{cut:.2f} s"),
            ("committed rows lost", f"0 of {promised}")]
