"""Scenarios: the volume grows while it is used (O9): the disks are extended, one command is said."""

import os

from cluster import BLOCK, MIB, Cluster, expect, on_each_backing, wait_until
from kills import Blkload, wait_for_writes
from roles import fill, holds


def extend(*nodes, mib):
    """The backing disk of a node becomes larger, as lvextend does it; what is new is no zeroes."""
    for node in nodes:
        with open(node.disk(), "r+b") as file:
            old = file.seek(0, os.SEEK_END)
            file.truncate(old + mib * MIB)
            for at in range(old, old + mib * MIB, MIB):
                file.seek(at)
                file.write(b"left behind")


def size_of(node):
    with node.client() as client:
        return client.size


def grow(node):
    """Says the command; sizes before and after, as clients see them."""
    old = size_of(node)
    node.ctl("resize", "demo")
    new = size_of(node)
    expect(new > old, f"clients see {new} bytes after {old}")
    return old, new


def o9_a_volume_grows_under_load_and_every_node_has_all_of_it(backing):
    with Cluster(size_mib=64, backing=backing) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        load = Blkload(cluster, alpha, beta)
        running = load.start(8)
        wait_for_writes(alpha, 300)
        extend(alpha, beta, mib=64)
        old, new = grow(alpha)
        expect(new >= old + 62 * MIB, f"clients see {new} bytes after {old}")
        wait_for_writes(alpha, 100)
        expect(alpha.peer()["is_member"], "the secondary left the set")
        blocks = range(old // BLOCK, new // BLOCK, 61)
        with alpha.client() as client:
            expect(all(client.read(at, BLOCK) == bytes(BLOCK) for at in range(old, new, BLOCK)),
                   "the new part is not zeroes")
        load.finish(running)
        fill(alpha, blocks, b"n")
        cluster.expect_identical()
        alpha.kill()
        beta.take_over()
        expect(size_of(beta) == new, f"the other node has {size_of(beta)} bytes")
        expect(holds(beta, blocks, b"n"), "what was written in the new part is missing")
        load.verify()
        alpha.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def o9_a_volume_grows_during_a_resync():
    with Cluster(size_mib=96) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        beta.kill()
        fill(alpha, range(0, size_of(alpha) // BLOCK, 9), b"a")
        extend(alpha, beta, mib=32)
        beta.start()
        wait_until("it is there", lambda: alpha.peer()["state"] in ("syncing", "joining", "current"))
        old, new = grow(alpha)
        fill(alpha, range(old // BLOCK, new // BLOCK, 5), b"n")
        cluster.wait_in_sync()
        cluster.expect_identical()


def o9_a_node_that_is_away_grows_when_it_is_back():
    """Its disk was extended while its daemon was down: the metadata lie where the end was."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        beta.kill()
        wait_until("it left the set", lambda: alpha.replica()["in_sync"] == ["alpha"])
        extend(alpha, beta, mib=32)
        old, new = grow(alpha)
        fill(alpha, range(old // BLOCK, new // BLOCK, 7), b"n")
        beta.start()
        cluster.wait_in_sync()
        expect(beta.replica()["size_bytes"] == new, "it has another size")
        cluster.expect_identical()


def o9_a_resize_without_room_says_whose_disk_is_to_be_extended():
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        old = size_of(alpha)
        extend(alpha, mib=32)
        answer = alpha.refuses("resize", "demo", "--size", "80M", code="no_room")
        expect("beta" in answer.next and "alpha" not in answer.next, f"it says {answer}")
        beta.refuses("resize", "demo", code="not_primary")
        alpha.refuses("resize", "demo", "--size", "10M", code="shrinks")
        expect(size_of(alpha) == old, "it grew")
        extend(beta, mib=32)
        looked = alpha.ctl("resize", "demo", "--dry-run")
        expect(looked["size_bytes"] == old and looked["room_bytes"] > old, f"it says {looked}")
        grow(alpha)
        expect("already" in alpha.ctl("resize", "demo"), "there was something to do")
        cluster.expect_identical()


def o9_daemons_killed_while_they_make_room_come_back_with_all_data():
    """Killed at four moments of the move, the zeroing and the growth, each of the two in turn."""
    with Cluster(size_mib=64) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(0, 4000), b"a")
        old = size_of(alpha)
        for turn in range(8):
            extend(alpha, beta, mib=16)
            victim = (alpha, beta)[turn % 2]
            orders, moves = (victim.log().count(word) for word in ("operator: Resize", "lie at the end"))
            asked = cluster.spawn(cluster.bin / "replctl", "--config", alpha.config, "--node",
                                  alpha.name, "resize", "demo")
            moments = (
                lambda: True,
                lambda: victim is beta or alpha.log().count("operator: Resize") > orders,
                lambda: victim.log().count("lie at the end") > moves,
                lambda: asked.poll() is not None,
            )
            wait_until(f"moment {turn // 2} has come", moments[turn // 2])
            victim.kill()
            asked.wait(60)
            victim.start()
            wait_until("it is primary again", lambda: alpha.replica()["role"] == "primary", 30)
            cluster.wait_in_sync()
            expect(holds(alpha, range(0, 4000, 97), b"a"), "acknowledged data are missing")
        alpha.ctl("resize", "demo")
        expect(size_of(alpha) >= old + 8 * 14 * MIB, "it did not grow as far as there is room")
        cluster.expect_identical()


SCENARIOS = [
    *on_each_backing(o9_a_volume_grows_under_load_and_every_node_has_all_of_it),
    o9_a_volume_grows_during_a_resync,
    o9_a_node_that_is_away_grows_when_it_is_back,
    o9_a_resize_without_room_says_whose_disk_is_to_be_extended,
    o9_daemons_killed_while_they_make_room_come_back_with_all_data,
]
