"""Scenarios: daemons are killed, stopped and restarted under load."""

import json
import signal
import time

from cluster import MIB, Cluster, expect, on_each_backing, run, wait_until
from nbd_client import WRITE
from throttled_disk import ThrottledDisk


def start_fio(cluster, seconds, extra=()):
    """A verifying load on the primary."""
    return cluster.spawn(
        "fio", "--name=load", "--ioengine=nbd", f"--uri={cluster.alpha.uri()}", "--rw=randrw",
        "--bs=4k", "--iodepth=8", "--size=16M", "--time_based", f"--runtime={seconds}",
        "--verify=crc32c", "--verify_fatal=1", "--fsync=128", "--rate_iops=1500,1500",
        f"--aux-path={cluster.dir}", *extra, log=cluster.dir / "fio.log")


def finish(cluster, child, what, timeout_s=60):
    """The load ends without an error."""
    code = child.wait(timeout_s)
    log = (cluster.dir / f"{what}.log").read_text(errors="replace")
    expect(code == 0, f"{what} ended with {code}:\n{log[-3000:]}")
    return log


class Blkload:
    """The load whose every answer is checked against its history."""

    def __init__(self, cluster, *nodes):
        self.cluster = cluster
        self.journal = cluster.dir / "journal"
        self.program = cluster.bin / "blkload"
        self.uris = [word for node in nodes for word in ("--uri", node.blkload_uri())]
        self.common = ["--journal", self.journal, "--json"]

    def start(self, seconds, *extra):
        """Runs in the background and looks for a server again when it lost one."""
        return self.cluster.spawn(
            self.program, "run", *self.uris, *self.common, "--seconds", seconds, "--connections", 3,
            "--reconnect-seconds", 25, *extra, log=self.cluster.dir / "blkload.log")

    def finish(self, child):
        """No violation while it ran."""
        log = finish(self.cluster, child, "blkload", 90)
        return json.loads(log.strip().splitlines()[-1])

    def verify(self, *extra):
        """Reads all back: nothing lost, resurrected, unread or torn."""
        done = run(self.program, "verify", *self.uris, *self.common, *extra, check=False)
        expect(done.returncode == 0, f"blkload found violations:\n{done.stdout}{done.stderr}")


def wait_for_writes(node, count, deadline_s=20):
    """Until the primary has answered so many more writes."""
    began = node.status()["counters"]["writes"]
    wait_until(f"{count} writes were answered",
               lambda: node.status()["counters"]["writes"] >= began + count, deadline_s)


def h1_a_killed_secondary_returns_under_load_and_no_client_sees_it(backing):
    with Cluster(size_mib=96, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        load = start_fio(cluster, 7)
        wait_for_writes(alpha, 300)
        for away_s in (0.1, 2):
            beta.kill()
            killed = time.monotonic()
            wait_for_writes(alpha, 200)
            expect(alpha.peer()["dirty_bytes"] > 0, "no dirty blocks while the secondary is away")
            wait_until("it was away long enough", lambda: time.monotonic() > killed + away_s)
            beta.start()
            cluster.wait_in_sync()
            wait_for_writes(alpha, 100)
        finish(cluster, load, "fio")
        expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")
        cluster.expect_identical()


def a_returning_secondary_gets_the_dirty_blocks_and_no_more():
    with Cluster(size_mib=128) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        finish(cluster, start_fio(cluster, 2), "fio")
        beta.kill()
        finish(cluster, start_fio(cluster, 2, ["--offset=50M"]), "fio")
        dirty, sent = alpha.peer()["dirty_bytes"], alpha.resync_bytes_sent()
        expect(dirty > MIB, f"only {dirty} dirty bytes: the load did nothing")
        beta.start()
        cluster.wait_in_sync()
        copied = alpha.resync_bytes_sent() - sent
        received = beta.peer()["received_bytes"][0]
        print(f"    {dirty} bytes dirty, {copied} sent, {received} received")
        expect(copied <= 1.1 * dirty, f"{copied} bytes were sent for {dirty} dirty bytes")
        expect(received == copied, f"{received} bytes were received, {copied} sent")
        cluster.expect_identical()

        sent = alpha.resync_bytes_sent()
        beta.stop()
        beta.start()
        cluster.wait_in_sync()
        copied = alpha.resync_bytes_sent() - sent
        expect(copied == 0, f"{copied} bytes were sent after an orderly stop")
        cluster.expect_identical()


def h1_a_killed_primary_loses_nothing_when_the_other_node_takes_over(backing):
    with Cluster(size_mib=64, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(7)
        wait_for_writes(alpha, 300)
        alpha.kill()
        killed = time.monotonic()
        beta.take_over()
        wait_for_writes(beta, 100)
        took = time.monotonic() - killed
        alpha.start()
        cluster.wait_in_sync()
        blkload.finish(load)
        blkload.verify()
        cluster.expect_identical()
        expect(cluster.primary() is beta, "the old primary took the office back")
        print(f"    {took:.2f} s from SIGKILL to 100 answered writes on the other node")


def d11_both_lose_their_unflushed_writes_at_once_and_flushed_ones_stay():
    with Cluster(size_mib=64, backing="volatile") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(60, "--mix", "read=30,write=40,fua=5,flush=10,zero=8,trim=4")
        wait_for_writes(alpha, 300)
        beta.kill()
        alpha.kill()
        load.send_signal(signal.SIGTERM)
        load.wait(30)
        for node in (alpha, beta):
            node.start()
        wait_until("the two have met", lambda: alpha.peer().get("state")
                   not in (None, "", "disconnected", "connecting"))
        if alpha.replica()["role"] != "primary":
            alpha.promote()
        cluster.wait_in_sync()
        blkload.verify("--note", "power-lost")
        cluster.expect_identical()


def d19_four_fail_overs_in_a_row_with_outages_in_between(backing):
    """Bitmaps on both sides, each node ahead of the other in turn."""
    with Cluster(size_mib=64, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(10)
        primary, secondary = alpha, beta
        for _ in range(4):
            wait_for_writes(primary, 200)
            primary.kill()
            secondary.take_over()
            wait_for_writes(secondary, 200)
            primary.start()
            cluster.wait_in_sync()
            primary, secondary = secondary, primary
        blkload.finish(load)
        blkload.verify()
        cluster.expect_identical()


def h1_a_killed_primary_that_is_restarted_at_once_resumes_its_office():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        tenure = alpha.replica()["tenure"]
        blkload = Blkload(cluster, alpha)
        load = blkload.start(5)
        wait_for_writes(alpha, 300)
        alpha.kill()
        alpha.start()
        wait_until("it is primary again", lambda: alpha.replica()["role"] == "primary")
        expect(alpha.replica()["tenure"] == tenure, "a resumed office has another tenure")
        wait_for_writes(alpha, 100)
        blkload.finish(load)
        blkload.verify()
        cluster.wait_in_sync()
        cluster.expect_identical()


def h1_a_killed_primary_that_lost_its_cache_does_not_resume_its_office():
    """The other one has what was lost here: it is the one to serve."""
    with Cluster(size_mib=64, backing="volatile") as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(5)
        wait_for_writes(alpha, 300)
        alpha.kill()
        alpha.start()
        wait_until("the two have met", lambda: beta.peer()["state"] == "idle")
        alpha.refuses("promote", "demo", code="power_was_lost")
        beta.promote()
        wait_for_writes(beta, 100)
        blkload.finish(load)
        blkload.verify()
        cluster.wait_in_sync()
        cluster.expect_identical()


def h2_a_primary_stopped_for_a_moment_goes_on_as_if_nothing_had_been():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        tenure = alpha.replica()["tenure"]
        load = start_fio(cluster, 5)
        for stopped_s in (0.4, 2):
            wait_for_writes(alpha, 200)
            alpha.signal(signal.SIGSTOP)
            began = time.monotonic()
            wait_until("it was stopped", lambda: time.monotonic() > began + stopped_s)
            alpha.signal(signal.SIGCONT)
        finish(cluster, load, "fio")
        cluster.wait_in_sync()
        expect(alpha.replica()["tenure"] == tenure, "another tenure began")
        expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")
        cluster.expect_identical()


def hang(disk, node):
    """No write ends any more; returns when writes of the node are on their way to the disk. Many
    requests alone may only mean a busy machine, and those that wait for a block of the log, or for
    the peer, are not on their way."""
    disk.hang()
    wait_until("writes wait for the disk", lambda: (
        (found := node.replica())["requests"] >= 20
        and any(wait["party"] == "disk" and wait["since_ms"] >= 500 for wait in found["waits"])))


def d21_writes_of_a_killed_daemon_that_land_late_do_no_harm():
    """R2e: the disk of the primary is very slow; what was on its way to it when
    the daemon was killed lands seconds later, and the next daemon waits for that, visibly."""
    with ThrottledDisk(64) as disk, Cluster(disks={("demo", "alpha"): disk.path}) as cluster:
        alpha, beta = cluster.start(wraps={"alpha": disk.wrap}).alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        # Without flushes: a thread that waits for one keeps the process there (see below).
        load = blkload.start(8, "--max-request", "512K", "--mix", "write=10,read=1")
        wait_for_writes(alpha, 200)
        hang(disk, alpha)
        alpha.kill()
        alpha.spawn()
        waited = wait_until("the next daemon waits for the disk, and says so", lambda: (
            alpha.ctl_raw("status")[0] in (0, 4)
            and alpha.status()["state"] == "starting" and alpha.status()["why"]))
        print(f"    the next daemon: {waited}")
        beta.take_over()
        wait_for_writes(beta, 50)
        before = disk.sectors_written()
        disk.throttle(MIB // 16)
        # Nobody else has this disk as long as the next daemon waits for it.
        wait_until("a write lands after the kill", lambda: (
            disk.sectors_written() > before and alpha.status()["state"] == "starting"))
        disk.heal()
        wait_until("the disk is free", lambda: alpha.status()["state"] == "up")
        cluster.wait_in_sync()
        blkload.finish(load)
        blkload.verify()
        cluster.expect_identical()


def a_killed_daemon_that_a_disk_holds_back_is_told_by_status_and_by_the_next_one():
    """One of its threads writes zeroes, at once, and waits: its sockets take connections, its locks
    are held."""
    with ThrottledDisk(64) as disk, Cluster(disks={("demo", "alpha"): disk.path}) as cluster:
        alpha, beta = cluster.start(wraps={"alpha": disk.wrap}).alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(5, "--mix", "write=10,zero=10")
        wait_for_writes(alpha, 200)
        hang(disk, alpha)
        killed = alpha.process
        killed.kill()
        code, _, said = alpha.ctl_raw("status", as_json=False, timeout=10)
        expect(code == 3 and f"process {killed.pid}, was killed and is not gone" in said, said)
        alpha.process = None
        alpha.spawn()
        wait_until("the next one has ended", lambda: not alpha.is_running)
        said = alpha.log_tail()
        expect(f"process {killed.pid}, the replicatord of alpha before" in said, said)
        expect(killed.poll() is None, "the killed one had ended: the scenario did not happen")
        disk.heal()
        killed.wait()
        alpha.start()
        blkload.finish(load)
        blkload.verify()


def h2_a_stopped_process_of_the_secondary_is_left_out_and_comes_back():
    """SIGSTOP; nothing closes the connection, only silence tells."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        load = start_fio(cluster, 5)
        wait_for_writes(alpha, 200)
        beta.signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_until("it left the set", lambda: not alpha.peer()["is_member"], 10)
        wait_for_writes(alpha, 50)
        print(f"    clients waited at most {time.monotonic() - began:.1f} s")
        beta.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        finish(cluster, load, "fio")
        cluster.expect_identical()


def h2_a_primary_stopped_for_a_while_and_replaced_meanwhile_never_serves_again():
    """The operator was wrong, the old primary was not off. Its client gets no answer from the
    old tenure after the other node took over, and what only it has is reported, not merged."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        with alpha.client() as client:
            client.write(0, b"1" * 4096, fua=True)
        held = alpha.client()
        alpha.signal(signal.SIGSTOP)
        held.send_request(WRITE, 8 * MIB, 4096, b"old" * 1365 + b"!")
        beta.take_over()
        with beta.client() as client:
            expect(client.read(0, 4096) == b"1" * 4096, "an acknowledged write is missing")
            client.write(0, b"2" * 4096, fua=True)
        alpha.signal(signal.SIGCONT)
        wait_until("the old primary gave up", lambda: alpha.replica()["role"] == "secondary")
        wait_until("the old primary is in step or refused", lambda: (
            alpha.replica()["data"] == "diverged" or beta.peer()["is_member"]))
        if alpha.replica()["data"] == "diverged":
            expect(beta.peer()["diverged_blocks"] > 0, "the number of diverged blocks is missing")
            alpha.ctl("resync", "demo", "--discard")
        cluster.wait_in_sync()
        expect(cluster.primary() is beta, "the wrong node is primary")
        with beta.client() as client:
            expect(client.read(0, 4096) == b"2" * 4096, "a write of the new primary is missing")
            expect(client.read(8 * MIB, 4096) == bytes(4096), "a write of the old tenure came back")
        cluster.expect_identical()


SCENARIOS = [
    *on_each_backing(h1_a_killed_secondary_returns_under_load_and_no_client_sees_it),
    a_returning_secondary_gets_the_dirty_blocks_and_no_more,
    *on_each_backing(h1_a_killed_primary_loses_nothing_when_the_other_node_takes_over),
    d11_both_lose_their_unflushed_writes_at_once_and_flushed_ones_stay,
    *on_each_backing(d19_four_fail_overs_in_a_row_with_outages_in_between),
    h1_a_killed_primary_that_is_restarted_at_once_resumes_its_office,
    h1_a_killed_primary_that_lost_its_cache_does_not_resume_its_office,
    h2_a_primary_stopped_for_a_moment_goes_on_as_if_nothing_had_been,
    d21_writes_of_a_killed_daemon_that_land_late_do_no_harm,
    a_killed_daemon_that_a_disk_holds_back_is_told_by_status_and_by_the_next_one,
    h2_a_stopped_process_of_the_secondary_is_left_out_and_comes_back,
    h2_a_primary_stopped_for_a_while_and_replaced_meanwhile_never_serves_again,
]
