"""A libvirtd in a machine of machine.py, with directories of its own: as on a host of its own. What is
in /run is gone with the machine, the rest stays."""

# What Debian's package brings along or makes; each node has its own there.
KEPT = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "cache": "/var/cache/libvirt",
        "log": "/var/log/libvirt"}
# Agents remember there what runs.
LOST = ("/run/libvirt", "/run/resource-agents")
# Containers and the machines of these tests have neither cgroups nor udev nor a virtlogd, and their
# root owns what a guest is made of.
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
remember_owner = 0
namespaces = [ ]
cgroup_controllers = [ ]
stdio_handler = "file"
"""
LIBVIRTD_CONF = 'auth_unix_ro = "none"\nauth_unix_rw = "none"\n'


class LibvirtHost:
    """The libvirt of one node."""

    def __init__(self, node):
        self.node = node
        self.dir = node.dir / "libvirt"
        self.log_path = self.dir / "libvirtd.log"
        for name in KEPT:
            (self.dir / name).mkdir(parents=True)
        (self.dir / "etc/qemu.conf").write_text(QEMU_CONF)
        (self.dir / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)

    def prepare(self):
        """Its directories, in a machine that was just made."""
        for name, place in KEPT.items():
            self.node.inside("mkdir", "-p", place)
            self.node.inside("mount", "--bind", self.dir / name, place)
        for place in LOST:
            self.node.inside("mkdir", "-p", place)
            self.node.inside("mount", "-t", "tmpfs", "libvirt-host", place)

    def start(self):
        """Starts libvirtd; whoever wants something of it waits for it."""
        with open(self.log_path, "ab") as log:
            self.node.machine.spawn("libvirtd", "--pid-file", "/run/libvirt/libvirtd.pid",
                                    stdout=log, stderr=log, start_new_session=True)

    def answers(self):
        """Whether it does."""
        return self.virsh("list").returncode == 0

    def virsh(self, *words):
        """What an operator on this host does."""
        return self.node.inside("virsh", "--connect=qemu:///system", *words, check=False)
