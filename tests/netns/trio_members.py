"""Scenarios: nodes that are replaced, moved and left out, a file that differs from the register, all
of it while a third node or a load goes on. On loopback: no root is needed.
"""

import shutil

from cluster import BLOCK, expect, free_port, wait_until
from trio import Trio


def seen(node, name):
    """What a node says of another, or of itself."""
    found = node.ctl("status")["cluster_state"]["nodes"]
    return next(it for it in found if it["name"] == name)


def wipe(node):
    """Its machine is a new one: nothing of the register, and for a data node an empty disk."""
    node.kill()
    shutil.rmtree(node.dir / "register")
    if node in node.cluster.data_nodes:
        with open(node.disk(), "r+b") as disk:
            size = disk.seek(0, 2)
            disk.truncate(0)
            disk.truncate(size)
        # The kernel keeps the lock of a killed process until its last write has ended.
        wait_until(f"{node.name} has a new disk",
                   lambda: node.ctl_raw("create", "demo")[0] == 0)


def wait_until_it_waits_for_a_vote(member, name):
    """Until a member says that the node has no vote, and what to type."""
    def says_so():
        found = seen(member, name)
        trouble = found["trouble"] or {}
        return (not found["votes"] and found["state"] == "reachable"
                and f"replctl node replace {name}" in trouble.get("next", ""))
    wait_until(f"{member.name} says that {name} has no vote", says_so)


def wait_until_it_votes(member, name):
    """Until a member counts the node's vote and has nothing to say against it."""
    wait_until(f"{name} votes", lambda: seen(member, name)["votes"]
               and seen(member, name)["trouble"] is None)


def a_witness_that_lost_its_state_votes_again_only_when_it_was_replaced():
    with Trio(namespaces=False) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        alpha.refuses("node", "replace", "gamma", code="is_recorded")
        alpha.refuses("node", "remove", "gamma", code="only_witness")
        wipe(gamma)
        wait_until("gamma is missed", lambda: seen(alpha, "gamma")["silent_ms"] > 1200)
        alpha.refuses("node", "replace", "gamma", code="not_heard")
        gamma.start()
        wait_until_it_waits_for_a_vote(alpha, "gamma")
        gamma.refuses("node", "replace", "gamma", code="witness")
        done = beta.ctl("node", "replace", "gamma")
        expect("gamma votes" in done["done"], f"it says {done}")
        wait_until_it_votes(alpha, "gamma")
        cluster.wait_for_acks("alpha")
        expect(len(cluster.takeovers()) == 1, f"somebody took over: {cluster.takeovers()}")
        # Without its vote nobody could.
        alpha.kill()
        cluster.wait_for_acks("beta")
        alpha.start()
        cluster.finish()


def a_data_node_whose_machine_is_new_is_replaced_and_copied_anew_under_load():
    with Trio(namespaces=False) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        wipe(beta)
        cluster.wait_for_acks("alpha")
        beta.start()
        wait_until_it_waits_for_a_vote(alpha, "beta")
        alpha.ctl("node", "replace", "beta")
        wait_until_it_votes(alpha, "beta")
        cluster.wait_in_sync()
        expect(len(cluster.takeovers()) == 1, f"somebody took over: {cluster.takeovers()}")
        # Its vote is as good as that of any: the witness may go, and alpha may.
        gamma.kill()
        cluster.wait_for_acks("alpha")
        gamma.start()
        wait_until("gamma is back", lambda: seen(beta, "gamma")["state"] == "reachable")
        alpha.kill()
        cluster.wait_for_acks("beta")
        alpha.start()
        cluster.finish()


def one_survivor_goes_on_on_the_word_of_an_operator_and_the_old_members_stay_out():
    with Trio(namespaces=False) as cluster:
        alpha, beta, gamma = cluster.start(watched=False).nodes.values()
        cluster.wait_for_primary(alpha)
        with alpha.client() as client:
            client.write(0, b"1" * BLOCK, fua=True)
        gone = ("recover", "--without", "beta,gamma", "--they-are-gone-for-ever")
        alpha.refuses(*gone, code="has_majority")
        beta.kill()
        gamma.kill()
        wait_until("alpha has no majority",
                   lambda: not alpha.ctl("status")["cluster_state"]["has_majority"])
        alpha.refuses(*gone, code="not_gone")
        wait_until("the two have been silent for long enough",
                   lambda: seen(alpha, "beta")["silent_ms"] > 5500)
        alpha.ctl(*gone)
        wait_until("alpha took its office in the new epoch", lambda: (
            alpha.replica()["role"] == "primary" and cluster.office(alpha)["tenure"] > 4))
        with alpha.client() as client:
            client.write(BLOCK, b"2" * BLOCK, fua=True)
        expect(alpha.ctl("status")["cluster_state"]["epoch"] == 2, "no new epoch")

        # Together the two are a majority of the old epoch.
        gamma.start()
        beta.start()
        for node in (beta, gamma):
            wait_until(f"alpha refuses {node.name}",
                       lambda: "earlier epoch" in (seen(alpha, node.name)["trouble"] or {})
                       .get("why", ""))
            wait_until(f"{node.name} knows", lambda: "began without it" in (
                seen(node, node.name)["trouble"] or {}).get("why", ""))
        expect(cluster.office(beta)["explain"]["refusal"]["code"] == "earlier_epoch",
               f"beta explains: {cluster.office(beta)['explain']}")
        alpha.refuses("node", "replace", "beta", code="foreign")
        with alpha.client() as client:
            client.write(2 * BLOCK, b"3" * BLOCK, fua=True)
            expect(client.read(0, BLOCK) == b"1" * BLOCK, "an acknowledged write is missing")
        alpha.kill()
        alpha.start()
        cluster.wait_for_primary(alpha)

        for node in (gamma, beta):
            wipe(node)
            node.start()
            wait_until_it_waits_for_a_new_vote(alpha, node.name)
            alpha.ctl("node", "replace", node.name)
            wait_until_it_votes(alpha, node.name)
        cluster.wait_in_sync()
        alpha.kill()
        cluster.wait_for_primary(beta)
        with beta.client() as client:
            found = client.read(0, 3 * BLOCK)
        expect(found == b"1" * BLOCK + b"2" * BLOCK + b"3" * BLOCK, "acknowledged writes are missing")
        alpha.start()
        cluster.wait_in_sync()
        cluster.expect_identical()


def wait_until_it_waits_for_a_new_vote(member, name):
    """As for a replacement, of a node that the new epoch does not know."""
    wait_until(f"{member.name} hears {name}, which has no vote", lambda: (
        seen(member, name)["state"] == "reachable" and not seen(member, name)["votes"]))


def nodes_move_to_other_addresses_one_after_the_other_and_writes_go_on():
    with Trio(namespaces=False) as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        for moved in (gamma, beta):
            moved.port = free_port()
            cluster.write_config()
            moved.stop()
            moved.start()
            # The others have the old file, and hear it all the same.
            wait_until(f"alpha hears {moved.name}",
                       lambda: seen(alpha, moved.name)["state"] == "reachable")
            wait_until(f"{moved.name} hears alpha",
                       lambda: seen(moved, "alpha")["state"] == "reachable")
            cluster.wait_in_sync()
            cluster.restart_in_turn(node for node in (gamma, beta, alpha) if node is not moved)
        cluster.finish()


def a_file_that_differs_from_the_register_is_shown_and_applied():
    with Trio(namespaces=False) as cluster:
        alpha, beta, _ = cluster.start().nodes.values()
        expect(alpha.ctl("apply") == [], "the same file differs")
        for node in cluster.nodes.values():
            text = node.config.read_text()
            node.config.write_text(text.replace("\n", "\nlease_ms = 2000\n", 1))
        shown = alpha.ctl("apply", "--dry-run")
        expect([it["is_done"] for it in shown] == [False] and "2000 ms" in shown[0]["difference"],
               f"the dry run says {shown}")
        expect(alpha.ctl("status")["cluster_state"]["lease_ms"] == 1000, "the dry run changed it")
        applied = alpha.ctl("apply")
        expect([it["is_done"] for it in applied] == [True], f"it says {applied}")
        expect(alpha.ctl("status")["cluster_state"]["lease_ms"] == 2000, "it changed nothing")
        told = wait_until("beta says that its file differs",
                          lambda: beta.ctl("status")["cluster_state"]["differences"])
        expect("1000 ms in the file" in told[0], f"it says {told}")
        beta.stop()
        beta.start()
        wait_until("beta has read the new file", lambda: (
            beta.ctl("status")["cluster_state"]["revision"] > 0
            and not beta.ctl("status")["cluster_state"]["differences"]))
        cluster.wait_in_sync()
        cluster.finish()


SCENARIOS = [
    a_witness_that_lost_its_state_votes_again_only_when_it_was_replaced,
    a_data_node_whose_machine_is_new_is_replaced_and_copied_anew_under_load,
    one_survivor_goes_on_on_the_word_of_an_operator_and_the_old_members_stay_out,
    nodes_move_to_other_addresses_one_after_the_other_and_writes_go_on,
    a_file_that_differs_from_the_register_is_shown_and_applied,
]
