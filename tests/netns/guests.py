"""Guests of QEMU whose disk is the replicated one, as examples run them: busybox on Debian's kernel,
which serves what a web server does, each number in a sector of its own.
"""

import os
import pathlib
import shutil
import sys

from cluster import ROOT, Skip, expect, run, wait_until
from example import ADDRESS, EXAMPLES, HERE, Example
from libvirt_host import LibvirtHost

KERNEL_ROOT = pathlib.Path("/var/cache/replicator/vm/kernel")


class Guest(Example):
    """vm.toml with its qemu-vm."""

    file, attach, patience_s = "vm.toml", "none", 240
    # Emulated guests leave little of a busy machine for anybody: a lease that lasts all the same.
    settings = "lease_ms = 5000"
    # On a busy machine an emulated guest is slow; who goes away sooner only gives it more to do.
    answers_within_s = 10
    programs = ("qemu-system-x86_64", "socat", "busybox", "cpio")
    logs = ("guest.log",)
    # Behind QEMU's own network.
    network_words = "address=10.0.2.15/24 gateway=10.0.2.2"

    def __init__(self):
        for program in self.programs:
            if not shutil.which(program):
                raise Skip(f"needs {program}")
        run(ROOT / "tests/vm/run", "--prepare", timeout=300)
        super().__init__()

    @property
    def kernel(self):
        """The guest's disk has no boot loader: QEMU starts this."""
        return next((KERNEL_ROOT / "boot").glob("vmlinuz-*"))

    @property
    def kernel_words(self):
        """What it is told."""
        return f"console=ttyS0 quiet panic=1 no_timer_check {self.network_words}"

    def initramfs(self):
        """A guest's whole system: busybox, and what its kernel needs to see disk and network."""
        tree, modules = self.dir / "guest", ["virtio_pci", "virtio_blk", "virtio_net", "button", "evdev"]
        for name in ("bin", "dev", "proc", "sys", "modules"):
            (tree / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox"), tree / "bin/busybox")
        shutil.copy(HERE / "guest_init", tree / "init")
        shutil.copy(HERE / "guest_serve", tree / "serve")
        release = next((KERNEL_ROOT / "lib/modules").iterdir()).name
        paths = [line.split()[1] for module in modules for line in run(
            "modprobe", "-d", KERNEL_ROOT, "-S", release, "--show-depends", module
        ).stdout.splitlines() if line.startswith("insmod ")]
        for path in dict.fromkeys(paths):
            shutil.copy(path, tree / "modules")
            with open(tree / "modules/order", "a", encoding="utf-8") as order:
                order.write(pathlib.Path(path).name + "\n")
        done = run("sh", "-c", "find . | cpio --quiet -o -H newc > ../initramfs", cwd=tree)
        expect(done.returncode == 0, done.stderr)
        return self.dir / "initramfs"

    def shipped(self, name, replaced):
        """A file of the example, with some words replaced; each must be there."""
        text = (EXAMPLES / name).read_text()
        for old, new in replaced.items():
            expect(old in text, f"{name} has no {old} any more")
            text = text.replace(old, str(new))
        path = self.dir / name
        path.write_text(text)
        return path

    def replaced(self):
        boot = (f"-name shop -kernel {self.kernel} -initrd {self.initramfs()} -cpu max "
                f"-append '{self.kernel_words}' -serial file:{self.dir}/$REPLICATOR_NODE/guest.log")
        script = self.shipped("qemu-vm", {
            "192.0.2.100": ADDRESS, "-name shop": boot, "-m 1024 -smp 2": "-m 192",
            # One that cannot boot a stock kernel is worse than none.
            "-accel kvm ": "",
            "/run/replicator/": f"{self.dir}/$REPLICATOR_NODE/",
            # The resource of tests is called demo.
            "export=vm": "export=demo"})
        script.chmod(0o755)
        return {"/etc/replicator/qemu-vm": script}

    def is_served(self):
        return self.outside("curl", "-sf", "--max-time", self.answers_within_s,
                            f"http://{ADDRESS}/ready", check=False).returncode == 0

    def kept(self, promised):
        """Of these numbers those that are in their sectors, on the disk of each node."""
        found = set(promised)
        for node in self.data_nodes:
            with open(node.disk(), "rb") as disk:
                found &= {number for number in promised if os.pread(disk.fileno(), 512, number * 512)
                          == f"item {number}\n".encode().ljust(512, b"\0")}
        return found

    def evidence(self):
        """Also what the guests and others said."""
        text = super().evidence()
        for path in (node.dir / name for node in self.data_nodes for name in self.logs):
            said = path.read_text(errors="replace").splitlines()[-20:] if path.exists() else []
            text += f"  -- {path}\n" + "".join(f"    {line}\n" for line in said)
        return text


class GuestOfLibvirt(Guest):
    """vm-virtualdomain.toml with its domain, and a libvirtd on each data node."""

    file, attach = "vm-virtualdomain.toml", "fuse"
    programs = ("qemu-system-x86_64", "libvirtd", "virsh", "busybox", "cpio")
    logs = ("guest.log", "libvirt/libvirtd.log", "libvirt/log/qemu/shop.log")
    # The guest is in the network itself, on a bridge.
    has_address = False
    network, network_words = {}, f"address={ADDRESS}/24"

    def __init__(self):
        if not pathlib.Path("/usr/lib/ocf/resource.d/heartbeat/VirtualDomain").exists():
            raise Skip("needs resource-agents")
        super().__init__()
        self.hosts = {node.name: LibvirtHost(node) for node in self.data_nodes}
        # While they boot, libvirtd is not there yet.
        self.is_libvirtd_late = False
        self.notes = self.dir / "domain"

    def _make_namespaces(self):
        """The address of a node is on its bridge, and its card is a port of that."""
        super()._make_namespaces()
        for node in self.data_nodes:
            for words in ("addr flush dev link0", "link set link0 down", "link set link0 name card",
                          "link add link0 type bridge", "link set card master link0 up",
                          f"addr add {node.host}/24 dev link0", "link set link0 up"):
                run("ip", "-n", node.namespace, *words.split())

    def replaced(self):
        # Each node is at the same place of its own machine.
        self.here = self.dir / "here"
        self.here.mkdir()
        boot = (f"<kernel>{self.kernel}</kernel><initrd>{self.initramfs()}</initrd>"
                f"<cmdline>{self.kernel_words}</cmdline>")
        path = self.shipped("vm-virtualdomain.xml", {
            "<domain type='kvm'>": "<domain type='qemu'>", "host-passthrough": "maximum",
            "<memory unit='MiB'>1024<": "<memory unit='MiB'>192<", "<vcpu>2<": "<vcpu>1<",
            "<boot dev='hd'/>": boot, "/dev/replicator/vm": f"{self.here}/dev/demo", "br0": "link0",
            "<serial type='pty'/>":
                f"<serial type='file'><source path='{self.here}/guest.log'/></serial>"})
        return {"/etc/replicator/vm-virtualdomain.xml": path}

    def switched_on(self, node):
        if node in self.data_nodes:
            node.inside("mount", "--bind", node.dir, self.here)
            self.hosts[node.name].prepare()
            if not self.is_libvirtd_late:
                self.hosts[node.name].start()

    def start(self, watched=False):
        places = [f"{node.name}={node.namespace}" for node in self.data_nodes]
        self.spawn(sys.executable, HERE / "domain_watcher.py", self.notes, "shop", *places,
                   log=self.dir / "domain_watcher.log")
        return super().start(watched=watched)

    def boot(self, node):
        """A libvirtd that comes up late is no reason to take the domain for one that nothing stops:
        it was never there."""
        self.is_libvirtd_late = True
        node.start()
        wait_until("it is known not to run here", lambda: self.state(node) == "stopped", 60)
        expect(not self.hosts[node.name].answers(), "libvirtd is there already")
        self.hosts[node.name].start()

    @staticmethod
    def state(node):
        """What the domain is on a node, as that one tells."""
        return node.status()["services"]["services"][0]["state"]

    def runs(self):
        """The nodes that ran the domain, one set after the other, as somebody outside saw it."""
        return [set(line.split()[2:]) for line in self.notes.read_text().splitlines()]

    def expect_well(self):
        """It never ran on two nodes."""
        runs = [nodes for nodes in self.runs() if nodes]
        print("    the domain ran on " + ", then on ".join("+".join(sorted(it)) for it in runs))
        expect(all(len(nodes) == 1 for nodes in runs), f"it ran twice: {runs}")
        expect(runs == [{"alpha"}, {"beta"}, {"alpha"}], f"it ran elsewhere: {runs}")
