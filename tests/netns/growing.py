"""Scenarios: the volume grows while it is used (O9): the disks are extended, one command is said."""

import os
import re

from cluster import BLOCK, MIB, Cluster, expect, on_each_backing, wait_until
from fencing import Fenced
from kills import Blkload, wait_for_writes
from roles import fill, holds
from three import Three


def extend(*nodes, mib):
    """The backing disk of a node becomes larger, as lvextend does it; what is new is no zeroes."""
    for node in nodes:
        with open(node.disk(), "r+b") as file:
            old = file.seek(0, os.SEEK_END)
            file.truncate(old + mib * MIB)
            for at in range(old, old + mib * MIB, MIB):
                file.seek(at)
                file.write(b"left behind")


def with_external_metadata(cluster):
    """The metadata lie in files of their own; those, by node."""
    files = {node.name: cluster.dir / f"{node.name}.meta" for node in cluster.data_nodes}
    cluster.options = "\n".join(f'metadata.{name} = "{path}"' for name, path in files.items())
    cluster.write_config()
    return files


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


def expect_in_history(node, old, new, by, is_ordered):
    """That the volume grew, in JSON and in words; the end of the growth may be news only now."""
    def newest():
        found = [it for it in node.ctl("history", "demo") if it["what"] == "resize"]
        return found[-1] if found and found[-1]["to_bytes"] == new else None
    entry = wait_until(f"{node.name} has the resize in its history", newest)
    expect(entry["from_bytes"] == old and entry["by"] == entry["primary"] == by
           and by in entry["in_sync"] and entry["generation"] > 0, f"history says {entry}")
    expect(bool(entry["phases"]) == is_ordered, f"how long it took: {entry}")
    words = node.ctl_raw("history", "demo", as_json=False)[1]
    told = f"from {old} to {new} bytes" + (f", an operator, on {by}" if is_ordered else "")
    wanted = rf" demo resize · .* · {told} · by {by}" + (r"\n +grown \d+ ms" if is_ordered else "")
    expect(re.search(wanted, words), f"in words it is not told:\n{words}")


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
        answer = alpha.refuses("resize", "demo", code="no_room")
        expect("make room on beta," in answer.next, f"without a size it says {answer}")
        extend(beta, mib=32)
        looked = alpha.ctl("resize", "demo", "--dry-run")
        expect(looked["size_bytes"] == old and looked["room_bytes"] > old, f"it says {looked}")
        grow(alpha)
        expect("already" in alpha.ctl("resize", "demo"), "there was something to do")
        cluster.expect_identical()


def killed_while_they_make_room(is_external):
    """Killed at four moments of the move, the zeroing and the growth, each of the two in turn."""
    with Cluster(size_mib=64) as cluster:
        metadata = with_external_metadata(cluster) if is_external else {}
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(0, 4000), b"a")
        old = size_of(alpha)
        for turn in range(8):
            extend(alpha, beta, mib=16)
            for file in metadata.values():
                os.truncate(file, file.stat().st_size + 2 * MIB)
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


def o9_daemons_killed_while_they_make_room_come_back_with_all_data():
    killed_while_they_make_room(is_external=False)


def o9_daemons_killed_while_external_metadata_move_come_back_with_all_data():
    killed_while_they_make_room(is_external=True)


def o9_three_replicas_grow_under_load_and_any_of_them_serves_what_was_written_then():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        extend(alpha, beta, mib=64)
        # It was never connected to a larger one.
        gamma.kill()
        wait_until("gamma left the set", lambda: "gamma" not in alpha.replica()["in_sync"])
        gamma.start()
        cluster.wait_in_sync()
        answer = alpha.refuses("resize", "demo", "--size", "100M", code="no_room")
        expect("disk of gamma," in answer.next, f"it says {answer}")
        extend(gamma, mib=64)
        gamma.kill()
        wait_until("gamma left the set again", lambda: "gamma" not in alpha.replica()["in_sync"])
        old, new = grow(alpha)
        blocks = range(old // BLOCK, new // BLOCK, 61)
        fill(alpha, blocks, b"n")
        gamma.start()
        cluster.wait_in_sync()
        for node in (alpha, beta, gamma):
            expect(node.replica()["size_bytes"] == new, f"{node.name} has another size")
            expect_in_history(node, old, new, by="alpha", is_ordered=node is alpha)
        # Now all three at once.
        extend(alpha, beta, gamma, mib=32)
        before, new = grow(alpha)
        expect_in_history(beta, before, new, by="alpha", is_ordered=False)
        cluster.wait_for_acks("alpha")
        for target in (gamma, beta):
            cluster.primary().ctl("switchover", "demo", "--to", target.name)
            cluster.wait_for_acks(target.name)
            expect(size_of(target) == new, f"{target.name} shows another size")
            expect(holds(target, blocks, b"n"), f"what {target.name} has of the new part is not that")
        beta.kill()
        found = cluster.wait_for_another(than=beta)
        expect(size_of(found) == new, f"{found.name} shows another size")
        beta.start()
        cluster.finish()


def o9_a_volume_with_external_metadata_grows_when_their_device_has_room_for_more():
    with Cluster(size_mib=64) as cluster:
        metadata = with_external_metadata(cluster)
        alpha, beta = cluster.start().alpha, cluster.beta
        old = size_of(alpha)
        expect(old == 64 * MIB, f"the metadata are on the disk: {old} bytes")
        load = Blkload(cluster, alpha, beta)
        running = load.start(8)
        wait_for_writes(alpha, 300)
        extend(alpha, beta, mib=256)
        answer = alpha.refuses("resize", "demo", code="no_room")
        for node in (alpha, beta):
            warnings = node.status()["warnings"]
            found = re.search(r"disk of the metadata has to be (\d+) bytes larger", f"{answer} {warnings}")
            expect(found, f"{node.name} does not say what is missing: {answer}, {warnings}")
            os.truncate(metadata[node.name], metadata[node.name].stat().st_size + int(found[1]))
        grow(alpha)
        new = size_of(alpha)
        expect(new == (64 + 256) * MIB, f"clients see {new} bytes")
        wait_for_writes(alpha, 100)
        expect(alpha.peer()["is_member"], "the secondary left the set")
        load.finish(running)
        blocks = range(old // BLOCK, new // BLOCK, 509)
        fill(alpha, blocks, b"n")
        alpha.kill()
        beta.take_over()
        expect(size_of(beta) == new and holds(beta, blocks, b"n"), "the other node has less")
        load.verify()
        fill(beta, blocks[::2], b"m")
        alpha.start()
        cluster.wait_in_sync()
        cluster.expect_identical()
        # The daemons find their metadata where they lie now.
        for node in (alpha, beta):
            node.kill()
            node.start()
            cluster.wait_in_sync()
        expect(size_of(cluster.primary()) == new, "it was larger")


def o9_a_resize_asked_elsewhere_says_where_to_say_it():
    with Cluster(size_mib=64, witness=True) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        primary = cluster.primary()
        extend(alpha, beta, mib=32)
        extend(primary, mib=16)
        secondary = beta if primary is alpha else alpha
        answer = secondary.refuses("resize", "demo", "--size", "80M", code="not_primary")
        where, command = f"give this command on {primary.name}: replctl ", f"resize demo --size {80 * MIB}"
        expect(answer.next == where + command, f"it says {answer.next!r}")
        answer = gamma.refuses("resize", "demo", code="witness")
        expect(answer.next == f"give this command on {primary.name}, its primary", f"{answer.next!r}")
        old = size_of(primary)
        primary.ctl(*command.split())
        expect(size_of(primary) == 80 * MIB, "it does not have the size that was ordered")
        expect("already" in primary.ctl(*command.split()), "it did not have the size that was ordered")
        expect_in_history(primary, old, 80 * MIB, by=primary.name, is_ordered=True)
        expect_in_history(secondary, old, 80 * MIB, by=primary.name, is_ordered=False)
        primary.kill()
        primary.start()
        expect_in_history(primary, old, 80 * MIB, by=primary.name, is_ordered=True)


def o9_a_pair_that_fences_has_a_resize_in_its_history():
    with Fenced() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        for _ in range(2):
            extend(alpha, beta, mib=16)
            old, new = grow(alpha)
            expect_in_history(alpha, old, new, by="alpha", is_ordered=True)
            expect_in_history(beta, old, new, by="alpha", is_ordered=False)


SCENARIOS = [
    *on_each_backing(o9_a_volume_grows_under_load_and_every_node_has_all_of_it),
    o9_a_volume_grows_during_a_resync,
    o9_a_resize_without_room_says_whose_disk_is_to_be_extended,
    o9_daemons_killed_while_external_metadata_move_come_back_with_all_data,
    o9_a_resize_asked_elsewhere_says_where_to_say_it,
    o9_a_pair_that_fences_has_a_resize_in_its_history,
]
LONG = [
    o9_a_node_that_is_away_grows_when_it_is_back,
    o9_daemons_killed_while_they_make_room_come_back_with_all_data,
    o9_three_replicas_grow_under_load_and_any_of_them_serves_what_was_written_then,
    o9_a_volume_with_external_metadata_grows_when_their_device_has_room_for_more,
]
