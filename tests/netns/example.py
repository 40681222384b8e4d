"""A whole configuration of tools/deploy/examples, run as it is on three machines: only its addresses,
paths and device names are replaced. What a test of one adds: how the disk is made, a client that
writes and notes what it was promised, and how that is found again.
"""

import pathlib
import re
import sys
import time

from cluster import ROOT, expect, run, wait_until
from onlooker import Onlooker
from trio import Trio

ADDRESS = "10.99.0.100"
EXAMPLES = ROOT / "tools/deploy/examples"
HERE = pathlib.Path(__file__).resolve().parent


# What a machine that is not one of the example's cannot have.
NOT_HERE = re.compile(r"the key file \S+ does not exist|No such file or directory|is not installed"
                      r"|there is no unit|no interface of this machine|is started at boot too")


def strange_warnings(checked):
    """What `replctl check` warned of that has other reasons than this machine."""
    warnings = [line for line in checked.splitlines() if "warning:" in line]
    return [line for line in warnings if not NOT_HERE.search(line)]


def services_of(name, replaced):
    """The services of an example, with some words replaced; each must be there."""
    example = (EXAMPLES / name).read_text()
    services = example[example.index("services = ["):]
    for old, new in replaced.items():
        expect(old in services, f"{name} has no {old} any more")
        services = services.replace(old, str(new))
    return services


class Example(Trio):
    """Three machines that run an example: `file` in tools/deploy/examples, whose file system is
    mounted at `mount_point` there."""

    file = mount_point = None
    network = {"192.0.2.100/24": f"{ADDRESS}/24", "eth0": "link0"}
    disk_mib, file_system_mib = 224, 200
    attach = "fuse"
    # What else stands at the top of the configuration.
    settings = ""
    # Where the service accepts connections, if each node's own does; whether nodes themselves have the
    # address.
    port, has_address = None, True
    onlooker = None
    # How long a client may wait until a dead machine's service runs elsewhere; emulated guests are slow.
    patience_s = 60

    def __init__(self, **more):
        super().__init__(attach=self.attach, size_mib=self.disk_mib, machines=True,
                         top=self.settings, **more)
        self.dir.chmod(0o755)
        self.mount = self.dir / "srv"
        self.mount.mkdir()
        self.options = services_of(self.file, {**self.network, **self.replaced()})
        self.write_config()

    def replaced(self):
        """Words of the example, and what stands there in the test."""
        return {self.mount_point: self.mount}

    def fill(self, place):
        """Puts into a directory what the new file system shall have, as the example says."""
        raise NotImplementedError

    def is_served(self):
        """Whether a client outside all machines is served through the floating address."""
        raise NotImplementedError

    def create(self):
        """The same file system on both disks: the data area begins at the first byte of the disk."""
        alpha, beta = self.alpha.disk(), self.beta.disk()
        if self.mount_point:
            # Never mounted here: whoever makes a mount namespace meanwhile would keep the mount, and
            # what was not written yet with it.
            place = self.dir / "prepare"
            place.mkdir()
            self.fill(place)
            run("mkfs.ext4", "-q", "-F", "-d", place, alpha, f"{self.file_system_mib}M")
        # Sparse, and the same bytes: both replicas count as equal from the start.
        run("cp", "--sparse=always", alpha, beta)
        return super().create()

    def start(self, watched=False):
        super().start(watched=watched)
        wait_until(f"{self.file} is served at the floating address", self.is_served, self.patience_s)
        if self.has_address:
            self.onlooker = Onlooker(self, ADDRESS, self.port)
        return self

    def close(self, keep=False):
        if self.onlooker:
            self.onlooker.close()
        super().close(keep)

    # ---------------------------------------------------------------- its story

    def write(self, program, **more):
        """A client that writes from now on."""
        return Items(self, program, **more)

    def lose(self, node):
        """A node's machine and its network end at one instant."""
        self.isolate(node)
        node.cut_power()

    def bring_back(self, node):
        """It is switched on again."""
        self.heal()
        self.boot(node)

    def boot(self, node):
        """What runs on it begins."""
        node.start()

    def switch_over(self, source, target):
        """The office moves from one node to the other in order."""
        source.ctl("switchover", "demo", "--to", target.name)

    def expect_well(self):
        """Never two nodes had the address or the service, as somebody outside saw it."""
        if self.onlooker:
            self.onlooker.expect_never_two()

    def evidence(self):
        """Also what the network looks like, as the kernel has it."""
        text = super().evidence()
        places = [node.namespace for node in self.data_nodes] + [self.client_namespace]
        for place in places:
            for words in (("addr", "show", "link0"), ("neigh",)):
                text += f"  -- {place}: ip {' '.join(words)}\n" + run("ip", "-n", place, *words).stdout
            text += run("ip", "netns", "exec", place, "ss", "-tan").stdout
        return text

    def outside(self, *command, **more):
        """Runs a client on a machine that is none of the three."""
        return run("ip", "netns", "exec", self.client_namespace, *command, **more)


class Items:
    """A client outside that writes numbered items and notes what it was promised: a program that gets
    the address and the file of its notes, with lines as rows_writer.py has them."""

    def __init__(self, cluster, program, python=sys.executable, more=(), begins_within_s=60):
        self.cluster = cluster
        self.path = cluster.dir / "items"
        self.path.touch()
        self.program = cluster.spawn("ip", "netns", "exec", cluster.client_namespace, python,
                                     HERE / program, ADDRESS, self.path, *more,
                                     log=cluster.dir / "items.log")
        self.wait_for_more(deadline_s=begins_within_s)

    def is_running(self):
        """Whether the client writes; once it ended it never does again."""
        return self.program.poll() is None

    def stop(self):
        """Ends the client."""
        self.program.kill()
        self.program.wait()

    def said(self):
        """What it said beside its notes."""
        return (self.cluster.dir / "items.log").read_text()

    def now(self):
        """The time by its clock."""
        return time.monotonic()

    def lines(self, word):
        """The words of every whole line of the notes that begins with `word`."""
        text = self.path.read_text()
        lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return [line for line in lines if line[:1] == [word]]

    def promises(self):
        """(number, began, ended) of every item that was promised."""
        return [(int(line[1]), float(line[2]), float(line[3])) for line in self.lines("ok")]

    def wait_for_more(self, count=20, deadline_s=60):
        """Waits until that many more items were written."""
        before = len(self.promises())
        wait_until(f"{count} more items are written",
                   lambda: not self.is_running() or len(self.promises()) >= before + count,
                   deadline_s)
        expect(self.is_running(), f"the client ended: {self.said()}")

    def longest_pause(self, since=0.0):
        """The longest time between two promises of which the later one came after `since`, in
        seconds."""
        ends = [ended for _, _, ended in self.promises()]
        return max(b - a for a, b in zip(ends, ends[1:]) if b > since)

    def finish(self, kept, told=True):
        """Ends the client; everything that was promised must be among what `kept` finds."""
        self.stop()
        promised = {number for number, *_ in self.promises()}
        lost = sorted(promised - {int(number) for number in kept(promised)})
        expect(not lost, f"{len(lost)} promised items are lost: {lost[:10]}")
        if told:
            print(f"    {len(promised)} items were promised, 0 lost; the client waited at most "
                  f"{self.longest_pause():.2f} s")
        return len(promised), self.longest_pause()


def goes_on_elsewhere_and_back(example, program, **more):
    """The story of every example: the machine of the primary dies, the other one serves everything
    that was promised; the dead one comes back, and gets the service back by a switchover."""
    with example() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        items = cluster.write(program, begins_within_s=example.patience_s, **more)
        since = items.now()
        cluster.lose(alpha)
        wait_until("beta is primary", lambda: cluster.office()["primary"] == "beta",
                   example.patience_s)
        items.wait_for_more(deadline_s=example.patience_s)
        print(f"    machine gone: the client waited {items.longest_pause(since):.2f} s")
        cluster.bring_back(alpha)
        cluster.wait_in_sync()
        since = items.now()
        cluster.switch_over(beta, alpha)
        wait_until("alpha is primary again", lambda: cluster.office()["primary"] == "alpha",
                   example.patience_s)
        items.wait_for_more(deadline_s=example.patience_s)
        print(f"    switched back: the client waited {items.longest_pause(since):.2f} s")
        items.finish(cluster.kept)
        cluster.expect_well()
