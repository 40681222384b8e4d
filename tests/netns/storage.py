"""Scenarios: disks that fail, are exchanged, have the wrong size; resyncs that are interrupted.
The numbers in the names are those of the list of what must survive. Those that kill take the
backing: `normal`, or `volatile`, which loses at SIGKILL what was not flushed."""

import errno
import os
import shutil
import signal

from cluster import BLOCK, MIB, Cluster, expect, on_each_backing, wait_until
from faulty_disk import FaultyDisk
from kills import Blkload, wait_for_writes
from nbd_client import Failed, Lost
from roles import fill, holds

# A disk behind FUSE does not tell its sector size; the other one must agree.
LARGE_BLOCKS = ("--block-size", "4096")


def write_until_it_fails(client, byte, count=4000):
    """Writes blocks until one is refused; how many were acknowledged and the error."""
    for number in range(count):
        try:
            client.write(number % 2000 * BLOCK, byte * BLOCK)
        except (Failed, Lost) as error:
            return number, error
    raise AssertionError(f"{count} writes on a broken disk were acknowledged")


def d1_a_write_error_of_the_secondary_takes_it_out_and_no_client_sees_it():
    with FaultyDisk(64) as disk, Cluster(disks={("demo", "beta"): disk.path},
                                        create_flags=LARGE_BLOCKS) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"a")
        disk.fail("pwrite", "zero")
        fill(alpha, range(50, 200), b"b")
        wait_until("it left the set", lambda: not alpha.peer()["is_member"])
        expect(alpha.status()["counters"]["errors"] == 0, "a client saw an error")
        beta.refuses("promote", "demo", "--old-primary-is-off")
        beta.kill()
        disk.heal()
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def d1_a_write_error_of_the_primary_hands_over_and_loses_nothing():
    """The write that fails is not acknowledged; the other node has everything that was."""
    with FaultyDisk(64) as disk, Cluster(disks={("demo", "alpha"): disk.path},
                                        create_flags=LARGE_BLOCKS) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(3000), b"a")
        disk.fail("pwrite", "zero")
        with alpha.client() as client:
            done, error = write_until_it_fails(client, b"b")
        expect(done == 0, f"{done} writes were acknowledged: {error}")
        wait_until("alpha gave up", lambda: alpha.replica()["role"] == "secondary")
        alpha.refuses("promote", "demo", code="no_disk")
        # Its metadata are on the same disk, so it can give nothing away: that takes an operator.
        beta.refuses("promote", "demo", code="peer_unreachable")
        alpha.kill()
        beta.take_over()
        expect(holds(beta, range(2000, 3000), b"a"), "an acknowledged write is missing")
        fill(beta, range(3000, 3100), b"c")
        disk.heal()
        alpha.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def d1_a_read_error_of_the_primary_fails_that_request_and_nothing_else():
    with FaultyDisk(64) as disk, Cluster(disks={("demo", "alpha"): disk.path},
                                        create_flags=LARGE_BLOCKS) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"a")
        disk.fail("pread")
        with alpha.client() as client:
            try:
                data = client.read(0, BLOCK)
                expect(data == b"a" * BLOCK, "wrong data instead of an error")
            except Failed as error:
                expect(error.code == errno.EIO, f"the client got {error}")
            client.write(200 * BLOCK, b"b" * BLOCK, fua=True)
        expect(alpha.peer()["is_member"], "the good replica was thrown out")
        alpha.ctl("demote", "demo")
        beta.promote()
        expect(holds(beta, range(100), b"a") and holds(beta, [200], b"b"), "data are missing")
        disk.heal()
        cluster.wait_in_sync()
        cluster.expect_identical()


def metadata_on(of_alpha, of_beta):
    """Lines of the configuration: the metadata of the two nodes on these disks."""
    return f'metadata.alpha = "{of_alpha.path}"\nmetadata.beta = "{of_beta.path}"'


def d1_metadata_of_the_primary_that_cannot_be_written_acknowledge_nothing_that_needs_them():
    """The log cannot be written, so a cold extent cannot become hot: such a write fails, and is
    not acknowledged on faith. What was acknowledged before is on the other node."""
    with FaultyDisk(8) as disk, FaultyDisk(8) as other_disk:
        with Cluster(options=metadata_on(disk, other_disk)) as cluster:
            alpha, beta = cluster.start().alpha, cluster.beta
            fill(alpha, range(100), b"a")
            disk.fail("pwrite", "zero")
            with alpha.client(timeout_s=20) as client:
                try:
                    client.write(40 * MIB, b"b" * BLOCK)
                    acknowledged = True
                except (Failed, Lost):
                    acknowledged = False
            alpha.kill()
            beta.take_over()
            expect(holds(beta, range(100), b"a"), "an acknowledged write is missing")
            if acknowledged:
                expect(holds(beta, [40 * MIB // BLOCK], b"b"), "an acknowledged write is missing")
            disk.heal()
            alpha.start()
            cluster.wait_in_sync()
            cluster.expect_identical()


def d1_metadata_of_the_secondary_that_cannot_be_written_disturb_no_client():
    with FaultyDisk(8) as other_disk, FaultyDisk(8) as disk:
        with Cluster(options=metadata_on(other_disk, disk)) as cluster:
            alpha, beta = cluster.start().alpha, cluster.beta
            fill(alpha, range(100), b"a")
            disk.fail("pwrite", "zero")
            fill(alpha, range(50, 200), b"b")
            alpha.ctl("disconnect", "demo")
            wait_until("it left the set", lambda: not alpha.peer()["is_member"])
            fill(alpha, range(150, 300), b"c")
            alpha.ctl("connect", "demo")
            expect(alpha.status()["counters"]["errors"] == 0, "a client saw an error")
            beta.kill()
            disk.heal()
            beta.start()
            cluster.wait_in_sync()
            cluster.expect_identical()


def d22_when_the_disk_of_the_last_member_fails_every_failure_is_told():
    """R16: it never detaches, and a failed write is never acknowledged; when the disk is well
    again it serves on, and the other node gets all of it."""
    with FaultyDisk(64) as disk, Cluster(disks={("demo", "alpha"): disk.path},
                                        create_flags=LARGE_BLOCKS) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(200), b"a")
        beta.stop()
        wait_until("beta left", lambda: not alpha.peer()["is_member"])
        disk.fail("pwrite", "zero")
        with alpha.client() as client:
            done, error = write_until_it_fails(client, b"b")
            expect(done == 0, f"{done} writes were acknowledged")
            expect(isinstance(error, Failed) and error.code == errno.EIO, f"it got {error}")
            expect(client.read(150 * BLOCK, BLOCK) == b"a" * BLOCK, "reads fail too")
            disk.fail("pread")
            try:
                client.read(160 * BLOCK, BLOCK)
                raise AssertionError("a read of a broken disk was answered")
            except Failed as error:
                expect(error.code == errno.EIO, f"it got {error}")
        beta.start()
        beta.refuses("promote", "demo", "--old-primary-is-off")
        disk.heal()
        if alpha.replica()["role"] != "primary":
            alpha.kill()
            alpha.start()
            wait_until("it serves again", lambda: alpha.replica()["role"] == "primary")
        fill(alpha, range(300, 400), b"c")
        cluster.wait_in_sync()
        expect(holds(alpha, range(1, 200), b"a"), "data are missing")
        cluster.expect_identical()


def d6_an_older_copy_of_a_disk_is_recognised_and_brought_up_to_date():
    """Restored from a backup that was made at an orderly stop, fingerprint and all."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"a")
        beta.stop()
        shutil.copy(beta.disk(), beta.dir / "backup")
        beta.start()
        cluster.wait_in_sync()
        fill(alpha, range(50, 300), b"b")
        beta.stop()
        shutil.copy(beta.dir / "backup", beta.disk())
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def d6_a_disk_that_was_made_anew_is_filled_in_full():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(0, 5000, 5), b"a")
        beta.stop()
        beta.ctl("create", "demo", "--force", "replicator")
        beta.start()
        wait_until("it is being filled", lambda: alpha.peer()["state"] in (
            "syncing", "joining", "current"))
        cluster.wait_in_sync()
        expect(alpha.resync_bytes_sent() >= 1000 * BLOCK, "it was taken for the old one")
        cluster.expect_identical()


def d6_the_same_disk_twice_is_refused():
    """A clone of the other node's disk under the name of this node's."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"a")
        beta.stop()
        shutil.copy(beta.disk(), beta.dir / "own")
        shutil.copy(alpha.disk(), beta.disk())
        beta.start()
        status = wait_until("it gave up", lambda: (
            beta.status()["state"] == "failed" and beta.status()))
        expect("swapped" in status["why"], f"it does not say why: {status['why']}")
        beta.stop()
        shutil.copy(beta.dir / "own", beta.disk())
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def d6_a_disk_that_shrank_is_refused_and_one_that_grew_says_so():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"a")
        size = beta.disk().stat().st_size
        beta.stop()
        shutil.copy(beta.disk(), beta.dir / "own")
        os.truncate(beta.disk(), size - 8 * MIB)
        beta.start()
        wait_until("it gave up", lambda: beta.status()["state"] == "failed")
        expect(beta.status()["why"], "it does not say why")
        beta.stop()
        shutil.copy(beta.dir / "own", beta.disk())
        os.truncate(beta.disk(), size + 8 * MIB)
        fill(alpha, range(50, 150), b"b")
        beta.start()
        cluster.wait_in_sync()
        expect(beta.replica()["added_bytes"] == 8 * MIB, "it does not say that it is larger")
        cluster.expect_identical()


def d7_a_peer_with_a_smaller_disk_is_refused_and_the_reason_has_both_sizes():
    with Cluster(size_mib=64, assume_equal=False) as cluster:
        alpha, beta = cluster.alpha, cluster.beta
        os.truncate(beta.disk(), 48 * MIB)
        cluster.create()
        alpha.start()
        beta.start()
        alpha.promote("--alone")
        why = wait_until("it says why", lambda: (
            alpha.peer()["state"] == "refused" and alpha.peer()["why"]))
        print(f"    {why}")
        expect("size" in why or "bytes" in why or "MiB" in why, f"it does not say so: {why}")
        fill(alpha, range(100), b"a")
        expect(not alpha.peer()["is_member"], "a smaller disk is a member")


def d7_a_resource_of_the_size_of_the_smaller_disk_fits_both():
    with Cluster(size_mib=64, assume_equal=False) as cluster:
        alpha, beta = cluster.alpha, cluster.beta
        os.truncate(beta.disk(), 48 * MIB)
        alpha.ctl("init")
        beta.ctl("create", "demo")
        size = beta.ctl("dump", "demo")["data_bytes"]
        alpha.ctl("create", "demo", "--origin", "--size", str(size))
        alpha.start()
        beta.start()
        alpha.promote("--alone")
        fill(alpha, range(100), b"a")
        cluster.wait_in_sync()
        expect(cluster.expect_identical() == size, "the size is another one")


def an_interruptible_resync(cluster, size_mib):
    """alpha serves so many MiB that beta does not have; flushed."""
    alpha = cluster.create().alpha
    alpha.start()
    alpha.promote("--alone")
    with alpha.client() as client:
        for at in range(0, size_mib * MIB, MIB):
            client.write(at, bytes([at // MIB % 250 + 1]) * MIB)
        client.flush()
    return alpha, cluster.beta


def resync_runs(beta):
    """Until the secondary got some of it, and not all."""
    wait_until("the resync runs", lambda: beta.peer().get("received_bytes", (0,))[0] > 0
               and beta.replica()["data"] == "inconsistent", 30)


def serve_again(alpha):
    """The old primary serves again: by itself, or when it lost its cache, by order."""
    def ready():
        return alpha.peer().get("state") in ("idle", "current", "syncing", "joining")
    wait_until("it has met the other", ready)
    if alpha.replica()["role"] not in ("primary", "promoting"):
        alpha.promote()
    wait_until("it is primary", lambda: alpha.replica()["role"] == "primary")


def d10_source_and_target_die_in_turn_during_a_resync(backing):
    """Never promoted half done; in the end equal, with nothing missing."""
    with Cluster(size_mib=256, assume_equal=False, backing=backing) as cluster:
        alpha, beta = an_interruptible_resync(cluster, 240)
        beta.start()
        for turn in range(4):
            resync_runs(beta)
            if turn % 2:
                alpha.kill()
                wait_until("beta lost alpha", lambda: beta.peer()["state"] != "leads")
                beta.refuses("promote", "demo", "--old-primary-is-off", code="not_up_to_date")
                alpha.start()
                serve_again(alpha)
            else:
                beta.kill()
                beta.start()
        cluster.wait_in_sync()
        with alpha.client() as client:
            for at in range(0, 240 * MIB, 16 * MIB):
                expect(client.read(at, BLOCK) == bytes([at // MIB % 250 + 1]) * BLOCK, "lost")
        cluster.expect_identical()


def d10_a_resync_that_is_paused_and_begun_anew_ends_in_equal_disks():
    """Disconnected by the operator, restarted orderly, ordered in full."""
    with Cluster(size_mib=256, assume_equal=False) as cluster:
        alpha, beta = an_interruptible_resync(cluster, 240)
        beta.start()
        resync_runs(beta)
        alpha.ctl("disconnect", "demo")
        wait_until("it is paused", lambda: (
            alpha.peer()["state"] == "disconnected" and alpha.peer()["dirty_bytes"]))
        alpha.ctl("connect", "demo")
        resync_runs(beta)
        beta.stop()
        beta.start()
        resync_runs(beta)
        alpha.ctl("resync", "demo", "--full")
        cluster.wait_in_sync()
        cluster.expect_identical()


def d12_the_last_in_sync_node_serves_alone_and_the_stale_one_refuses(backing):
    """Both are gone; whichever comes back first does the right thing (without a witness)."""
    with Cluster(size_mib=64, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"a")
        beta.kill()
        wait_until("beta left", lambda: not alpha.peer()["is_member"])
        fill(alpha, range(40, 100), b"b")
        alpha.kill()
        beta.start()
        beta.refuses("promote", "demo")
        beta.refuses("promote", "demo", "--alone")
        beta.kill()
        alpha.start()
        alpha.promote("--alone")
        expect(holds(alpha, range(40), b"a") and holds(alpha, range(40, 100), b"b"), "lost")
        beta.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def storm(backing, mix, *extra):
    """A load of this mix over a killed secondary, its resync, and a take-over."""
    with Cluster(size_mib=64, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        blkload = Blkload(cluster, alpha, beta)
        load = blkload.start(60, "--mix", mix, *extra)
        wait_for_requests(alpha, 300)
        for _ in range(2):
            beta.kill()
            wait_for_requests(alpha, 200)
            beta.start()
            cluster.wait_in_sync()
        wait_for_requests(alpha, 100)
        alpha.kill()
        beta.take_over()
        wait_for_requests(beta, 200)
        alpha.start()
        wait_for_requests(beta, 200)
        load.send_signal(signal.SIGTERM)
        load.wait(30)
        cluster.wait_in_sync()
        blkload.verify()
        cluster.expect_identical()


def wait_for_requests(node, count):
    """Until the primary has answered so many more requests that change data."""
    def answered():
        counters = node.status()["counters"]
        return counters["writes"] + counters["zeroes"]
    began = answered()
    wait_until(f"{count} requests were answered", lambda: answered() >= began + count)


def d15_overlapping_writes_are_one_order_on_both_disks_over_kills_and_resyncs(backing):
    storm(backing, "read=10,write=80,fua=5,flush=2,zero=3", "--hot", 100, "--unaligned", 80)


def d16_discards_and_zeroes_are_the_same_on_both_disks_over_kills_and_resyncs(backing):
    storm(backing, "read=15,write=25,fua=3,flush=2,trim=25,zero=30")


SCENARIOS = [
    d1_a_write_error_of_the_secondary_takes_it_out_and_no_client_sees_it,
    d1_a_write_error_of_the_primary_hands_over_and_loses_nothing,
    d1_a_read_error_of_the_primary_fails_that_request_and_nothing_else,
    d1_metadata_of_the_primary_that_cannot_be_written_acknowledge_nothing_that_needs_them,
    d1_metadata_of_the_secondary_that_cannot_be_written_disturb_no_client,
    d6_an_older_copy_of_a_disk_is_recognised_and_brought_up_to_date,
    d6_a_disk_that_was_made_anew_is_filled_in_full,
    d6_the_same_disk_twice_is_refused,
    d6_a_disk_that_shrank_is_refused_and_one_that_grew_says_so,
    d7_a_peer_with_a_smaller_disk_is_refused_and_the_reason_has_both_sizes,
    d7_a_resource_of_the_size_of_the_smaller_disk_fits_both,
    *on_each_backing(d10_source_and_target_die_in_turn_during_a_resync),
    d10_a_resync_that_is_paused_and_begun_anew_ends_in_equal_disks,
    *on_each_backing(d12_the_last_in_sync_node_serves_alone_and_the_stale_one_refuses),
    *on_each_backing(d15_overlapping_writes_are_one_order_on_both_disks_over_kills_and_resyncs),
    *on_each_backing(d16_discards_and_zeroes_are_the_same_on_both_disks_over_kills_and_resyncs),
    d22_when_the_disk_of_the_last_member_fails_every_failure_is_told,
]
