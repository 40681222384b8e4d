"""Scenarios: what README.md says is true. Every configuration in it is accepted, every command in it is
one, and a newcomer who types the first ones as they stand has a cluster.
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import tempfile

from cluster import ROOT, binaries, expect, run, wait_until
from example import strange_warnings
from machine import Machine
from trio import Trio

README = ROOT / "README.md"
# Commands of others that the README names.
OF_THE_SYSTEM = ("mkfs.ext4", "lvextend", "resize2fs")
# What a machine has of its own: they are the same places on all machines of the README.
PLACES = ("/etc/replicator", "/var/lib/replicator", "/run/replicator", "/dev/replicator", "/dev/vg0")


def blocks(kind):
    """The blocks of one kind in the README, in their order."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    expect(found, f"README.md has no block {kind}")
    return found


def sections(text):
    """A configuration by its tables: what stands before the first one belongs to ``."""
    parts = re.split(r"^(\[\S+\])$", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2]))}


def whole(block):
    """A block as a whole file: one without a cluster is a change of the first."""
    found = sections(block)
    if "cluster" not in found[""]:
        change, found = found, sections(blocks("toml")[0])
        change[""] = found[""] + change[""]
        found.update(change)
        if "register" in change[""]:
            del found["[node.gamma]"]  # "... can leave the witness out"
    return "".join(f"{head}\n{body}" if head else body for head, body in found.items())


def commands(block):
    """(command, what its comment says) of every line."""
    for line in block.splitlines():
        command, _, comment = line.partition("#")
        if command.strip():
            yield command.strip(), comment.strip()


def every_configuration_and_command_of_the_readme_is_one():
    """`replctl check` takes the files; and the command line knows every word."""
    with tempfile.TemporaryDirectory() as place:
        for number, block in enumerate(blocks("toml")):
            path = pathlib.Path(place, f"{number}.toml")
            path.write_text(whole(block))
            done = run(binaries() / "replctl", "--config", path, "--node", "alpha", "check",
                       check=False)
            expect(done.returncode in (0, 4), f"{block}\n{done.stdout}{done.stderr}")
            strange = strange_warnings(done.stdout)
            expect(not strange, f"{block}\n{strange}")
    known = 0
    for command, _ in (it for block in blocks("sh") for it in commands(block)):
        program, *words = shlex.split(command)
        if program in ("replctl", "replicatord"):
            # Read up to there, and help is shown.
            words = [word.replace("BYTES", "64M") for word in words]
            done = run(binaries() / program, *words, "--help", check=False)
            expect(done.returncode == 0, f"{command}\n{done.stderr}")
            known += 1
        else:
            expect(program in OF_THE_SYSTEM or (ROOT / program).exists(), f"who runs {command}?")
    print(f"    {len(blocks('toml'))} configurations, {known} commands")


class Newcomer(Trio):
    """Three machines with the addresses of the README and its places, and nothing in them."""

    def __init__(self):
        super().__init__()
        self.boxes = {}
        self.made = [place for place in PLACES if not pathlib.Path(place).exists()]

    def switch_on(self):
        """The machines, with a disk and the configuration of the README."""
        text = blocks("toml")[0]
        for place in self.made:
            pathlib.Path(place).mkdir(parents=True, exist_ok=True)
        for node in self.nodes.values():
            address = re.search(rf'\[node.{node.name}\]\naddress = "(.*?)"', text)[1]
            run("ip", "-n", node.namespace, "addr", "add", f"{address}/24", "dev", "link0")
            self.boxes[node.name] = Machine(node.namespace)
            for place in PLACES:
                self.typed(node.name, f"mkdir -p {place} && mount -t tmpfs own {place}")
            image = self.dir / f"{node.name}.disk"
            run("truncate", "-s", "64M", image)
            self.typed(node.name, f"ln -s {image} {re.search(r'disk = .(.*?).$', text, re.M)[1]}")
            (self.dir / "replicator.toml").write_text(text)
            self.typed(node.name, f"cp {self.dir}/replicator.toml /etc/replicator/")

    def words(self, name, command):
        """A command line as somebody types it on that machine, who has installed the programs."""
        return ["unshare", "--uts", "sh", "-c", f"hostname {name}; PATH={binaries()}:$PATH; {command}"]

    def typed(self, name, command, check=True):
        """Runs it to its end."""
        box = self.boxes[name]
        with box.birth():
            return run(*box.command(self.words(name, command)), check=check)

    def left_running(self, name, command):
        """Runs it for ever."""
        with open(self.dir / f"{name}.typed.log", "wb") as log:
            self.boxes[name].spawn(*self.words(name, command), stdout=log, stderr=log)

    def office_of_mariadb(self):
        """As gamma tells."""
        said = self.typed("gamma", "replctl --json status", check=False).stdout
        cluster = json.loads(said)["cluster_state"] if said.startswith("{") else {"resources": []}
        return next(iter(cluster["resources"]), {"primary": "", "in_sync": []})

    def wait_until_whole(self):
        """Both copies are in sync."""
        wait_until("both copies are in sync", lambda: len(self.office_of_mariadb()["in_sync"]) == 2, 30)

    def close(self, keep=False):
        for box in self.boxes.values():
            box.cut_power([])
        super().close(keep)
        for place in self.made:
            with contextlib.suppress(OSError):
                os.rmdir(place)


def where(comment):
    """The machines on which a command is typed, by its comment."""
    if "all three" in comment:
        return ["alpha", "beta", "gamma"]
    return [next((name for name in ("alpha", "beta", "gamma") if f"on {name}" in comment), "alpha")]


def a_newcomer_who_types_the_readme_has_a_cluster():
    """The first file, and the commands below it and of "When a server is lost", as they stand."""
    with Newcomer() as cluster:
        cluster.switch_on()
        first, lost = (next(block for block in blocks("sh") if word in block)
                       for word in ("replctl init ", "replctl switchover "))
        for command, comment in commands(first):
            if command.startswith("mkfs"):
                wait_until("the device is there", lambda: cluster.typed(
                    "alpha", "test -e /dev/replicator/mariadb", check=False).returncode == 0, 30)
            for name in where(comment):
                if command == "replicatord":
                    cluster.left_running(name, command)
                elif command.endswith("--watch"):
                    cluster.wait_until_whole()
                    watched = cluster.typed(name, f"timeout 2 {command}", check=False).stdout
                    expect("verdict: safe" in watched, f"{command} shows:\n{watched}")
                else:
                    cluster.typed(name, command)
            if "copy /etc/replicator/key" in comment:
                cluster.typed("alpha", f"cp /etc/replicator/key {cluster.dir}/key")
                for name in ("beta", "gamma"):
                    cluster.typed(name, f"install -m 600 {cluster.dir}/key /etc/replicator/key")
        expect(cluster.office_of_mariadb()["primary"] == "alpha", "alpha is not primary")
        cluster.typed("alpha", "fsck.ext4 -fn /dev/replicator/mariadb")
        for command, _ in commands(lost):
            if "--allow-data-loss" not in command:
                cluster.typed("alpha", command)
                cluster.wait_until_whole()
        expect(cluster.office_of_mariadb()["primary"] == "beta", "the switchover moved nothing")


SCENARIOS = [
    every_configuration_and_command_of_the_readme_is_one,
    a_newcomer_who_types_the_readme_has_a_cluster,
]
