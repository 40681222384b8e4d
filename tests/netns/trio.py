"""Two data nodes and a witness, each in a network namespace of its own on a bridge, with a client's
namespace beside them, under a watch (watch.py).
"""

import json
import os
import time

from cluster import Cluster, Skip, run, wait_until
from watch import Watch

SIZE_MIB = 64
CLIENT_ADDRESS = "10.99.0.9"


class Trio(Cluster):
    """alpha and beta with disks, gamma the witness, on a bridge. Needs root."""

    def __init__(self, namespaces=True, witness=True, **more):
        if namespaces and os.geteuid() != 0:
            raise Skip("network namespaces need root")
        self.cuts = set()
        self.watch = None
        more = {"size_mib": SIZE_MIB, "tcp": True, **more}
        super().__init__(witness=witness, namespaces=namespaces, **more)

    # ---------------------------------------------------------------- the network

    def _namespace(self, name):
        return f"rt-{os.getpid()}-{name}"

    @property
    def client_namespace(self):
        """The namespace of clients outside all nodes."""
        return self._namespace("client")

    def _make_namespaces(self):
        """A bridge in a namespace of its own, and every node at one of its ports."""
        bridge = self._namespace("bridge")
        run("ip", "netns", "add", bridge)
        run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", bridge, "link", "set", "bridge", "up")
        places = [(node.namespace, node.host) for node in self.nodes.values()]
        for number, (place, host) in enumerate([*places, (self.client_namespace, CLIENT_ADDRESS)]):
            run("ip", "netns", "add", place)
            run("ip", "-n", place, "link", "set", "lo", "up")
            run("ip", "-n", place, "link", "add", "link0", "type", "veth", "peer", "name",
                f"port{number}", "netns", bridge)
            run("ip", "-n", place, "addr", "add", f"{host}/24", "dev", "link0")
            run("ip", "-n", place, "link", "set", "link0", "up")
            run("ip", "-n", bridge, "link", "set", f"port{number}", "master", "bridge", "up")

    def cut(self, sender, receiver):
        """What one node sends to another is lost; the other direction works."""
        if (sender.name, receiver.name) in self.cuts:
            return
        self.cuts.add((sender.name, receiver.name))
        rules = (f"table inet from_{sender.name} {{ chain i {{ type filter hook input priority 0; "
                 f"ip saddr {sender.host} drop; }}; }}")
        run("ip", "netns", "exec", receiver.namespace, "nft", rules)

    def cut_link(self, one, two):
        """Nothing passes between two nodes."""
        self.cut(one, two)
        self.cut(two, one)

    def isolate(self, node):
        """Nothing passes between a node and anybody else, at one instant."""
        self.cuts.add((node.name, "all"))
        chain = "{{ type filter hook {0} priority 0; {1} link0 drop; }}"
        rules = ("table inet isolated { chain i " + chain.format("input", "iifname") + "; chain o "
                 + chain.format("output", "oifname") + "; }")
        run("ip", "netns", "exec", node.namespace, "nft", rules)

    def heal(self):
        """Ends all cuts."""
        self.cuts.clear()
        super().heal()

    def close(self, keep=False):
        super().close(keep)
        if self.namespaces:
            for name in ("client", "bridge"):
                run("ip", "netns", "del", self._namespace(name), check=False)

    # ---------------------------------------------------------------- its life

    def start(self, watched=True, wraps=None):
        """Creates, starts all daemons, waits for a primary (the origin) and for both members; with
        a load whose every answer is checked, and a watch over who acknowledges. `wraps`: commands
        in front of daemons, by node."""
        self.create()
        for name, node in self.nodes.items():
            node.spawn((wraps or {}).get(name, ()))
        self.wait_in_sync()
        if watched:
            self.watch = Watch(self)
            self.wait_for_acks(self.office()["primary"])
        return self

    def office(self, node=None, resource="demo"):
        """The office as a node, or the first running one, tells of it."""
        node = node or next(it for it in self.nodes.values() if it.is_running)
        for office in node.ctl("status")["cluster_state"]["resources"]:
            if office["name"] == resource:
                return office
        return {"primary": "", "in_sync": [], "generation": 0, "tenure": 0}

    def wait_for_primary(self, node, deadline_s=20.0):
        """Waits until a node serves."""
        wait_until(f"{node.name} is primary", lambda: node.replica()["role"] == "primary",
                   deadline_s)

    def wait_for_acks(self, name, deadline_s=20.0, count=20):
        """Waits until a node acknowledged so many writes that were sent from now on; how long the
        first one took, in seconds."""
        since = time.monotonic()
        acks = wait_until(
            f"{name} acknowledges writes",
            lambda: (lambda found: found if len(found) >= count else None)(
                [ack for ack in self.watch.acks() if ack[0] == name and ack[1] >= since]),
            deadline_s)
        return acks[0][2] - since

    def data_node(self, name):
        """The node of that name."""
        return self.nodes[name]

    def history(self, resource="demo"):
        """What the register went through, all nodes' knowledge together, by revision."""
        known = {}
        for node in self.nodes.values():
            path = node.dir / "history.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            for line in lines:
                entry = json.loads(line)
                if entry["resource"] in ("", resource):
                    known[entry["revision"]] = entry
        return [known[revision] for revision in sorted(known)]

    def takeovers(self):
        """Changes of the register that gave the office to somebody."""
        return [entry for entry in self.history() if "takeover" in entry["what"]]

    def finish(self):
        """The load ends: it found nothing wrong; both disks are equal; no write was acknowledged by
        two primaries."""
        self.wait_in_sync()
        self.watch.finish()
        self.expect_identical()


def stay(seconds):
    """Lets time pass: for faults that last."""
    until = time.monotonic() + seconds
    wait_until(f"{seconds} s have passed", lambda: time.monotonic() >= until, seconds + 5)
