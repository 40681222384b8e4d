#!/usr/bin/env python3
"""nfs.toml of tools/deploy/examples, run whole. An NFS server is of the kernel, so both data nodes are
virtual machines; the witness is outside, and a third machine is the client, with the kernel's hard mount.
The machine of the primary dies, the client goes on where it was, everything that it had flushed is there,
and it is switched back. `./tools/test examples` calls this.

Exit code: 0 all well, 1 something failed, 77 it cannot be tried here (no root).
"""

import pathlib
import shutil
import sys

from machines import AGENT_PORT, BOOT_S, HERE, VirtualMachine, WithMachines, exit_code
from cluster import Skip, expect, run, wait_until
from example import ADDRESS, Example, Items, goes_on_elsewhere_and_back
from floating_address import Bystander
from trio import CLIENT_ADDRESS

CLIENT_HOST = "10.99.0.8"
MOUNT = "/mnt"
# On emulated processors what agents do takes 20 times as long, and the looks at them most of the time.
SLOW = ("start_timeout_ms = 240000, stop_timeout_ms = 240000, monitor_timeout_ms = 120000, "
        "monitor_every_ms = 60000")
# The whole story, on a machine that has other things to do as well.
LIMIT_S = 2400


class Nfs(WithMachines, Example):
    """nfs.toml with its nfs-server and nfs-server.conf."""

    file, mount_point, attach = "nfs.toml", "/srv/nfs", "nbd"
    boxed = ("alpha", "beta")
    patience_s = 480
    # Three machines share the processors of one: they are late by more than one alone.
    lease_ms = 15000
    session = {"peer_silence_ms": 12000, "ping_interval_ms": 2000}

    def __init__(self):
        if not shutil.which("exportfs") or not pathlib.Path(
                "/usr/lib/ocf/resource.d/heartbeat/nfsserver").exists():
            raise Skip("needs nfs-kernel-server and resource-agents")
        super().__init__()
        bridge = self._namespace("bridge")
        run("ip", "-n", bridge, "tuntap", "add", "tap0", "mode", "tap")
        run("ip", "-n", bridge, "link", "set", "tap0", "master", "bridge", "up")
        self.client = VirtualMachine(self, "client", CLIENT_HOST, bridge)
        mac = run("ip", "-n", self.client_namespace, "-br", "link", "show", "link0").stdout.split()[2]
        self.bystander = Bystander(self.client_namespace, CLIENT_ADDRESS, mac)

    def replaced(self):
        slow = {words: f"{words}, {SLOW}" for words in
                ('type = "ext4"', 'name = "server"', 'name = "export"', 'interface = "eth0"')}
        return {"eth0": "eth0", "192.0.2.100": ADDRESS, "192.0.2.0/24": "10.99.0.0/24", **slow}

    def config_inside(self, node):
        # Run directory and devices are where they are on every machine, and gone with its power.
        lines = super().config_inside(node).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(("run_dir", "device_dir")))

    def fill(self, place):
        export = place / "export"
        export.mkdir()
        shutil.chown(export, "nobody", "nogroup")

    def create(self):
        super().create()
        for node in self.data_nodes:
            self.make_state(node)
        return self

    def boot(self, node):
        """Switches on the machine of a node."""
        self.boxes[node.name].boot("nfs_inside.sh", str(AGENT_PORT), limit_s=LIMIT_S,
                                   options=("--disk", self.state(node)))

    def start(self, watched=False):
        self.create()
        for node in self.data_nodes:
            self.boot(node)
        self.gamma.start()
        self.client.launch("nfs_client_inside.sh", f"{CLIENT_HOST}/24", str(AGENT_PORT),
                           limit_s=LIMIT_S)
        for machine in (*self.boxes.values(), self.client):
            machine.wait_until_up()
        self.wait_in_sync()
        self.bystander.listen()
        self.bystander.ask_for_ever(ADDRESS, pause_s=0.1)
        wait_until("the client has it mounted", self.is_served, self.patience_s)
        return self

    def is_served(self):
        return self.client.tell(f"mount -t nfs {ADDRESS}:/ {MOUNT}", self.patience_s)[1] == 0

    def wait_in_sync(self, resource="demo", deadline_s=BOOT_S, but=()):
        wait_until("both replicas are in sync",
                   lambda: len(self.office(self.gamma, resource)["in_sync"]) == 2, deadline_s)

    # ---------------------------------------------------------------- its story

    def write(self, program, **more):
        return Mounted(self, program)

    def lose(self, node):
        self.boxes[node.name].cut_power()

    def bring_back(self, node):
        self.boot(node)

    def switch_over(self, source, target):
        said = self.boxes[source.name].inside(f"replctl switchover demo --to {target.name}", 600)
        print(f"    {said.strip()}")

    def kept(self, promised):
        """The numbers whose files and rows are there, by a new mount."""
        self.client.inside(f"umount {MOUNT} && mount -t nfs {ADDRESS}:/ {MOUNT}", self.patience_s)
        rows = set(self.client.inside(f"cat {MOUNT}/rows").split())
        files = set(self.client.inside(f"cd {MOUNT}/items && grep -r .").splitlines())
        return [number for number in promised
                if str(number) in rows and f"{number}:item {number}" in files]

    def expect_well(self):
        """The nodes answered for the address in turn, never two at a time."""
        names = {box.mac: name for name, box in self.boxes.items()}
        found = []
        for frame in self.bystander.heard(("answer",), None, ADDRESS):
            name = names.get(frame.mac, frame.mac)
            if found[-1:] != [name]:
                found.append(name)
        expect(found == ["alpha", "beta", "alpha"], f"the address was answered for by {found}")

    def close(self, keep=False):
        self.bystander.close()
        if self.client.is_running:
            self.client.cut_power()
        super().close(keep)

    def evidence(self):
        return super().evidence() + self.client.evidence()


class Mounted(Items):
    """The client in the machine: its notes come by the console, so with the clock of the machine."""

    def __init__(self, cluster, program):  # pylint: disable=super-init-not-called
        self.cluster, self.path = cluster, cluster.client.log
        run_it = f"python3 {HERE / program} {MOUNT}; echo ended $?"
        self.group = int(cluster.client.inside(
            f"setsid bash -c '{run_it}' > /dev/ttyS0 2>&1 & echo $!"))
        self.wait_for_more()

    def is_running(self):
        return not self.lines("ended")

    def stop(self):
        self.cluster.client.inside(f"kill -KILL -- -{self.group}")

    def said(self):
        return self.cluster.client.console()[-3000:]

    def now(self):
        return self.promises()[-1][2]


if __name__ == "__main__":
    sys.exit(exit_code(lambda: goes_on_elsewhere_and_back(Nfs, "nfs_writer.py")))
