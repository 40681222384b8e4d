"""Scenarios: the two nodes in network namespaces of their own, with cuts between them."""

import os
import time

from cluster import Cluster, Skip, expect, wait_until
from kills import finish, start_fio, wait_for_writes


def namespaces_or_skip():
    """Both nodes in namespaces; needs root."""
    if os.geteuid() != 0:
        raise Skip("network namespaces need root")
    return Cluster(size_mib=64, namespaces=True)


def survive_a_cut(direction):
    """Nothing of `direction` arrives; the connection itself looks alive."""
    with namespaces_or_skip() as cluster:
        alpha = cluster.start().alpha
        load = start_fio(cluster, 5)
        wait_for_writes(alpha, 150)
        for node in direction:
            cluster.cut_from(node)
        began = time.monotonic()
        wait_until("the peer left the set", lambda: not alpha.peer()["is_member"], 10)
        wait_for_writes(alpha, 150)
        print(f"    clients waited at most {time.monotonic() - began:.1f} s")
        cluster.heal()
        cluster.wait_in_sync()
        finish(cluster, load, "fio")
        expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")
        cluster.expect_identical()


def p3_a_cut_from_the_primary_to_the_secondary_is_survived():
    survive_a_cut(["alpha"])


def p3_a_cut_from_the_secondary_to_the_primary_is_survived():
    survive_a_cut(["beta"])


def p1_a_cut_in_both_directions_is_survived():
    survive_a_cut(["alpha", "beta"])


def p6_a_link_that_flaps_never_leaves_the_replicas_different():
    """Cut and healed again and again under load."""
    with namespaces_or_skip() as cluster:
        alpha = cluster.start().alpha
        load = start_fio(cluster, 9)
        for number in range(4):
            wait_for_writes(alpha, 100)
            cluster.cut_from(("alpha", "beta")[number % 2])
            wait_until("the peer is lost", lambda: alpha.peer()["state"] != "current", 10)
            cluster.heal()
            wait_until("the peer is back", lambda: alpha.peer()["state"] in (
                "held_back", "syncing", "joining", "current"), 20)
        expect(alpha.peer()["drops"] >= 3, f"{alpha.peer()['drops']} drops were counted")
        finish(cluster, load, "fio")
        cluster.wait_in_sync()
        cluster.expect_identical()


SCENARIOS = [
    p3_a_cut_from_the_primary_to_the_secondary_is_survived,
    p3_a_cut_from_the_secondary_to_the_primary_is_survived,
    p1_a_cut_in_both_directions_is_survived,
    p6_a_link_that_flaps_never_leaves_the_replicas_different,
]
