"""Scenarios: who may become primary, who may not, and what becomes of data that diverged."""

from cluster import BLOCK, MIB, Cluster, expect, on_each_backing, wait_until


def fill(node, numbers, byte, resource="demo"):
    """Writes these 4 KiB blocks."""
    with node.client(resource) as client:
        for number in numbers:
            client.write(number * BLOCK, byte * BLOCK)
        client.flush()


def holds(node, numbers, byte, resource="demo"):
    """Whether these blocks have this content."""
    with node.client(resource) as client:
        return all(client.read(number * BLOCK, BLOCK) == byte * BLOCK for number in numbers)


def a_planned_switchover_copies_nothing_and_loses_nothing():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        old, new = alpha, beta
        for turn in range(4):
            byte = bytes([65 + turn])
            fill(old, range(turn * 100, turn * 100 + 50), byte)
            sent = [node.resync_bytes_sent() for node in (alpha, beta)]
            refusal = new.refuses("promote", "demo", code="peer_is_primary")
            expect("demote" in refusal.next, f"the refusal does not help: {refusal}")
            old.ctl("demote", "demo")
            new.promote()
            cluster.wait_in_sync()
            expect(holds(new, range(turn * 100, turn * 100 + 50), byte), "data are missing")
            now = [node.resync_bytes_sent() for node in (alpha, beta)]
            expect(max(now) == 0 or now == sent, f"a switchover copied: {sent} before, {now} after")
            old, new = new, old
        cluster.expect_identical()


def a_demotion_is_refused_while_clients_are_connected():
    with Cluster(size_mib=64) as cluster:
        alpha = cluster.start().alpha
        with alpha.client() as client:
            refusal = alpha.refuses("demote", "demo", code="clients_connected")
            expect("python" in refusal.why, f"it does not say who: {refusal}")
            client.write(0, b"x" * BLOCK)
            alpha.ctl("demote", "demo", "--drop-clients")
        expect(alpha.replica()["role"] == "secondary", "it is still primary")


def nobody_is_promoted_without_the_word_of_an_operator_while_the_other_node_is_silent():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.kill()
        wait_until("the loss is seen", lambda: beta.peer()["state"] != "leads")
        refusal = beta.refuses("promote", "demo", code="peer_unreachable")
        expect("--old-primary-is-off" in refusal.next, f"the refusal does not help: {refusal}")
        expect(beta.replica()["role"] == "secondary", "it was promoted all the same")


def d13_a_stale_replica_is_refused_and_when_forced_the_old_primary_is_too():
    """D12, R11: it needs --allow-data-loss; the old primary is then refused with the number
    of its blocks that nobody else has, and is overwritten only when the operator says so."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(10), b"a")
        beta.stop()
        wait_until("beta left", lambda: not alpha.peer()["is_member"])
        fill(alpha, range(100, 120), b"b")
        alpha.stop()

        beta.start()
        for flags in ([], ["--alone"], ["--old-primary-is-off"]):
            beta.refuses("promote", "demo", *flags, code="not_up_to_date")
        beta.promote("--allow-data-loss", "--old-primary-is-off")
        expect(holds(beta, range(10), b"a"), "even the old data are missing")
        expect(holds(beta, range(100, 120), b"\0"), "where do these data come from?")
        fill(beta, range(200, 230), b"c")

        alpha.start()
        wait_until("alpha is recognised as diverged",
                   lambda: alpha.replica()["data"] == "diverged")
        diverged = beta.peer()["diverged_blocks"]
        expect(diverged == 20, f"20 blocks diverged, {diverged} are reported")
        verdict = alpha.status()["verdict"]["text"]
        expect("--discard" in verdict, f"the verdict does not help: {verdict}")
        alpha.refuses("promote", "demo")
        expect(beta.replica()["role"] == "primary", "beta gave up")

        alpha.ctl("resync", "demo", "--discard")
        cluster.wait_in_sync()
        cluster.expect_identical()
        expect(holds(beta, range(100, 120), b"\0") and holds(beta, range(200, 230), b"c"),
               "the discarded data came back")


def d8_an_unfinished_resync_is_never_promoted(backing):
    """Half of the blocks are new, half are old."""
    with Cluster(size_mib=256, assume_equal=False, backing=backing) as cluster:
        alpha, beta = cluster.create().alpha, cluster.beta
        alpha.start()
        alpha.promote("--alone")
        with alpha.client() as client:
            for at in range(0, 240 * MIB, MIB):
                client.write(at, b"d" * MIB)
            client.flush()
        beta.start()
        wait_until("the resync runs", lambda: (
            beta.peer().get("received_bytes", (0,))[0] > 0), 30)
        alpha.kill()
        state = wait_until("beta lost alpha", lambda: (
            beta.peer()["state"] != "leads" and beta.replica()["data"]))
        expect(state == "inconsistent", f"the resync was over too soon to interrupt it: {state}")
        beta.refuses("promote", "demo", "--old-primary-is-off", code="not_up_to_date")
        alpha.start()
        if backing == "volatile":
            alpha.promote("--alone")
        wait_until("alpha is primary again", lambda: alpha.replica()["role"] == "primary")
        cluster.wait_in_sync()
        expect(holds(alpha, range(0, 240 * 256, 1000), b"d"), "data are missing")
        cluster.expect_identical()


def a_full_resync_and_an_invalidated_replica_end_in_equal_disks():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(0, 2000, 3), b"f")
        size = alpha.replica()["size_bytes"]
        alpha.ctl("resync", "demo", "--full", "--wait", "--timeout-s", "60")
        cluster.wait_in_sync()
        cluster.expect_identical()
        beta.ctl("invalidate", "demo")
        beta.ctl("resync", "demo", "--wait", "--timeout-s", "60")
        cluster.wait_in_sync()
        expect(alpha.resync_bytes_sent() <= 2 * size, "more than two full resyncs were sent")
        cluster.expect_identical()


def d20_a_disk_that_was_changed_without_us_is_found_out():
    """R12: mounted elsewhere between an orderly stop and the next start."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(50), b"g")
        beta.stop()
        with open(beta.disk(), "r+b") as disk:
            disk.write(b"somebody mounted this disk" * 100)
        beta.start()
        cluster.wait_in_sync()
        expect(alpha.resync_bytes_sent() > 0, "nothing was copied")
        cluster.expect_identical()


def a_disconnected_peer_stays_away_until_it_is_connected_again():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.ctl("disconnect", "demo")
        wait_until("it left the set", lambda: not alpha.peer()["is_member"])
        fill(alpha, range(30), b"h")
        expect(alpha.peer()["state"] == "disconnected", "it came back by itself")
        expect(alpha.peer()["dirty_bytes"] == 30 * BLOCK, "the dirty blocks are counted wrongly")
        alpha.ctl("connect", "demo")
        cluster.wait_in_sync()
        cluster.expect_identical()


def two_resources_live_side_by_side_with_different_primaries():
    with Cluster(resources=("one", "two"), size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        alpha.ctl("demote", "two")
        beta.promote(resource="two")
        for resource in ("one", "two"):
            cluster.wait_in_sync(resource)
        fill(alpha, range(100), b"1", "one")
        fill(beta, range(50, 150), b"2", "two")
        beta.kill()
        fill(alpha, range(100, 200), b"3", "one")
        beta.start()
        wait_until("beta is primary of two again",
                   lambda: beta.replica("two")["role"] == "primary")
        for resource in ("one", "two"):
            cluster.wait_in_sync(resource)
            cluster.expect_identical(resource)
        expect(holds(alpha, range(100), b"1", "one"), "data of one are missing")
        expect(holds(beta, range(50, 150), b"2", "two"), "data of two are missing")


SCENARIOS = [
    a_planned_switchover_copies_nothing_and_loses_nothing,
    a_demotion_is_refused_while_clients_are_connected,
    nobody_is_promoted_without_the_word_of_an_operator_while_the_other_node_is_silent,
    d13_a_stale_replica_is_refused_and_when_forced_the_old_primary_is_too,
    *on_each_backing(d8_an_unfinished_resync_is_never_promoted),
    a_full_resync_and_an_invalidated_replica_end_in_equal_disks,
    d20_a_disk_that_was_changed_without_us_is_found_out,
    a_disconnected_peer_stays_away_until_it_is_connected_again,
    two_resources_live_side_by_side_with_different_primaries,
]
