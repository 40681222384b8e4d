"""Scenarios: a disk that changes what it was given, and the verify that finds and repairs it while
clients write (D5).
"""

import json
import os
import urllib.request

from cluster import BLOCK, MIB, Cluster, differing_blocks, expect, run, wait_until
from faulty_disk import FaultyDisk
from roles import fill
from storage import LARGE_BLOCKS
from three import Three
from trio_http import samples

# Beyond what the loads of a watch write.
QUIET = 50 * MIB
EXIT_DIFFERS = 4


def rot(node, *blocks):
    """One bit of each of these blocks flips on the disk of a node, beneath its daemon."""
    descriptor = os.open(node.disk(), os.O_RDWR)
    try:
        for block in blocks:
            byte = os.pread(descriptor, 1, block * BLOCK)[0]
            os.pwrite(descriptor, bytes([byte ^ 1]), block * BLOCK)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def verify(node, *flags):
    """A verify from its start to its end: exit code, and what it found by copy."""
    code, out, error = node.ctl_raw("verify", "demo", "--wait", *flags)
    expect(code in (0, EXIT_DIFFERS), f"verify ended with {code}:\n{out}{error}")
    return code, {found["copy"]: found for found in json.loads(out)}


def verified(node):
    """What a node knows of the newest verify."""
    return node.status()["verifies"][0]


def in_words(node, resource="demo"):
    """The lines of status about verifies."""
    text = node.ctl_raw("status", resource, as_json=False)[1]
    return [line.strip() for line in text.splitlines() if "verif" in line]


def d5_bit_rot_is_found_to_the_block_under_load_and_repaired_by_the_primarys_copy():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        code, found = verify(alpha)
        expect(code == 0 and sorted(found) == ["beta", "gamma"], f"a clean one: {code} {found}")
        expect(all(it["differing_blocks"] == 0 for it in found.values()), f"false alarm: {found}")

        first = QUIET // BLOCK
        with alpha.client() as client:
            client.write(QUIET, b"k" * 16 * BLOCK, fua=True)
        rot(beta, first + 3, first + 9)
        rot(gamma, first + 5)
        code, found = verify(alpha)
        expect(code == EXIT_DIFFERS, f"it ended with {code}")
        for copy, blocks in (("beta", [3, 9]), ("gamma", [5])):
            expect(found[copy]["differing"] == [[(first + it) * BLOCK, BLOCK] for it in blocks],
                   f"of {copy} it found {found[copy]}")
        words = in_words(alpha)
        expect(any(f"2 blocks differ: {(first + 3) * BLOCK}+{BLOCK}" in line for line in words)
               and any("--repair" in line for line in words), f"status says {words}")
        with urllib.request.urlopen(f"http://127.0.0.1:{alpha.http_port}/metrics", timeout=10) as page:
            metrics = samples(page.read().decode())
        of_beta = '{resource="demo",copy="beta"}'
        expect(metrics[f"replicator_verify_differing_blocks{of_beta}"] == 2, f"{metrics}")
        expect(metrics[f"replicator_verify_last_end_time_seconds{of_beta}"] > 1.6e9, f"{metrics}")

        drops = [peer["drops"] for peer in alpha.replica()["peers"]]
        code, found = verify(alpha, "--repair")
        expect(code == 0 and all(it["repair"] == "done" for it in found.values()),
               f"the repair: {code} {found}")
        expect([peer["drops"] for peer in alpha.replica()["peers"]] == drops, "a repair is a drop")
        code, found = verify(alpha)
        expect(code == 0, f"after the repair: {found}")
        cluster.watch.expect_no_error()
        # What was found is known after a restart, and by whoever is primary then.
        before = alpha.status()["verifies"]
        alpha.kill()
        alpha.start()
        expect(alpha.status()["verifies"] == before, f"forgotten: {alpha.status()['verifies']}")
        cluster.finish()


def a_block_that_a_member_cannot_read_is_counted_and_ends_nothing():
    with FaultyDisk(64) as disk, Cluster(disks={("demo", "beta"): disk.path},
                                        create_flags=LARGE_BLOCKS) as cluster:
        alpha = cluster.start().alpha
        fill(alpha, range(200), b"a")
        disk.fail("pread")
        code, found = verify(alpha)
        beta = found["beta"]
        expect(code == EXIT_DIFFERS, f"it ended with {code}")
        expect(beta["unreadable_there_bytes"] == beta["total_bytes"], f"it read: {beta}")
        expect(alpha.peer()["state"] == "current", "a read for a verify took it out")
        disk.heal()
        code, found = verify(alpha, "--repair")
        expect(code == 0 and found["beta"]["differing_blocks"] == 0, f"healed: {code} {found}")


def a_verify_ends_visibly_with_its_peer_and_only_one_runs():
    with Cluster(size_mib=512) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        beta.ctl("verify", "demo")
        for node in (alpha, beta):
            node.refuses("verify", "demo", code="verify_runs")
        beta.ctl("verify", "demo", "--cancel")
        for node in (alpha, beta):
            wait_until(f"{node.name} knows the end", lambda: verified(node)["state"] == "broken")
            expect(verified(node)["why"] == "an operator ended it", f"{verified(node)}")
        alpha.ctl("verify", "demo")
        beta.kill()
        wait_until("it ended", lambda: verified(alpha)["state"] == "broken")
        expect(verified(alpha)["why"] == "the connection was lost", f"{verified(alpha)}")
        alpha.refuses("verify", "demo", code="no_member_to_verify")
        beta.start()
        cluster.wait_in_sync()
        expect(verify(beta)[0] == 0, "the two differ")
        age = [verified(node)["last_end_unix_ms"] for node in (alpha, beta)]
        expect(min(age) > 0, f"whoever is primary next does not know of it: {age}")


SCENARIOS = [
    d5_bit_rot_is_found_to_the_block_under_load_and_repaired_by_the_primarys_copy,
    a_block_that_a_member_cannot_read_is_counted_and_ends_nothing,
    a_verify_ends_visibly_with_its_peer_and_only_one_runs,
]
