"""A trio some of whose data nodes are virtual machines with a stock kernel and systemd as process 1; the
other nodes and clients are outside, on the same bridge.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns"))

# pylint: disable=wrong-import-position
from cluster import (Refused, Skip, TestFailed, expect, in_namespace, run,  # noqa: E402
                     wait_until)
from trio import CLIENT_ADDRESS, Trio  # noqa: E402

# Emulated processors are slow: the primary may be late with a renewal by seconds without being lost.
LEASE_MS = 6000
BOOT_S = 600
# What it does beside a boot takes at most so long.
PATIENCE_S = 300
STATE_MIB = 32
# And for the session of two replicas.
TIMING = {"peer_silence_ms": 5000, "ping_interval_ms": 1000}
AGENT_PORT = 4446
BEAT_PORT = 4445
HTTP_PORT = 7790
# Between two questions to a machine.
ASK_AGAIN_S = 0.5
# What a person wants to see of a machine that failed.
JOURNAL = "journalctl -n 60 --no-pager -o short-monotonic"
# Beats of a machine that gets no processor arrive late: shorter runs than this are no turns.
LATE_S = 1.5


class VirtualMachine:
    """A machine with a network card at the tap `tap0` of a namespace."""

    looks = ("dmesg | tail -n 40",)

    def __init__(self, cluster, name, host, namespace):
        self.cluster, self.name, self.host, self.namespace = cluster, name, host, namespace
        self.process = None
        self.log = cluster.dir / f"machine-{name}.log"

    @property
    def mac(self):
        """The hardware address of its network card."""
        return f"52:54:00:99:00:{int(self.host.rpartition('.')[2]):02x}"

    def launch(self, script, *arguments, options=(), limit_s=BOOT_S + 120):
        """Starts it with a script of this directory."""
        command = ["ip", "netns", "exec", self.namespace, HERE / "run",
                   "--name", self.name, "--timeout", str(limit_s),
                   "--net", "tap,ifname=tap0,script=no,downscript=no", "--mac", self.mac,
                   *options, "--env", f"BIN={self.cluster.bin}", HERE / script, *arguments]
        self.process = self.cluster.spawn(*command, log=self.log)

    @property
    def is_running(self):
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def cut_power(self):
        """It ends at one instant: QEMU, which is a descendant of what was started here."""
        todo, found = [self.process.pid], []
        while todo:
            children = run("ps", "-o", "pid=,comm=", "--ppid", str(todo.pop()), check=False).stdout
            for pid, name in (line.split(None, 1) for line in children.splitlines()):
                todo.append(int(pid))
                found += [int(pid)] if name.startswith("qemu-system") else []
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        if not found:
            # It was about to begin, or has just ended.
            self.process.kill()
        self.process.wait()

    def console(self):
        """What it has said so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def evidence(self):
        """What a person wants to see after a failure."""
        text = ""
        if self.is_running:
            text += f"  -- in the machine {self.name}\n"
            for command in self.looks:
                try:
                    text += self.tell(command, 60)[0] + "\n"
                except OSError as error:
                    text += f"    {command}: {error}\n"
        return text + f"  -- the machine {self.name}\n" + "\n".join(
            "    " + line for line in self.console().splitlines()[-60:]) + "\n"

    # ---------------------------------------------------------------- orders

    def connect(self, port, limit_s):
        """A connection from the client's machine; no wait at it is longer."""
        with in_namespace(self.cluster.client_namespace):
            return socket.create_connection((self.host, port), timeout=limit_s)

    def tell(self, command, limit_s=120):
        """Has the machine run a command: what it said, and its status. Its script runs agent.py."""
        with self.connect(AGENT_PORT, limit_s) as stream:
            stream.sendall(command.encode())
            stream.shutdown(socket.SHUT_WR)
            said = b"".join(iter(lambda: stream.recv(65536), b"")).decode(errors="replace")
        text, found, status = said.rpartition("\nexit ")
        if not found:
            raise ConnectionError(f"the machine did not end: {command}")
        return text, int(status)

    def inside(self, command, limit_s=120):
        """What a command says in the machine; it must not fail."""
        try:
            text, status = self.tell(command, limit_s)
        except OSError as error:
            raise TestFailed(f"{self.name}: {command}: {error}") from error
        expect(status == 0, f"{self.name}: {command}\nended with {status}\n{text}")
        return text

    def answers(self):
        """Whether orders reach the machine."""
        expect(self.is_running, f"the machine {self.name} ended:\n{self.console()[-3000:]}")
        try:
            return self.tell("true", 5)[1] == 0
        except OSError:
            return False

    def wait_until_up(self):
        """Until orders reach it."""
        wait_until(f"the machine {self.name} answers", self.answers, BOOT_S)


class Box(VirtualMachine):
    """The machine of one node: its namespace has only the cable to it."""

    looks = ("replctl status", JOURNAL)

    def __init__(self, cluster, node):
        super().__init__(cluster, node.name, node.host, node.namespace)
        self.node = node

    def plug_in(self):
        """A cable from the bridge of all nodes to the machine's network card."""
        place = self.namespace
        run("ip", "-n", place, "addr", "flush", "dev", "link0")
        run("ip", "-n", place, "link", "add", "cable", "type", "bridge")
        run("ip", "-n", place, "tuntap", "add", "tap0", "mode", "tap")
        for name in ("link0", "tap0"):
            run("ip", "-n", place, "link", "set", name, "master", "cable", "up")
        run("ip", "-n", place, "link", "set", "cable", "up")

    def config(self):
        """The node's configuration as it is in the machine."""
        text = self.node.config.read_text().replace(str(self.node.disk()), "/dev/vda")
        return text.replace(f'"{self.node.dir}', '"/var/lib/replicator')

    def boot(self, script, *arguments, options=(), **more):
        """Starts it with a script of this directory, which gets the place of the node's files, its
        address and the arguments."""
        (self.node.dir / "inside.toml").write_text(self.cluster.config_inside(self.node))
        self.launch(script, self.node.dir, f"{self.host}/24", *arguments,
                    options=("--systemd", "--disk", self.node.disk(), *options), **more)

    def status(self):
        """The daemon's status; empty when it does not answer."""
        # By HTTP: a program that is started takes a machine's processor for a second.
        time.sleep(ASK_AGAIN_S)
        try:
            with self.connect(HTTP_PORT, 30) as stream:
                stream.sendall(b"GET /status HTTP/1.0\r\n\r\n")
                said = b"".join(iter(lambda: stream.recv(65536), b""))
            return json.loads(said.partition(b"\r\n\r\n")[2])
        except (OSError, ValueError):
            return {}


class WithMachines(Trio):
    """A trio; those named in `boxed` are virtual machines."""

    lease_ms = LEASE_MS
    session = TIMING
    boxed = ("alpha",)

    def __init__(self, timing=None, **more):
        self.boxes = {}
        self.beats = []
        super().__init__(timing={**self.session, **(timing or {})}, **more)

    @property
    def box(self):
        """The first of them."""
        return self.boxes[self.boxed[0]]

    def _config(self, mine):
        return super()._config(mine).replace("\n", f"\nlease_ms = {self.lease_ms}\n", 1)

    def config_inside(self, node):
        """The configuration of a node that is a machine."""
        return self.boxes[node.name].config()

    def _make_namespaces(self):
        super()._make_namespaces()
        for name in self.boxed:
            self.boxes[name] = Box(self, self.nodes[name])
            self.boxes[name].plug_in()

    def make_state(self, node):
        """Makes the disk with a node's state from what it has now."""
        run("mkfs.ext4", "-q", "-d", node.dir, self.state(node), f"{STATE_MIB}M")

    def state(self, node):
        """The disk with a node's state, which outlives its machine."""
        return self.dir / f"state-{node.name}.img"

    def close(self, keep=False):
        for box in self.boxes.values():
            if box.is_running:
                box.cut_power()
        super().close(keep)

    def evidence(self):
        return super().evidence() + "".join(box.evidence() for box in self.boxes.values())

    # ---------------------------------------------------------------- the office

    def give_office_to(self, name):
        """Moves the office there, if it is not there yet."""
        if self.office(self.gamma)["primary"] != name:
            self.wait_in_sync_outside()
            # Whoever decides may not have heard yet that this one has just joined.
            wait_until(f"{name} may take the office", lambda: self.is_ordered(name), PATIENCE_S)

    def is_ordered(self, name):
        """Whether a switchover there was ordered and done; false while its resync is not over."""
        try:
            self.beta.ctl("switchover", "demo", "--to", name)
        except Refused as refusal:
            expect("resync" in str(refusal), f"refused: {refusal}")
            return False
        return True

    def wait_in_sync_outside(self, deadline_s=PATIENCE_S):
        """Both are members and the one that is not primary has everything."""
        wait_until("both replicas are in sync", lambda: (
            lambda office: len(office["in_sync"]) == 2 and office["primary"])(
                self.office(self.gamma)), deadline_s)

    # ---------------------------------------------------------------- a service, from outside

    def listen(self):
        """Hears the services of all nodes (beat.sh) at the client's address."""
        with in_namespace(self.client_namespace):
            ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ear.bind((CLIENT_ADDRESS, BEAT_PORT))

        def hear():
            while True:
                name = ear.recv(64).decode().strip()
                self.beats.append((time.monotonic(), name))
        threading.Thread(target=hear, daemon=True).start()

    def beats_of(self, node, since=0.0):
        """When the service of a node was heard."""
        return [at for at, name in list(self.beats) if name == node and at >= since]

    def wait_for_service(self, node, since, deadline_s=120):
        """Until a node's service is heard for long enough to be a turn of it; when first."""
        def heard():
            beats = self.beats_of(node, since)
            return beats if len(beats) >= 10 and beats[-1] - beats[0] > LATE_S else None
        return wait_until(f"the service runs on {node}", heard, deadline_s)[0]

    def turns(self):
        """The nodes on which the service was heard, one after the other."""
        spans = []
        for at, name in list(self.beats):
            if spans and spans[-1][0] == name:
                spans[-1][2] = at
            else:
                spans.append([name, at, at])
        long = [name for name, first, last in spans if last - first >= LATE_S]
        return [name for number, name in enumerate(long) if number == 0 or long[number - 1] != name]


def exit_code(tests):
    """Runs them: 0 all well, 1 something failed, 77 it cannot be tried here."""
    try:
        tests()
    except Skip as why:
        print(f"skipped: {why}")
        return 77
    except (TestFailed, Refused, subprocess.TimeoutExpired) as error:
        print(f"FAILED  {error}")
        return 1
    return 0
