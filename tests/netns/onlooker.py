"""A third party on the bridge: sees all the time which node has the floating address and on which node
the service accepts connections, and judges that never two did at a time.
"""

import socket
import threading
import time

from cluster import expect, in_namespace, run
from floating_address import Bystander
from watch import without_repeats

# Neither a client's address nor a node's: a server may hold it against whom knocks and leaves.
OWN_ADDRESS = "10.99.0.8"
KNOCKS_EVERY_S = 0.05
KNOCK_S = 0.2


class Onlooker:
    """Looks at the data nodes of a cluster from now on: who answers for `address`, and, if there is a
    `port`, who accepts connections there at its own address. `macs`: names of the nodes by hardware
    address, where those are not the cards of their namespaces."""

    def __init__(self, cluster, address, port=None, macs=None,
                 knocks_every_s=KNOCKS_EVERY_S):
        self.cluster, self.port, self.knocks_every_s = cluster, port, knocks_every_s
        self.place, self.address = cluster.client_namespace, address
        self.macs = macs or {mac_of(node.namespace): node.name for node in cluster.data_nodes}
        run("ip", "-n", self.place, "addr", "add", f"{OWN_ADDRESS}/24", "dev", "link0")
        self.bystander = Bystander(self.place, OWN_ADDRESS, mac_of(self.place))
        self.bystander.listen()
        self.bystander.ask_for_ever(address, pause_s=0.02)
        self.accepted, self.is_over, self.threads = [], threading.Event(), []
        for node in cluster.data_nodes if port else ():
            self.threads.append(threading.Thread(target=self._knock, args=(node,)))
            self.threads[-1].start()

    def _knock(self, node):
        """Asks a node for the service again and again; how it goes on is not our business."""
        while not self.is_over.wait(self.knocks_every_s):
            with in_namespace(self.place), socket.socket() as link:
                link.bind((OWN_ADDRESS, 0))
                link.settimeout(KNOCK_S)
                if link.connect_ex((node.host, self.port)) == 0:
                    self.accepted.append((time.monotonic(), node.name))

    def close(self):
        """Looks no longer."""
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        self.bystander.close()

    def seen(self):
        """Who had what, in the order of time: (what, names without repeats)."""
        answers = self.bystander.heard(("answer",), None, self.address)
        yield "address", without_repeats(
            self.macs[frame.mac] for frame in answers if frame.mac in self.macs)
        if self.port:
            yield "service", without_repeats(name for _, name in sorted(self.accepted))

    def expect_never_two(self):
        """Each had them in turn, as the office went: two at a time would take turns more often."""
        in_office = without_repeats(
            entry["primary"] for entry in self.cluster.history() if entry["primary"])
        for what, names in self.seen():
            expect(names, f"nobody was seen with the {what}")
            left = iter(in_office)
            expect(all(name in left for name in names),
                   f"the {what} was seen on {names}, in office were {in_office}")
            print(f"    seen from outside with the {what}: {', then '.join(names)}")


def mac_of(place):
    """The hardware address of link0 in a namespace."""
    return run("ip", "-n", place, "-br", "link", "show", "link0").stdout.split()[2]
