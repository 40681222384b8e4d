"""Three data nodes, which are their own majority: what a third replica gives. On loopback: no root is
needed.
"""

from cluster import MIB, WITNESS, Node, differing_blocks, expect, wait_until
from trio import SIZE_MIB, Trio, Watch
from trio_members import seen


class Copies(Trio):
    """A cluster of which every data node has a copy, however many there are."""

    def __init__(self, **more):
        super().__init__(namespaces=False, **more)

    def add_disk(self, name):
        """An empty disk for a node."""
        for resource, parts in self.resources.items():
            parts["disk"][name] = self.dir / f"{resource}-{name}.img"
            with open(parts["disk"][name], "wb") as file:
                file.truncate(SIZE_MIB * MIB)

    def wait_in_sync(self, resource="demo", deadline_s=60.0, but=()):
        """Waits until all, but those named, are members, connected, and nothing is left to copy."""
        def done():
            running = [node for node in self.data_nodes if node.is_running]
            primary = [node for node in running
                       if node.replica(resource)["role"] == "primary"]
            return len(primary) == 1 and all(
                peer["is_member"] and peer["dirty_bytes"] == 0 and peer["state"] == "current"
                for peer in primary[0].replica(resource)["peers"] if peer["node"] not in but)
        wait_until(f"all replicas of {resource} are in sync", done, deadline_s)

    def expect_identical(self, resource="demo"):
        """Flushes, then compares the data of all disks byte for byte."""
        primary = self.primary(resource)
        with primary.client(resource) as client:
            client.flush()
        size = primary.replica(resource)["size_bytes"]
        disks = self.resources[resource]["disk"]
        for name in sorted(set(disks) - {"alpha"}):
            differing = differing_blocks(disks["alpha"], disks[name], size)
            expect(not differing, f"{len(differing)} blocks differ between the disks of alpha and "
                                  f"{name}: {differing[:20]}")
        return size


class Three(Copies):
    """alpha, beta and gamma, all with disks."""

    def __init__(self, **more):
        super().__init__(**more)
        self.data_nodes = list(self.nodes.values())
        self.add_disk(WITNESS)
        self.write_config()

    def _config(self, mine):
        text = super()._config(mine)
        gamma = self.nodes[WITNESS]
        own = [f'device_dir = "{gamma.device_dir}"']
        if self.tcp:
            own.append(f'nbd_address = "{gamma.host}:{gamma.nbd_port}"')
        return text.replace("witness = true", "\n".join(own))


class Growing(Copies):
    """Two data nodes and a witness; a third data node, delta, comes later."""

    def start(self, watched=True):
        super().start(watched=False)
        self.delta = Node(self, "delta")
        self.data_nodes.append(self.delta)
        self.watch = Watch(self)
        self.wait_for_acks("alpha")
        return self

    def grow(self):
        """As an operator does it: the file everywhere, a disk, and every daemon once anew."""
        size = self.alpha.replica()["size_bytes"]
        self.nodes["delta"] = self.delta
        self.add_disk("delta")
        self.write_config()
        self.delta.ctl("create", "demo", "--size", size)
        self.delta.start()
        for node in (self.gamma, self.beta, self.alpha):
            node.kill()
            node.start()
            self.wait_in_sync(but=("delta",))
        wait_until("alpha hears delta", lambda: seen(self.alpha, "delta")["state"] == "reachable")
        self.alpha.ctl("node", "add", "delta")
        self.wait_in_sync()


def a_third_replica_comes_to_a_running_pair_and_takes_over_later():
    with Growing() as cluster:
        alpha, beta, _ = cluster.start().nodes.values()
        cluster.grow()
        expect(seen(alpha, "delta")["votes"], "delta has no vote")
        # Three data nodes need no witness.
        alpha.ctl("node", "remove", "gamma")
        cluster.gamma.kill()
        alpha.kill()
        wait_until("another serves", lambda: any(
            node.replica()["role"] == "primary" for node in (beta, cluster.delta)))
        first = cluster.primary()
        cluster.wait_for_acks(first.name)
        alpha.start()
        cluster.wait_in_sync()
        if first is not cluster.delta:
            first.ctl("switchover", "demo", "--to", "delta")
            cluster.wait_for_acks("delta")
        cluster.finish()


def three_replicas_lose_one_after_the_other_and_no_acknowledged_write():
    with Three() as cluster:
        alpha, beta, gamma = cluster.start().nodes.values()
        verdict = alpha.status()["verdict"]
        expect(verdict["level"] == "safe", f"with three members the verdict is {verdict}")
        alpha.kill()
        wait_until("one of the two others serves", lambda: any(
            node.replica()["role"] == "primary" for node in (beta, gamma)))
        first = cluster.primary()
        cluster.wait_for_acks(first.name)
        second = gamma if first is beta else beta
        wait_until("the two are in sync", lambda: sorted(
            first.replica()["in_sync"]) == ["beta", "gamma"])
        verdict = first.status()["verdict"]
        expect("one of the two may fail" in verdict["text"], f"with two of three: {verdict}")
        alpha.start()
        cluster.wait_in_sync()
        first.kill()
        wait_until("another serves", lambda: any(
            node.replica()["role"] == "primary" for node in (alpha, second)))
        cluster.wait_for_acks(cluster.primary().name)
        first.start()
        cluster.finish()


SCENARIOS = [three_replicas_lose_one_after_the_other_and_no_acknowledged_write,
             a_third_replica_comes_to_a_running_pair_and_takes_over_later]
LONG = []
