"""Who acknowledged what, when: writes of an observer to every node, each answer noted by one clock, and
the judge of it (oracle (b) of the safety rules).
"""

import itertools
import pathlib
import sys
from typing import NamedTuple

from chaos_loads import CheckedLoad
from cluster import MIB, expect

HERE = pathlib.Path(__file__).resolve().parent
LOAD_MIB = 48
PROBE_AT = 56 * MIB
# The answer to a write that was sent before a later primary's first answer came may be older than
# that answer, and only on its way: to the program that notes it, so long at most.
SLACK_S = 0.5


class Ack(NamedTuple):
    """An acknowledged write, its times by the observer's clock."""

    node: str
    sent: float
    answered: float


class Watch:
    """blkload, whose checker knows what must be on the disk, and the program that notes every
    acknowledgement of each data node."""

    def __init__(self, cluster, rate=150, load=True, pause_ms=4, over_tcp=False, resource="demo",
                 probe_at=PROBE_AT):
        self.cluster, self.resource = cluster, resource
        self.path = cluster.dir / f"acknowledged-{resource}"
        self.path.touch()
        self.load = CheckedLoad(cluster, LOAD_MIB, rate, 1) if load else None
        targets = [f"{node.name}={node.host}:{node.nbd_port}" if over_tcp
                   else f"{node.name}={node.nbd_socket}" for node in cluster.data_nodes]
        inside = ("ip", "netns", "exec", cluster.client_namespace) if over_tcp else ()
        self.program = cluster.spawn(
            *inside, sys.executable, HERE / "acknowledged.py", self.path, resource, probe_at,
            pause_ms, *targets, log=self.path.with_suffix(".log"))

    def lines(self):
        """All events so far, in words."""
        text = self.path.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def acks(self):
        """Every acknowledgement, by the time it was sent."""
        found = (ack_of(line) for line in self.lines() if line[0] == "ack")
        return sorted(found, key=lambda ack: ack.sent)

    def expect_well(self):
        """Nothing wrong so far."""
        expect(self.program.poll() is None, "the program that notes acknowledgements ended")
        if self.load:
            self.load.expect_well()

    def expect_no_error(self):
        """No client saw its connection end or an I/O error."""
        ends = [line for line in self.lines() if line[0] == "end"]
        expect(not ends, f"clients were interrupted: {ends[:3]}")

    def finish(self, order=None):
        """Ends all loads and judges; `order` as for the judge."""
        self.expect_well()
        self.program.kill()
        self.program.wait()
        if self.load:
            self.load.stop()
            self.load.verify()
        self.expect_one_primary_at_a_time(order)

    def expect_one_primary_at_a_time(self, order=None):
        """Oracle (b). `order`: the nodes in the order in which they had the office, where no register
        of a majority tells it."""
        if order is None:
            order = [entry["primary"] for entry in self.cluster.history(self.resource)
                     if entry["primary"]]
        print(f"    {judge(self.lines(), order)}")


def ack_of(line):
    """From its line, in words."""
    return Ack(line[1], float(line[2]), float(line[3]))


def without_repeats(names):
    """Of equal names in a row only one."""
    return [name for name, _ in itertools.groupby(names)]


def judge(lines, order):
    """Fails unless the nodes that acknowledged follow each other as they had the office (`order`), and
    nobody acknowledged anything after a later primary had; what it counted, in words."""
    spans = connections(lines)
    expect(spans, "nothing was acknowledged at all")
    seen = without_repeats(acks[0].node for acks in spans)
    order = without_repeats(order)
    left = iter(order)
    expect(all(name in left for name in seen),
           f"nodes acknowledged in the order {seen}, in office were {order}")
    late, delayed = two_at_a_time(spans)
    acks = list(itertools.chain(*spans))
    expect(not late and not delayed,
           f"of {len(acks)} writes {len(late)} were sent to an earlier primary after a later one had "
           f"acknowledged some, and acknowledged all the same: {late[:3]}; {len(delayed)} were sent "
           f"before and acknowledged more than {SLACK_S} s after: {delayed[:3]}")
    counts = {name: sum(ack.node == name for ack in acks) for name in sorted(set(seen))}
    told = ", ".join(f"{count} by {name}" for name, count in counts.items())
    return (f"acknowledged: {told}; {len(order)} times in office, changed {len(seen) - 1} times under "
            f"watch; {len(late) + len(delayed)} writes by two primaries at a time")


def connections(lines):
    """The acknowledgements of each connection that got some, by the time of the first. A connection
    ends with the office of its node at the latest (R15), so all of them are of one tenure."""
    found, current = [], {}
    for line in lines:
        if line[0] == "open":
            current[line[1]] = []
            found.append(current[line[1]])
        elif line[0] == "ack":
            current[line[1]].append(ack_of(line))
    return sorted(filter(None, found), key=lambda acks: acks[0].sent)


def two_at_a_time(spans):
    """What was acknowledged on a connection although on a later one another node had acknowledged
    something: sent after that answer had come, which needs no slack for a clock or for an answer on
    its way; and sent before, but answered long after."""
    late, delayed = [], []
    for at, acks in enumerate(spans):
        others = [it[0].answered for it in spans[at + 1:] if it[0].node != acks[0].node]
        first = min(others, default=float("inf"))
        late += [ack for ack in acks if ack.sent > first]
        delayed += [ack for ack in acks if ack.sent <= first and ack.answered > first + SLACK_S]
    return late, delayed
