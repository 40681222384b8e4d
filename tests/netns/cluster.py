"""Two nodes, alpha and beta, on this machine, or three with gamma, a witness: makes their disks, key
and configuration, starts and kills their daemons, asks `replctl`, waits for conditions with
deadlines, compares their disks.

Everything lives in one temporary directory (REPLICATOR_TEST_DIR says where, /var/tmp by default),
listens on loopback or in network namespaces of its own, and is gone when the `with` block ends.
KEEP=1 keeps the directory. Only Python's own library is needed.
"""

import contextlib
import ctypes
import functools
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib

from machine import Machine
from nbd_client import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
NODES = ("alpha", "beta")
WITNESS = "gamma"
MIB = 1 << 20
BLOCK = 4096
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
POLL_S = 0.02


class TestFailed(Exception):
    """What must be true is not."""


class Skip(Exception):
    """It cannot be tried here."""


class Refused(Exception):
    """`replctl` refused or failed; `code`, `rule`, `why` and `next` say how."""

    def __init__(self, exit_code, answer):
        refusal = answer.get("refused", {})
        self.exit_code = exit_code
        self.code = refusal.get("code", "")
        self.why = refusal.get("why", answer.get("error", str(answer)))
        self.next = refusal.get("next", "")
        self.rule = refusal.get("rule", "")
        super().__init__(f"{self.why} (next: {self.next})" if self.next else self.why)


def other(node):
    """The name of the other node."""
    return NODES[1 - NODES.index(node)]


def on_each_backing(scenario):
    """The scenario on a plain file, and on one that loses at SIGKILL what was not flushed."""
    def plain():
        scenario("normal")

    def volatile():
        scenario("volatile")
    plain.__name__ = scenario.__name__
    volatile.__name__ = f"{scenario.__name__}_on_a_volatile_disk"
    # Of the two the one that finds less.
    plain.is_for_long = True
    return plain, volatile


def expect(condition, text):
    """Fails with the text unless the condition holds."""
    if not condition:
        raise TestFailed(text)


def wait_until(what, condition, deadline_s=20.0):
    """Waits until the condition returns something true, and returns that."""
    end = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise TestFailed(f"after {deadline_s} s still not: {what}")
        time.sleep(POLL_S)


@functools.cache
def built(*what):
    """Builds programs, see tests/build; the directory where they are."""
    environment = dict(os.environ)
    environment["PATH"] += f":{pathlib.Path.home()}/.cargo/bin"
    subprocess.run([ROOT / "tests" / "build", *what], check=True, env=environment)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return (ROOT / target) / "release"


def binaries():
    """The directory of replicatord, replctl and blkload: REPLICATOR_BIN, or built now."""
    given = os.environ.get("REPLICATOR_BIN")
    return pathlib.Path(given) if given else built("ships", "load")


def die_with_parent():
    """In a child before its program: no daemon outlives a killed test."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(*command, check=True, timeout=120, **more):
    """Runs a program to its end, with its output as text."""
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **more)
    except subprocess.TimeoutExpired as error:
        shown = " ".join(command)
        raise TestFailed(f"{shown}\nis not done after {timeout} s\n{error.stdout}") from error
    if check and done.returncode != 0:
        shown = " ".join(command)
        raise TestFailed(f"{shown}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


_reserved = []


@contextlib.contextmanager
def in_namespace(name):
    """This thread, in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(path):
        with open(path, encoding="ascii") as file:
            if libc.setns(file.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), f"setns {path}")
    own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    with open(own, encoding="ascii") as before:
        enter(f"/run/netns/{name}")
        try:
            yield
        finally:
            libc.setns(before.fileno(), 0x40000000)


def free_port():
    """A TCP port of 127.0.0.1 for this process alone: below those that the kernel gives to outgoing
    connections, and reserved by a name that every run of these tests on this machine asks for."""
    for port in random.sample(range(10000, 32000), 1000):
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0replicator-test-port-{port}")
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            name.close()
            continue
        _reserved.append(name)
        return port
    raise TestFailed("no free port among a thousand")


def read_direct(path, offset, length):
    """Bytes of a file or device as they are on the disk, around the page cache; `offset` and
    `length` are multiples of 4096."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, length)
        done = os.preadv(descriptor, [buffer], offset)
        return buffer[:done]
    finally:
        os.close(descriptor)


def differing_blocks(one, two, length):
    """Numbers of the 4 KiB blocks in which the first `length` bytes of two disks differ."""
    found = []
    step = 4 * MIB
    for start in range(0, length, step):
        aligned = min(step, -(-(length - start) // BLOCK) * BLOCK)
        here, there = read_direct(one, start, aligned), read_direct(two, start, aligned)
        here, there = here[: length - start], there[: length - start]
        if here == there:
            continue
        for at in range(0, max(len(here), len(there)), BLOCK):
            if here[at : at + BLOCK] != there[at : at + BLOCK]:
                found.append((start + at) // BLOCK)
    return found


class Node:
    """One node: its files and its daemon."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.dir = cluster.dir / name
        self.dir.mkdir()
        self.config = self.dir / "replicator.toml"
        self.key = cluster.dir / "key"
        self.port = 7788 if cluster.namespaces else free_port()
        self.nbd_port = free_port()
        self.http_port = 0   # where all share one address, none unless a test wants it
        self.log_path = self.dir / "log"
        self.device_dir = pathlib.Path(cluster.device_root) / name / "dev"
        self.process = None
        self.machine = None
        self.environment = {}
        self.arguments = []
        # In a namespace a daemon has another /sys, without cgroups, unless it is to see the machine's.
        self.sees_machine = False
        # Where its replicatord and replctl are; they may be of another build.
        self.bin = cluster.bin

    @property
    def host(self):
        """Its IP address."""
        number = list(self.cluster.nodes).index(self.name) + 1
        return f"10.99.0.{number}" if self.cluster.namespaces else "127.0.0.1"

    def disk(self, resource="demo"):
        """The path of its disk."""
        return self.cluster.resources[resource]["disk"][self.name]

    @property
    def nbd_socket(self):
        """Its Unix socket for NBD clients."""
        return self.dir / "nbd.sock"

    def uri(self, resource="demo"):
        """For libnbd, qemu and fio."""
        return f"nbd+unix:///{resource}?socket={self.nbd_socket}"

    def blkload_uri(self, resource="demo"):
        """For blkload."""
        return f"unix:{self.nbd_socket}:{resource}"

    def client(self, resource="demo", timeout_s=60):
        """A connection to its export."""
        return Client(self.nbd_socket, resource, timeout_s)

    @property
    def is_running(self):
        """Whether the daemon that was started last still runs."""
        return self.process is not None and self.process.poll() is None

    def start(self, wrap=()):
        """Starts the daemon and waits until it answers; `wrap` is a command in front of it."""
        self.spawn(wrap)
        wait_until(f"{self.name} answers", self.answers_or_died)
        expect(self.is_running, f"the daemon of {self.name} ended at once:\n{self.log_tail()}")
        return self

    def spawn(self, wrap=()):
        """Starts the daemon without waiting."""
        expect(not self.is_running, f"{self.name} runs already")
        if self.cluster.machines and not (self.machine and self.machine.is_running):
            self.machine = Machine(self.namespace)
            # It begins with an empty /run.
            shutil.rmtree(self.dir / "services", ignore_errors=True)
            self.cluster.switched_on(self)
        if self.cluster.namespaces and not self.machine:
            # Inside, /sys is another one: what wraps the daemon comes first.
            inside = ("nsenter", f"--net=/run/netns/{self.namespace}") if self.sees_machine else (
                "ip", "netns", "exec", self.namespace)
            wrap = (*wrap, *inside)
        command = [*wrap, self.bin / "replicatord", "--config", self.config]
        command += ["--node", self.name, *self.arguments]
        birth = contextlib.nullcontext()
        if self.machine:
            command, birth = self.machine.command(command), self.machine.birth()
        with open(self.log_path, "ab") as log, birth:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=die_with_parent,
                env={**os.environ, **self.environment})

    def inside(self, *command, **more):
        """Runs a program in its machine to its end."""
        with self.machine.birth():
            return run(*self.machine.command(command), **more)

    @property
    def cgroup_name(self):
        """The directory of the cgroups of its services, which its run_dir names."""
        return f"replicator-{zlib.crc32(bytes(self.dir)):08x}"

    @property
    def namespace(self):
        """Its network namespace, when the cluster has some."""
        return f"rt-{os.getpid()}-{self.name}"

    def answers_or_died(self):
        """Whether waiting for its first answer has an end."""
        return not self.is_running or self.ctl_raw("status")[0] in (0, 4)

    def signal(self, number):
        """Sends a signal to the daemon; after SIGSTOP waits until the last of its threads, which may
        be in the middle of a request, stands still."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            wait_until(f"{self.name} stands still", self.stands_still)

    def stands_still(self):
        """Whether no thread of the daemon runs."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        states = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks]
        return set(states) <= {"T", "t", "Z"}

    def kill(self):
        """SIGKILL, and waits until the process is gone."""
        if self.is_running:
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def cut_power(self):
        """Its daemon, its services and everything else of its machine end at one instant."""
        if self.machine:
            self.machine.cut_power([self.process] if self.process else [])
        self.kill()
        self.end_holders()
        self.remove_loop_devices()

    def remove_loop_devices(self):
        """A loop device outlives the daemon that was killed, and whoever looks at it then waits."""
        for resource in self.cluster.resources:
            device = pathlib.Path(os.path.realpath(self.device_dir / resource))
            backing = pathlib.Path("/sys/block", device.name, "loop/backing_file")
            with contextlib.suppress(OSError):
                if backing.read_text().startswith("/replicator:"):
                    run("losetup", "--detach", device, check=False, timeout=20)

    def end_holders(self):
        """Kills what keeps descriptors of devices for the next daemon of this node: as if the
        whole machine were gone. It names our directory in its command."""
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if {b"holder", b"guard"} & set(words) and bytes(self.dir) in words:
                os.kill(int(entry.name), signal.SIGKILL)

    def stop(self, timeout_s=30):
        """Orderly: SIGTERM, and waits; the exit code must be 0."""
        self.signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            text = f"{self.name} did not stop within {timeout_s} s:\n{self.log_tail()}"
            raise TestFailed(text) from error
        expect(code == 0, f"the daemon of {self.name} stopped with {code}:\n{self.log_tail()}")

    def ctl_raw(self, *arguments, as_json=True, timeout=200):
        """Runs replctl; exit code, standard output, standard error."""
        command = [self.bin / "replctl", "--config", self.config, "--node", self.name]
        done = run(*command, *(["--json"] if as_json else []), *arguments, check=False,
                   timeout=timeout)
        return done.returncode, done.stdout, done.stderr

    def ctl(self, *arguments, timeout=200):
        """Runs replctl and returns its JSON; raises Refused."""
        code, out, error = self.ctl_raw(*arguments, timeout=timeout)
        try:
            answer = json.loads(out) if out.strip() else {}
        except json.JSONDecodeError:
            answer = {"error": out}
        if code not in (0, 4):
            raise Refused(code, answer or {"error": error})
        return answer

    def refuses(self, *arguments, code=None):
        """The refusal of a command that must be refused."""
        try:
            answer = self.ctl(*arguments)
        except Refused as refusal:
            expect(code in (None, refusal.code), f"{arguments} was refused as {refusal.code}: "
                                                 f"{refusal}, not as {code}")
            return refusal
        raise TestFailed(f"{self.name}: {' '.join(arguments)} was done, but must be refused: {answer}")

    def status(self, resource="demo"):
        """The state of one resource."""
        return self.ctl("status", resource)["resources"][0]

    def replica(self, resource="demo"):
        """What the replica says; an empty one while it is not up."""
        try:
            return self.status(resource)["replica"] or {"role": "", "data": "", "peers": [{}]}
        except Refused:
            return {"role": "", "data": "", "peers": [{}], "in_sync": []}

    def peer(self, resource="demo"):
        """The peer as this node sees it."""
        return self.replica(resource)["peers"][0]

    def resync_bytes_sent(self, resource="demo"):
        """Payload bytes that resyncs to the peer have sent so far."""
        return self.peer(resource)["sent_bytes"][0]

    def promote(self, *flags, resource="demo"):
        """Becomes primary."""
        self.ctl("promote", resource, *flags)
        expect(self.replica(resource)["role"] == "primary", f"{self.name} is not primary")

    def take_over(self, *flags, resource="demo"):
        """Promotes this node when the other one is gone for sure, as an operator does."""
        wait_until(f"{self.name} has lost its peer", lambda: self.peer(resource).get("state")
                   in ("disconnected", "connecting", "refused"), 10)
        self.promote("--old-primary-is-off", *flags, resource=resource)

    def log(self):
        """Everything the daemons of this node have logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines=40):
        """The end of that."""
        known = [line for line in self.log().splitlines() if "INFO NBD client" not in line]
        return "\n".join("    " + line for line in known[-lines:])

    def memory_kib(self, field="VmRSS"):
        """A line of /proc/PID/status of the daemon, in KiB."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(field + ":"))
        return int(line.split()[1])


class Cluster:
    """Two nodes, and a witness if asked for; with `machines` each is a machine of its own (see
    machine.py) in its network namespace. `resources` is a list of names; each gets a file as
    disk on both nodes, unless `disks` maps (resource, node) to something else."""

    def __init__(self, resources=("demo",), size_mib=64, backing="normal", attach="none", tcp=False,
                 namespaces=False, disks=None, timing=None, options="", assume_equal=True,
                 name="test", device_root=None, create_flags=(), witness=False, top="",
                 machines=False):
        self.bin = binaries()
        parent = os.environ.get("REPLICATOR_TEST_DIR", "/var/tmp")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="repl-", dir=parent))
        self.namespaces = namespaces
        self.machines = machines
        self.name = name
        self.device_root = device_root or self.dir
        self.backing, self.attach, self.tcp = backing, attach, tcp
        self.timing = timing or {}
        self.options = options
        self.top = top
        self.assume_equal = assume_equal
        self.create_flags = create_flags
        self.resources = {}
        self.children = []
        self.alpha, self.beta = (Node(self, name) for name in NODES)
        self.data_nodes = [self.alpha, self.beta]
        self.nodes = {"alpha": self.alpha, "beta": self.beta}
        if witness:
            self.gamma = self.nodes[WITNESS] = Node(self, WITNESS)
        for resource in resources:
            disk = {}
            for name in NODES:
                given = (disks or {}).get((resource, name))
                disk[name] = pathlib.Path(given or self.dir / f"{resource}-{name}.img")
                if given is None:
                    with open(disk[name], "wb") as file:
                        file.truncate(size_mib * MIB)
            self.resources[resource] = {"disk": disk}
        if namespaces:
            self._make_namespaces()
        self.write_config()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        try:
            if kind is not None and issubclass(kind, Exception):
                print(self.evidence(), file=sys.stderr)
            elif any("panicked at" in node.log() for node in self.nodes.values()):
                print(self.evidence(), file=sys.stderr)
                raise TestFailed("a daemon panicked")
        finally:
            self.close()

    def evidence(self):
        """What a person wants to see after a failure."""
        text = ""
        for node in self.nodes.values():
            text += f"  -- {node.name}: "
            if node.is_running:
                state = pathlib.Path(f"/proc/{node.process.pid}/stat").read_text().split()[2]
                if state != "T":
                    text += "status\n" + "\n".join(
                        "    " + line for line in
                        node.ctl_raw("status", as_json=False, timeout=30)[1].splitlines()) + "\n"
            elif node.process is not None:
                text += f"its daemon ended with {node.process.returncode}\n"
            text += f"  -- {node.name}: log\n{node.log_tail()}\n"
        return text

    def close(self, keep=False):
        """Kills what runs and removes what was made; `keep` keeps the directory."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for node in self.nodes.values():
            if node.is_running:
                node.process.send_signal(signal.SIGCONT)
            node.kill()
        for node in self.nodes.values():
            node.cut_power()
        if self.namespaces:
            for node in self.nodes.values():
                run("ip", "netns", "del", node.namespace, check=False)
        if keep or os.environ.get("KEEP"):
            print(f"kept: {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def switched_on(self, node):
        """Makes what a new machine has beside its daemon."""

    def _make_namespaces(self):
        """alpha and beta each in a network namespace, joined by a pair of virtual cards."""
        for number, node in enumerate(self.nodes.values(), 1):
            run("ip", "netns", "add", node.namespace)
            run("ip", "-n", node.namespace, "link", "set", "lo", "up")
        alpha, beta = self.alpha.namespace, self.beta.namespace
        run("ip", "-n", alpha, "link", "add", "link0", "type", "veth", "peer", "name", "link0",
            "netns", beta)
        for number, namespace in enumerate((alpha, beta), 1):
            run("ip", "-n", namespace, "addr", "add", f"10.99.0.{number}/24", "dev", "link0")
            run("ip", "-n", namespace, "link", "set", "link0", "up")

    def cut_from(self, node):
        """Everything that `node` sends to the other is lost; the other direction works."""
        receiver = self.nodes[other(node)].namespace
        rules = "table inet cut { chain i { type filter hook input priority 0; iif link0 drop; }; }"
        run("ip", "netns", "exec", receiver, "nft", rules)

    def heal(self):
        """Ends all cuts."""
        for node in self.nodes.values():
            run("ip", "netns", "exec", node.namespace, "nft", "flush", "ruleset")

    def write_config(self, **overrides):
        """Writes the configuration of both nodes; `overrides` replaces the name of the cluster
        (`cluster`) for both, or `alpha`/`beta` with a dictionary for one node's own file."""
        for name, node in self.nodes.items():
            mine = {**overrides, **overrides.get(name, {})}
            node.config.write_text(self._config(mine))

    def _config(self, mine):
        lines = [f'cluster = "{mine.get("cluster", self.name)}"', self.top, ""]
        for name, node in self.nodes.items():
            lines += [f"[node.{name}]", f'address = "{node.host}:{node.port}"']
            lines += [f'{key} = "{node.dir}"' for key in ("state_dir", "run_dir")]
            if not self.namespaces:
                lines.append(f"http_port = {node.http_port}")
            lines.append(f'key = "{node.key}"')
            if name == WITNESS:
                lines += ["witness = true", ""]
                continue
            lines.append(f'device_dir = "{node.device_dir}"')
            if self.tcp:
                lines.append(f'nbd_address = "{node.host}:{node.nbd_port}"')
            lines.append("")
        if self.timing:
            lines.append("[timing]")
            lines += [f"{key} = {value}" for key, value in self.timing.items()] + [""]
        for resource, parts in self.resources.items():
            lines.append(f"[resource.{resource}]")
            disks = {**parts["disk"], **mine.get("disk", {})}
            lines += [f'disk.{name} = "{path}"' for name, path in disks.items()]
            lines += [f'attach = "{self.attach}"', f'test_backing = "{self.backing}"']
            lines += [self.options, ""]
        return "\n".join(lines)

    def create(self):
        """Key and metadata. Both disks are zeroes, so they count as equal from the start, unless
        the cluster was made with `assume_equal=False`."""
        self.alpha.ctl("init")
        for resource in self.resources:
            for node in self.data_nodes:
                flags = [*self.create_flags, *(["--origin"] if node is self.alpha else [])]
                if self.assume_equal:
                    flags.append("--assume-equal")
                node.ctl("create", resource, *flags)
        return self

    def start(self, wraps=None):
        """Creates, starts the daemons, promotes alpha, waits until all are members; with a witness
        nobody needs to be promoted. `wraps`: commands in front of daemons, by node."""
        self.create()
        for name, node in self.nodes.items():
            node.start((wraps or {}).get(name, ()))
        if WITNESS in self.nodes:
            for resource in self.resources:
                self.wait_in_sync(resource)
            return self
        for resource in self.resources:
            wait_until("the two are connected", lambda: self.alpha.peer(resource).get("state")
                       not in (None, "", "disconnected", "connecting"))
            self.alpha.promote(resource=resource)
            self.wait_in_sync(resource)
        return self

    def wait_in_sync(self, resource="demo", deadline_s=60.0, but=()):
        """Waits until all, but those named, are members, connected, and nothing is left to copy."""
        def done():
            replicas = [node.replica(resource) for node in self.data_nodes if node.is_running]
            primary = [replica for replica in replicas if replica["role"] == "primary"]
            return len(primary) == 1 and all(
                peer["is_member"] and peer["dirty_bytes"] == 0 and peer["state"] == "current"
                for peer in primary[0]["peers"] if peer["node"] not in but)
        wait_until(f"all replicas of {resource} are in sync", done, deadline_s)

    def restart_in_turn(self, nodes, but=()):
        """Stops and starts daemons one after the other, each when all, but those named, are in sync."""
        for node in nodes:
            node.stop()
            node.start()
            self.wait_in_sync(but=but)

    def primary(self, resource="demo"):
        """The node that is primary."""
        found = [node for node in self.data_nodes if node.is_running
                 and node.replica(resource)["role"] == "primary"]
        expect(len(found) == 1, f"{len(found)} nodes are primary")
        return found[0]

    def expect_identical(self, resource="demo"):
        """Flushes, then compares the data of all disks byte for byte."""
        primary = self.primary(resource)
        with primary.client(resource) as client:
            client.flush()
        size = primary.replica(resource)["size_bytes"]
        disks = self.resources[resource]["disk"]
        mine = disks[primary.name]
        for name in sorted({node.name for node in self.data_nodes} - {primary.name}):
            differing = differing_blocks(mine, disks[name], size)
            expect(not differing, f"{len(differing)} blocks differ between the disks of "
                                  f"{primary.name} and {name}: {differing[:20]}")
        return size

    def spawn(self, *command, log=None):
        """Starts a program that ends with the cluster at the latest."""
        output = open(log, "wb") if log else subprocess.PIPE
        child = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL,
                                 stdout=output, stderr=subprocess.STDOUT,
                                 preexec_fn=die_with_parent)
        self.children.append(child)
        return child
