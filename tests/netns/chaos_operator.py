"""The operator of a chaos run. It knows what an operator with both machines in sight knows, and
promotes only where the rules allow it: `--old-primary-is-off` when the other daemon is dead and its
disk says that this node was in its in-sync set; `--alone` for the node that served last.
"""

import json
import subprocess
import time

from cluster import Refused, TestFailed, die_with_parent, expect, other, wait_until

COMMAND_LIMIT_S = 60
PATIENCE_S = 1.0
TRIES_AGAIN_AFTER_S = 0.3
KNOWS_MORE = 0.3


def dump(node):
    """The metadata on its disk; none while an update is half done."""
    try:
        return node.ctl("dump", "demo")
    except Refused:
        return None


class Operator:
    """Looks again and again, gives one command at a time, and waits for its end in between."""

    def __init__(self, chaos):
        self.chaos = chaos
        self.cluster = chaos.cluster
        self.primary = None
        self.appointed = []
        self.relies_on_death_of = None
        self.preferred = None
        self.running = None
        self.seen_tenures = set()
        self.take_overs = self.hand_overs = 0
        self.refusals = {}
        self.gone_since = None
        self.patience = self.not_before = 0

    # ---------------------------------------------------------------- what can be known

    def metadata(self):
        """What the disks say, by node name; read without the daemons."""
        return {name: wait_until(f"the metadata of {name} can be read", lambda node=node: dump(node))
                for name, node in self.cluster.nodes.items()}

    def newest(self, disks):
        """The newest state of the register on any disk."""
        return max((disk["register"] for disk in disks.values()),
                   key=lambda register: register["generation"])

    def is_good_member(self, name, disks):
        """Whether this node has everything that was acknowledged: it is in the newest set as the
        process that it is, and nobody declared its data bad."""
        register, mine = self.newest(disks), disks[name]
        members = dict(zip(register["set"], register["set_incarnations"]))
        bad = {"invalid", "syncing", "discard_diverged"} & set(mine["flags"])
        return members.get(mine["replica"]) == mine["incarnation"] and not bad

    def somebody_holds_all(self):
        """Whether a running process has every acknowledged write, flushed or not."""
        disks = self.metadata()
        return any(node.is_running and self.is_good_member(name, disks)
                   for name, node in self.cluster.nodes.items())

    def replicas(self):
        """What the replica of each node says that can be asked."""
        return {node.name: node.replica() for node in self.chaos.nodes_running()}

    def tenures(self):
        """How many tenures were seen."""
        return len(self.seen_tenures)

    # ---------------------------------------------------------------- looking

    def look(self):
        """One look; at most one command is given."""
        if self.running and not self.command_ended():
            return
        replicas = self.replicas()
        leaders = [name for name, replica in replicas.items() if replica["role"] == "primary"]
        if len(leaders) == 2:
            self.expect_one_primary()
            return
        if leaders:
            self.seen_tenures.add(replicas[leaders[0]]["tenure"])
            self.serves(self.cluster.nodes[leaders[0]])
            return
        if self.primary is None or self.primary.name not in self.chaos.stopped:
            # One that is stopped may serve again when it goes on.
            self.nobody_serves(replicas)

    def expect_one_primary(self):
        """Two answers of different moments may both say primary; three rounds may not."""
        for _ in range(3):
            roles = [replica["role"] for replica in self.replicas().values()]
            if roles.count("primary") < 2:
                return
        raise TestFailed("both nodes are primary")

    def serves(self, node):
        """This node is primary."""
        self.gone_since = None
        if self.primary is not node or self.chaos.serving.node is not node:
            self.chaos.say(f"    {node.name} serves")
            self.primary = node
            self.chaos.serving.set(node)
        if self.preferred is node:
            self.preferred = None
            self.hand_overs += 1

    def nobody_serves(self, replicas):
        """Nobody is primary: after a moment, somebody is promoted if the rules allow it."""
        if self.primary is not None:
            self.chaos.serving.interrupt()
        self.primary = None
        now = time.monotonic()
        if self.gone_since is None:
            self.gone_since = now
            self.patience = self.chaos.draw.choice((0, 0, 0, PATIENCE_S, 3 * PATIENCE_S))
        patient = self.preferred is None and now - self.gone_since < self.patience
        if patient or now < self.not_before:
            return
        able = [self.cluster.nodes[name] for name, replica in replicas.items()
                if replica["role"] == "secondary"]
        if self.preferred in able:
            able = [self.preferred]
        if able:
            self.promote(self.chaos.draw.choice(able))

    def promote(self, node):
        """Gives the command with the flags that are true."""
        peer = self.cluster.nodes[other(node.name)]
        disks = self.metadata()
        serves_last = self.newest(disks)["authority"] == disks[node.name]["replica"]
        flags = []
        if not peer.is_running:
            if serves_last:
                flags = ["--alone"]
            elif self.is_good_member(node.name, disks):
                flags = ["--old-primary-is-off"]
            else:
                return
            self.relies_on_death_of = peer
        elif serves_last and self.chaos.draw.random() < KNOWS_MORE:
            flags = ["--alone"]
        self.appointed.append(node.name)
        self.give(node, "promote", "demo", *flags)

    # ---------------------------------------------------------------- commands

    def hand_over(self):
        """Demotes the primary; the next looks promote the other."""
        if self.running or self.primary not in self.chaos.nodes_running():
            return False
        target = self.cluster.nodes[other(self.primary.name)]
        if target not in self.chaos.nodes_running():
            return False
        self.chaos.say(f"hand-over from {self.primary.name} to {target.name}")
        self.preferred = target
        self.chaos.serving.interrupt()
        self.give(self.primary, "demote", "demo", "--drop-clients")
        return True

    def give(self, node, *words):
        """Starts a command; its end is seen by a later look."""
        command = [self.cluster.bin / "replctl", "--config", node.config, "--node", node.name,
                   "--json", *words]
        child = subprocess.Popen([str(word) for word in command], text=True,
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        self.running = (child, node, words, time.monotonic())

    def command_ended(self):
        """Whether the command is over; notes what became of it."""
        child, node, words, since = self.running
        if child.poll() is None:
            took = time.monotonic() - since
            expect(took < COMMAND_LIMIT_S or node.name in self.chaos.stopped,
                   f"{node.name}: {' '.join(words)} is not answered for {took:.0f} s")
            return False
        self.running = None
        self.relies_on_death_of = None
        took = time.monotonic() - since
        if child.returncode == 0:
            self.chaos.say(f"    {node.name}: {' '.join(words)}: done after {took:.2f} s")
            if "--old-primary-is-off" in words:
                self.take_overs += 1
        else:
            self.refused(node, words, child.stdout.read())
        return True

    def refused(self, node, words, text):
        """It was not done. The preference for a target ends with it."""
        try:
            refusal = Refused(1, json.loads(text))
        except (json.JSONDecodeError, AttributeError):
            refusal = Refused(1, {"error": text.strip()})
        code = refusal.code or "no answer"
        if code not in self.refusals or self.preferred:
            self.chaos.say(f"    {node.name}: {' '.join(words)} is refused: {refusal}")
        self.refusals[code] = self.refusals.get(code, 0) + 1
        self.preferred = None
        self.not_before = time.monotonic() + TRIES_AGAIN_AFTER_S

    def all_is_well(self):
        """One primary, and the other in sync with it."""
        if self.running or self.primary is None or not self.primary.is_running:
            return False
        peer = self.primary.peer()
        return bool(peer.get("is_member") and peer["dirty_bytes"] == 0
                    and peer["state"] == "current")
