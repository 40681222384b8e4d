"""The floating address alone, by real network namespaces: two machines and a bystander on a bridge.
The bystander hears every frame and asks all the time who has the address, so that it is he who says
when it was where. The program that keeps the address is `hold-address`, the daemon's own code with
a lease that renews itself."""

import contextlib
import errno
import os
import pathlib
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time

from cluster import (Skip, TestFailed, built, die_with_parent, expect, in_namespace, run,
                     wait_until)

FLOATING = "10.98.0.100"
FLOATING6 = "fd98::100"
LEASE_MS = 1000
# What FAILOVER.md asks for: request and reply at each of these times, in seconds.
SCHEDULE = (0, 0.05, 0.15, 0.4, 1, 2, 5)
ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD
# The flag of an advertisement that answers a question.
SOLICITED = 0x40
SECOND_NODE_S = LEASE_MS * 1.1 / 1000 + 0.3


def hold_address():
    """The program, built now."""
    given = os.environ.get("HOLD_ADDRESS")
    return pathlib.Path(given) if given else built("programs") / "hold-address"


class Frame:
    """One ARP packet or neighbour advertisement that the bystander heard."""

    def __init__(self, at, kind, mac, address):
        self.at, self.kind, self.mac, self.address = at, kind, mac, address

    def __repr__(self):
        return f"{self.kind} of {self.address} by {self.mac} at {self.at:.3f}"


def parse(at, data):
    """What a frame says, if it is one of those that matter."""
    kind = struct.unpack("!H", data[12:14])[0]
    mac = ":".join(f"{byte:02x}" for byte in data[6:12])
    if kind == ETH_ARP and len(data) >= 42:
        operation = struct.unpack("!H", data[20:22])[0]
        sender, target = socket.inet_ntoa(data[28:32]), socket.inet_ntoa(data[38:42])
        if operation == 1 and sender == "0.0.0.0":
            return Frame(at, "probe", mac, target)
        if sender == target:
            return Frame(at, {1: "request", 2: "reply"}[operation], mac, sender)
        return Frame(at, {1: "question", 2: "answer"}[operation], mac, sender)
    if kind == ETH_IPV6 and len(data) >= 78 and data[20] == 58 and data[54] == 136:
        word = "answer" if data[58] & SOLICITED else "advertisement"
        return Frame(at, word, mac, socket.inet_ntop(socket.AF_INET6, data[62:78]))
    return None


def question(mac, own_address, address):
    """The frame that asks who has an address: ARP, or a neighbour solicitation."""
    if ":" not in address:
        return (b"\xff" * 6 + mac + struct.pack("!HHHBBH", ETH_ARP, 1, 0x0800, 6, 4, 1) + mac
                + socket.inet_aton(own_address) + bytes(6) + socket.inet_aton(address))
    own, target = (socket.inet_pton(socket.AF_INET6, it) for it in (own_address, address))
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + target[13:]

    def body(checksum):
        return struct.pack("!BBHI", 135, 0, checksum, 0) + target + b"\x01\x01" + mac
    summed = own + group + struct.pack("!II", len(body(0)), 58) + body(0)
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    header = struct.pack("!HIHBB", ETH_IPV6, 6 << 28, len(body(0)), 58, 255)
    return b"\x33\x33" + group[12:] + mac + header + own + group + body(0xFFFF - total)


def say_gratuitously(place, address, mac):
    """Somebody at link0 of a namespace says, unasked, that the address is his."""
    own, mac = socket.inet_aton(address), bytes.fromhex(mac.replace(":", ""))
    with in_namespace(place), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as speaker:
        speaker.bind(("link0", 0))
        speaker.send(b"\xff" * 6 + mac + struct.pack("!HHHBBH", ETH_ARP, 1, 0x0800, 6, 4, 1)
                     + mac + own + b"\xff" * 6 + own)


class Bystander:
    """Somebody on the bridge who hears everything and asks all the time."""

    def __init__(self, place, own_address, own_mac):
        self.place, self.own_address, self.own_mac = place, own_address, own_mac
        self.frames = []
        self.stack = contextlib.ExitStack()

    def close(self):
        """Ends it."""
        self.stack.close()

    def listen(self, protocol=ETH_ARP):
        """The bystander hears everything from now on."""
        ready, stop = threading.Event(), threading.Event()

        def hear():
            with in_namespace(self.place):
                heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
            heard.bind(("link0", protocol))
            heard.settimeout(0.05)
            ready.set()
            while not stop.is_set():
                try:
                    data = heard.recv(2048)
                except TimeoutError:
                    continue
                frame = parse(time.monotonic(), data)
                if frame:
                    self.frames.append(frame)
            heard.close()
        thread = threading.Thread(target=hear)
        thread.start()
        self.stack.callback(lambda: (stop.set(), thread.join()))
        ready.wait(5)

    def ask_for_ever(self, address=FLOATING, pause_s=0.01):
        """The bystander asks all the time who has the address; the answers are in `frames`."""
        ready, stop = threading.Event(), threading.Event()
        frame = question(bytes.fromhex(self.own_mac.replace(":", "")), self.own_address, address)

        def ask():
            with in_namespace(self.place):
                speaker = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            speaker.bind(("link0", 0))
            ready.set()
            while not stop.wait(pause_s):
                speaker.send(frame)
            speaker.close()
        thread = threading.Thread(target=ask)
        thread.start()
        self.stack.callback(lambda: (stop.set(), thread.join()))
        ready.wait(5)

    def heard(self, kinds, mac=None, address=FLOATING):
        """Frames of these kinds about an address, of one machine or of all."""
        return [frame for frame in list(self.frames) if frame.kind in kinds
                and frame.address == address and mac in (None, frame.mac)]


class Lan(Bystander):
    """Two machines, `one` and `two`, and a bystander, each in a namespace, on a bridge."""

    def __init__(self):
        if os.geteuid() != 0:
            raise Skip("network namespaces need root")
        self.program = hold_address()
        super().__init__(self.namespace("bystander"), "10.98.0.3", "")
        self.holders = 0
        self.directory = pathlib.Path(
            self.stack.enter_context(tempfile.TemporaryDirectory(dir="/var/tmp")))
        bridge = self.namespace("bridge")
        self._add(bridge)
        run("ip", "-n", bridge, "link", "add", "bridge", "type", "bridge")
        run("ip", "-n", bridge, "link", "set", "bridge", "up")
        for number, name in enumerate(("one", "two", "bystander"), 1):
            place = self.namespace(name)
            self._add(place)
            run("ip", "-n", place, "link", "add", "link0", "type", "veth", "peer", "name",
                f"port{number}", "netns", bridge)
            run("ip", "-n", place, "addr", "add", f"10.98.0.{number}/24", "dev", "link0")
            run("ip", "-n", place, "addr", "add", f"fd98::{number}/64", "dev", "link0", "nodad")
            run("ip", "-n", place, "link", "set", "link0", "up")
            run("ip", "-n", bridge, "link", "set", f"port{number}", "master", "bridge", "up")
        self.own_mac = self.mac("bystander")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stack.close()

    def _add(self, name):
        run("ip", "netns", "add", name)
        self.stack.callback(run, "ip", "netns", "del", name, check=False)

    def namespace(self, name):
        """The namespace of a machine."""
        return f"ra-{os.getpid()}-{name}"

    def ip(self, name, *arguments):
        """`ip` on a machine."""
        return run("ip", "-n", self.namespace(name), *arguments).stdout

    def mac(self, name):
        """The hardware address of a machine."""
        return self.ip(name, "-br", "link", "show", "link0").split()[2]

    def has(self, name, address=FLOATING):
        """Whether a machine has the address now."""
        return f" {address}/" in self.ip(name, "addr", "show", "dev", "link0")


class Holder:
    """`hold-address` on a machine."""

    def __init__(self, lan, name, address=f"{FLOATING}/24", guard=False, lease_ms=LEASE_MS):
        self.lan, self.name = lan, name
        self.run_dir = lan.directory / name
        self.run_dir.mkdir(exist_ok=True)
        lan.holders += 1
        self.log = lan.directory / f"{name}.{lan.holders}.log"
        self.started = time.monotonic()
        command = ["ip", "netns", "exec", lan.namespace(name), lan.program, address, "link0",
                   str(lease_ms), *([self.run_dir] if guard else [])]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.PIPE, stdout=log, stderr=log,
                preexec_fn=die_with_parent)
        lan.stack.callback(self.end)

    def said(self):
        """What it has said so far."""
        return self.log.read_text()

    def wait_for(self, word, deadline_s=30):
        """Waits until it says something; when."""
        try:
            wait_until(f"{self.name} says {word!r}", lambda: word in self.said(), deadline_s)
        except TestFailed as failed:
            state = pathlib.Path(f"/proc/{self.process.pid}/wchan").read_text(encoding="ascii")
            raise TestFailed(f"{failed}; it said {self.said()!r}, waits in {state}") from failed
        return time.monotonic()

    def signal(self, number):
        """To the program alone, not its guard."""
        self.process.send_signal(number)
        return time.monotonic()

    def guards(self):
        """The processes of its guard."""
        return guards_of(self.run_dir)

    def stop(self):
        """Orderly."""
        self.process.stdin.close()
        self.wait_for("gone")
        self.process.wait(10)

    def end(self):
        """At the end of the test, and its guard with it."""
        self.process.kill()
        self.process.wait()
        for pid in self.guards():
            os.kill(pid, signal.SIGKILL)


def guards_of(run_dir):
    """The guards of a run directory, which they name in their command."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"guard" in words and bytes(run_dir) in words:
                found.append(int(entry.name))
    return found


def last_answer(lan, name):
    """When a machine last answered for the address."""
    return max((frame.at for frame in lan.heard(("answer",), lan.mac(name))), default=0)


def wait_for_silence(lan, name, since, deadline_s=4):
    """Waits until a machine no longer answers for the address; how long after `since` it did."""
    wait_until(f"{name} answers no longer",
               lambda: time.monotonic() - max(last_answer(lan, name), since) > 0.3, deadline_s)
    return last_answer(lan, name) - since


# -------------------------------------------------------------------- scenarios

def the_address_is_announced_by_request_and_reply_on_schedule():
    """FAILOVER.md 8, heard by a third party; the first within a fifth of a second of the start."""
    with Lan() as lan:
        lan.listen()
        holder = Holder(lan, "one")
        there = holder.wait_for("there")
        wait_until("the announcement of 5 s was heard",
                   lambda: len(lan.heard(("request",))) >= len(SCHEDULE), 9)
        mac = lan.mac("one")
        probes = lan.heard(("probe",), mac)
        for kind in ("request", "reply"):
            times = [frame.at for frame in lan.heard((kind,), mac)]
            expect(len(times) >= len(SCHEDULE), f"{len(times)} of kind {kind}: {times}")
            for wanted, at in zip(SCHEDULE, times):
                off = at - times[0] - wanted
                expect(-0.02 <= off < 0.2, f"{kind} at {at - times[0]:.3f} s, not at {wanted} s")
        first = lan.heard(("request",), mac)[0].at
        expect(len(probes) == 2 and all(frame.at < first for frame in probes),
               f"asked who has it: {probes}, announced at {first:.3f}")
        print(f"    probed {first - probes[0].at:.3f} s, announced "
              f"{first - there:+.3f} s from `there`, {len(lan.frames)} frames")
        holder.stop()
        expect(not lan.has("one"), "the address is there after the stop")


def an_ipv6_address_is_advertised_and_leaves_the_route_of_its_network_alone():
    """Unsolicited advertisements; the network's own route does not expire with the address."""
    with Lan() as lan:
        lan.listen(ETH_IPV6)
        before = lan.ip("one", "-6", "route", "show", "fd98::/64")
        holder = Holder(lan, "one", f"{FLOATING6}/64")
        holder.wait_for("there")
        mac = lan.mac("one")
        wait_until("four advertisements",
                   lambda: len(lan.heard(("advertisement",), mac, FLOATING6)) >= 4, 5)
        shown = lan.ip("one", "-6", "-o", "addr", "show", "dev", "link0", "to", FLOATING6)
        expect("tentative" not in shown, f"it waits for duplicate detection: {shown}")
        now = lan.ip("one", "-6", "route", "show", "fd98::/64")
        expect(before == now, f"the route was {before}and is {now}")
        stopped = holder.signal(signal.SIGSTOP)
        wait_until("the kernel removed it", lambda: not lan.has("one", FLOATING6), 4)
        gone = time.monotonic() - stopped
        expect(lan.ip("one", "-6", "route", "show", "fd98::/64") == before, "the route is gone")
        print(f"    gone {gone:.2f} s after SIGSTOP")
        expect(gone < 1.35, f"the kernel kept it {gone:.2f} s")


def the_kernel_removes_the_address_of_a_stopped_process():
    """No guard: gone 0.8 to 1.3 s after SIGSTOP (the last refresh is up to 0.2 s older), long
    before another node would add it; back after SIGCONT."""
    with Lan() as lan:
        lan.listen()
        lan.ask_for_ever()
        holder = Holder(lan, "one")
        holder.wait_for("there")
        wait_until("answers", lambda: last_answer(lan, "one"), 5)
        kept = []
        for _ in range(3):
            stopped = holder.signal(signal.SIGSTOP)
            kept.append(wait_for_silence(lan, "one", stopped))
            expect(not lan.has("one"), "silent, and still there")
            resumed = holder.signal(signal.SIGCONT)
            wait_until("it is back", lambda: last_answer(lan, "one") > resumed, 5)
            wait_until("and announced", lambda: any(
                frame.at > resumed for frame in lan.heard(("request",), lan.mac("one"))), 5)
        shown = " ".join(f"{seconds:.2f}" for seconds in kept)
        print(f"    answered for {shown} s after SIGSTOP; allowed {SECOND_NODE_S} s")
        expect(all(0.7 < seconds < SECOND_NODE_S for seconds in kept), f"kept for {shown} s")


def the_guard_removes_it_even_when_the_kernel_is_late():
    """Changes of other addresses delay the kernel's own removal to almost two seconds; the
    guard does not wait for it. A killed process leaves its guard behind, which does the same,
    and the next one replaces it."""
    with Lan() as lan:
        lan.listen()
        lan.ask_for_ever()
        stop = threading.Event()

        def disturb():
            while not stop.wait(0.2):
                lan.ip("one", "addr", "replace", "10.97.0.1/24", "dev", "lo")
                lan.ip("one", "addr", "del", "10.97.0.1/24", "dev", "lo")
        thread = threading.Thread(target=disturb)
        thread.start()
        lan.stack.callback(lambda: (stop.set(), thread.join()))

        holder = Holder(lan, "one", guard=True)
        holder.wait_for("there")
        wait_until("answers", lambda: last_answer(lan, "one"), 5)
        kept = wait_for_silence(lan, "one", holder.signal(signal.SIGSTOP))
        expect(kept < 1.2, f"with its guard it answered for {kept:.2f} s after SIGSTOP")
        resumed = holder.signal(signal.SIGCONT)
        wait_until("it is back", lambda: last_answer(lan, "one") > resumed, 5)
        expect("Failed" not in holder.said(), f"the guard was taken for a stranger: {holder.said()}")

        old = holder.guards()
        expect(len(old) == 1, f"guards: {old}")
        after_kill = wait_for_silence(lan, "one", holder.signal(signal.SIGKILL))
        holder.process.wait()
        expect(after_kill < 1.2, f"it answered for {after_kill:.2f} s after SIGKILL")
        expect(holder.guards() == old, "the guard did not outlive the process")
        again = Holder(lan, "one", guard=True)
        again.wait_for("there")
        new = again.guards()
        expect(len(new) == 1 and new != old, f"the guard {old} was not replaced: {new}")
        again.stop()
        wait_until("no guard is left", lambda: not again.guards(), 5)
        print(f"    answered for {kept:.2f} s after SIGSTOP, {after_kill:.2f} s after SIGKILL")


def without_a_guard_the_kernel_can_be_late():
    """The gap that the guard closes, so that nobody forgets it: measured, not wished."""
    with Lan() as lan:
        lan.listen()
        lan.ask_for_ever()
        holder = Holder(lan, "one")
        holder.wait_for("there")
        wait_until("answers", lambda: last_answer(lan, "one"), 5)
        stopped = holder.signal(signal.SIGSTOP)
        end = stopped + 0.75
        wait_until("0.75 s have passed", lambda: time.monotonic() >= end)
        lan.ip("one", "addr", "add", "10.97.0.1/24", "dev", "lo")
        kept = wait_for_silence(lan, "one", stopped)
        print(f"    another address was added after 0.75 s: answered for {kept:.2f} s")
        expect(kept < 2.1, f"later than known: {kept:.2f} s")


def never_two_machines_have_the_address():
    """One is stopped; the other adds it when it may, 1.1 T + 0.3 s after the last renewal at the
    earliest. Both are asked all the time: their answers never overlap."""
    with Lan() as lan:
        lan.listen()
        lan.ask_for_ever()
        holder = Holder(lan, "one", guard=True)
        holder.wait_for("there")
        for here, there in (("one", "two"), ("two", "one")):
            wait_until("answers", lambda: last_answer(lan, here), 5)
            stopped = holder.signal(signal.SIGSTOP)
            end = stopped + SECOND_NODE_S - 0.2
            wait_until("another node may have it", lambda: time.monotonic() >= end)
            following = Holder(lan, there, guard=True)
            following.wait_for("there")
            first = min(frame.at for frame in lan.heard(("answer", "request"), lan.mac(there))
                        if frame.at > stopped)
            last = last_answer(lan, here)
            expect(last < first, f"{here} answered {last - first:.3f} s after {there} began to")
            print(f"    {here} silent {last - stopped:.2f} s after SIGSTOP, {there} has it after "
                  f"{first - stopped:.2f} s")
            holder.end()
            holder = following


def an_address_of_somebody_else_is_not_taken():
    """P7: answered by an unknown machine: refused, with its hardware address; taken when it has
    gone; and when it comes back, a warning, and announced against it."""
    with Lan() as lan:
        lan.listen()
        lan.ip("two", "addr", "add", f"{FLOATING}/24", "dev", "link0")
        stranger = lan.mac("two")
        holder = Holder(lan, "one")
        holder.wait_for(f"address_in_use: {FLOATING} is in use on this network, by {stranger}")
        expect(not lan.has("one"), "it was added all the same")
        holder.end()
        lan.ip("two", "addr", "del", f"{FLOATING}/24", "dev", "link0")
        holder = Holder(lan, "one")
        holder.wait_for("there")
        lan.ip("two", "addr", "add", f"{FLOATING}/24", "dev", "link0")
        said = time.monotonic()
        say_gratuitously(lan.namespace("two"), FLOATING, stranger)
        holder.wait_for(f"{stranger} says that it has {FLOATING} too")
        wait_until("it is announced against the stranger", lambda: any(
            0 < frame.at - said < 1 for frame in lan.heard(("request",), lan.mac("one"))), 5)


def a_switch_that_is_slow_to_forward_delays_clients_and_loses_none():
    """P7: the port of the new owner blocks at first, as by spanning tree, and its first announcements
    are lost. A client that holds the old owner for right is told again, without asking."""
    with Lan() as lan:
        client = lan.namespace("bystander")
        # It would ask by itself only much later.
        run("ip", "netns", "exec", client, "sysctl", "-q", "-w",
            "net.ipv4.neigh.link0.base_reachable_time_ms=3600000")

        def reaches():
            with in_namespace(client), socket.socket() as link:
                link.settimeout(1)
                # Nobody listens there: whoever has the address says so.
                return link.connect_ex((FLOATING, 9)) == errno.ECONNREFUSED

        def known():
            words = lan.ip("bystander", "neigh", "show", FLOATING).split()
            return words[words.index("lladdr") + 1] if "lladdr" in words else None

        def port_two(state):
            run("ip", "-n", lan.namespace("bridge"), "link", "set", "port2", "type",
                "bridge_slave", "state", state)

        def frames_of_two():
            return int(run("ip", "netns", "exec", lan.namespace("two"), "cat",
                           "/sys/class/net/link0/statistics/tx_packets").stdout)
        first = Holder(lan, "one")
        first.wait_for("there")
        wait_until("the client reaches it", reaches, 10)
        expect(known() == lan.mac("one"), f"it is at {known()}")
        first.stop()
        listening, forwarding = "1", "3"
        port_two(listening)
        before = frames_of_two()
        second = Holder(lan, "two")
        second.wait_for("there")
        # Two probes, and request and reply three times.
        wait_until("its first announcements are sent", lambda: frames_of_two() >= before + 8, 10)
        expect(known() == lan.mac("one"), f"they were heard: it is at {known()}")
        port_two(forwarding)
        opened = time.monotonic()
        wait_until("the client knows the new owner", lambda: known() == lan.mac("two"), 60)
        print(f"    told {time.monotonic() - opened:.2f} s after the port forwards")
        wait_until("the client reaches it again", reaches, 10)


def an_address_removed_by_hand_and_a_lost_carrier_are_noticed_at_once():
    """Through netlink events, not by the next poll."""
    with Lan() as lan:
        holder = Holder(lan, "one")
        holder.wait_for("there")
        lan.ip("one", "addr", "del", f"{FLOATING}/24", "dev", "link0")
        removed = time.monotonic()
        by_hand = holder.wait_for("was removed from link0 by somebody else") - removed
        holder.end()
        holder = Holder(lan, "one")
        holder.wait_for("there")
        run("ip", "-n", lan.namespace("bridge"), "link", "set", "port1", "down")
        removed = time.monotonic()
        by_carrier = holder.wait_for("link0 has no carrier") - removed
        print(f"    by hand {by_hand:.3f} s, carrier {by_carrier:.3f} s")
        # A veth reports its carrier through a kernel queue that may run once a second.
        expect(by_hand < 0.3 and by_carrier < 1.5, f"{by_hand:.3f} {by_carrier:.3f}")


def an_address_from_an_earlier_process_is_adopted():
    """A killed process leaves it for a second; the next one has it without a gap."""
    with Lan() as lan:
        lan.listen()
        lan.ask_for_ever()
        holder = Holder(lan, "one")
        holder.wait_for("there")
        wait_until("answers", lambda: last_answer(lan, "one"), 5)
        holder.signal(signal.SIGKILL)
        holder.process.wait()
        killed = time.monotonic()
        again = Holder(lan, "one")
        again.wait_for("there")
        wait_until("2 s have passed", lambda: time.monotonic() > killed + 2)
        answers = [frame.at for frame in lan.heard(("answer",), lan.mac("one"))
                   if frame.at > killed - 0.5]
        gap = max(after - before for before, after in zip(answers, answers[1:]))
        print(f"    the longest silence over the restart: {gap:.3f} s")
        expect(gap < 0.3, f"silent for {gap:.3f} s")


SCENARIOS = [
    the_address_is_announced_by_request_and_reply_on_schedule,
    an_ipv6_address_is_advertised_and_leaves_the_route_of_its_network_alone,
    the_kernel_removes_the_address_of_a_stopped_process,
    the_guard_removes_it_even_when_the_kernel_is_late,
    without_a_guard_the_kernel_can_be_late,
    never_two_machines_have_the_address,
    an_address_of_somebody_else_is_not_taken,
    a_switch_that_is_slow_to_forward_delays_clients_and_loses_none,
    an_address_removed_by_hand_and_a_lost_carrier_are_noticed_at_once,
    an_address_from_an_earlier_process_is_adopted,
]
