"""The demo, told as a story: two nodes and a witness on this machine, a writer, a primary that dies, a
node that takes over by itself, an old primary that comes back; and then PostgreSQL on top (database.py).
Called by tools/demo. Exit code 0 only if every step was true."""

import contextlib
import hashlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "netns"))

from cluster import (MIB, Cluster, Refused, TestFailed, die_with_parent, differing_blocks, expect,
                     run, wait_until)
from nbd_client import Lost
from nbd_client import Refused as NotServed

import database

DISK_MIB = 768
SOURCES = ("/usr/share/doc", "/usr/include", "/usr/share/perl", "/usr/lib/python3", "/usr/share")
WRITE_ON_S = 3
IS_ROOT = os.geteuid() == 0
IS_TERMINAL = sys.stdout.isatty()


def bold(text):
    return f"\033[1m{text}\033[0m" if IS_TERMINAL else text


def size(count):
    return f"{count / MIB:.0f} MiB" if count >= 10 * MIB else f"{count / MIB:.1f} MiB"


class Told:
    """Prints the steps and keeps the times."""

    def __init__(self):
        self.began = time.monotonic()
        self.number = 0

    def chapter(self, text):
        self.number += 1
        elapsed = time.monotonic() - self.began
        print(f"\n{bold(f'{self.number}. {text}')}  [{elapsed:.1f} s]", flush=True)

    def line(self, text):
        print(f"   {text}", flush=True)

    bold = staticmethod(bold)

    def progress(self, text):
        """A line that is written again and again; only its last form where nobody looks."""
        if IS_TERMINAL:
            print(f"\r   {text:<76}", end="", flush=True)

    def progress_ends(self, text):
        print(f"\r   {text:<76}" if IS_TERMINAL else f"   {text}", flush=True)


class Writer:
    """The application, and what it was promised."""

    def __init__(self, cluster, *arguments):
        self.safe = {}
        self.bytes = 0
        self.lines = queue.Queue()
        command = [sys.executable, HERE / "writer.py", *arguments]
        self.process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True,
                                        preexec_fn=die_with_parent)
        cluster.children.append(self.process)
        self.has_copied = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            if line == "copied\n":
                self.has_copied.set()
            elif line.endswith("\n"):
                place, digest, length = line.rsplit(" ", 2)
                self.safe[place] = digest
                self.bytes += int(length)

    def end(self):
        """Waits until it has ended, or ends it; why it ended."""
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join()
        return self.process.stderr.read().strip()

    def stop(self):
        """Ends it on purpose."""
        self.process.kill()
        self.end()


class FileSystem:
    """As root: ext4 on the block device of whoever is primary."""

    what = "ext4 on the replicated block device"
    safe = "fsynced"

    def __init__(self, cluster, told):
        self.cluster, self.told = cluster, told
        self.mounts = []
        self.loops = set()

    def device(self, node):
        return node.device_dir / "demo"

    def make(self, node):
        report = node.status()["device"]
        expect(report and report["state"] == "attached",
               f"there is no block device: {report and report['why']}")
        self.told.line(f"{node.name} has the block device {self.device(node)} ({report['kind']})")
        run("mkfs.ext4", "-q", "-F", self.device(node))
        self.mount(node)
        self.told.line("mkfs.ext4, mount: it is a disk like any other")

    def mount(self, node):
        place = node.dir / "mnt"
        place.mkdir(exist_ok=True)
        self.loops.add(pathlib.Path(os.path.realpath(self.device(node))))
        run("mount", "-t", "ext4", self.device(node), place)
        self.mounts.append(place)

    def writer(self, node, name, sources=()):
        return Writer(self.cluster, "directory", node.dir / "mnt", name, *sources)

    def after_takeover(self, dead, node):
        run("umount", "-l", dead.dir / "mnt", check=False)
        wait_until(f"{node.name} has the block device", lambda: (
            node.status()["device"] or {}).get("state") == "attached", 30)
        began = time.monotonic()
        done = run("e2fsck", "-fp", self.device(node), check=False)
        expect(done.returncode in (0, 1), f"e2fsck found damage:\n{done.stdout}{done.stderr}")
        done = run("e2fsck", "-fn", self.device(node), check=False)
        expect(done.returncode == 0, f"the file system is not clean:\n{done.stdout}")
        self.told.line(f"e2fsck: the journal was replayed, the file system is clean "
                       f"({time.monotonic() - began:.1f} s)")
        self.mount(node)

    def compare(self, node, safe):
        wrong = []
        for place, digest in safe.items():
            try:
                data = (node.dir / "mnt" / place).read_bytes()
            except OSError as error:
                wrong.append(f"{place}: {error.strerror}")
                continue
            if hashlib.sha256(data).hexdigest() != digest:
                wrong.append(f"{place}: other bytes")
        return wrong

    def forget_caches(self, node):
        """What is read afterwards comes from the disk."""
        run("umount", node.dir / "mnt")
        run("mount", "-t", "ext4", self.device(node), node.dir / "mnt")

    def close(self, node):
        run("umount", node.dir / "mnt")

    def clean_up(self):
        for place in reversed(self.mounts):
            if os.path.ismount(place):
                run("umount", place, check=False)
            if os.path.ismount(place):
                run("umount", "-l", place, check=False)

    def remove_devices(self):
        """A loop device outlives the daemon that was killed."""
        for device in self.loops:
            backing = pathlib.Path("/sys/block", device.name, "loop/backing_file")
            if backing.exists() and backing.read_text().startswith("/replicator:"):
                run("losetup", "--detach", device, check=False)
        for node in self.cluster.nodes.values():
            (node.device_dir / "demo").unlink(missing_ok=True)
        for folder, _, _ in os.walk("/dev/replicator", topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                pass  # somebody else's device is there


class Archive:
    """As any other user: files one behind the other on the device, through NBD."""

    what = "an archive of files on the replicated device, through NBD"
    safe = "written and flushed"
    ROUNDS = {"first": 0, "second": 512 * MIB}

    def __init__(self, cluster, told):
        self.cluster, self.told = cluster, told

    def make(self, node):
        self.told.line("no root here, so no mount: files go one behind the other onto the device,")
        self.told.line(f"through the NBD socket {node.nbd_socket}")

    def writer(self, node, name, sources=()):
        return Writer(self.cluster, "device", node.nbd_socket, "demo", self.ROUNDS[name], name,
                      *sources)

    def after_takeover(self, dead, node):
        pass

    def compare(self, node, safe):
        wrong = []
        with node.client() as client:
            for place, digest in safe.items():
                at, length = (int(word) for word in place.split("+"))
                data = b"".join(client.read(at + start, min(MIB, length - start))
                                for start in range(0, length, MIB))
                if hashlib.sha256(data).hexdigest() != digest:
                    wrong.append(f"bytes {place}")
        return wrong

    def forget_caches(self, node):
        pass

    def close(self, node):
        pass

    def clean_up(self):
        pass

    def remove_devices(self):
        pass


def first_write(node):
    """Reads a block of the new primary and writes the same bytes back, durably: the first
    acknowledged write. False while nobody serves there."""
    try:
        with node.client() as client:
            client.write(0, client.read(0, 4096), fua=True)
    except (NotServed, Lost):
        return False
    return True


def check_files(told, storage, node, safe, when):
    began = time.monotonic()
    wrong = storage.compare(node, safe)
    expect(not wrong, f"{len(wrong)} of {len(safe)} files are not what was promised {when}:\n"
                      + "\n".join(wrong[:20]))
    told.line(bold(f"{len(safe)} of {len(safe)} files are there, every byte as promised")
              + f" ({time.monotonic() - began:.1f} s)")


def resync(told, primary, cluster):
    """Watches the resync until both nodes have everything; bytes sent."""
    began = time.monotonic()
    total = 0

    def done():
        nonlocal total
        peer = primary.peer()
        total = max(total, peer["resync_total_bytes"])
        if peer["resync_total_bytes"]:
            copied = peer["resync_total_bytes"] - peer["resync_left_bytes"]
            share = copied * 100 // peer["resync_total_bytes"]
            told.progress(f"resync [{'#' * (share // 4):<25}] {share} %, {size(copied)} of "
                          f"{size(peer['resync_total_bytes'])}")
        return peer["is_member"] and peer["state"] == "current" and peer["dirty_bytes"] == 0

    wait_until("both nodes have everything", done, 120)
    took = time.monotonic() - began
    sent = primary.resync_bytes_sent()
    told.progress_ends(f"resync done: {size(sent)} sent in {took:.1f} s, beside live writes")
    return sent, took


def begin(told, cluster):
    told.chapter("Two nodes, alpha and beta, each with a disk of its own, and gamma, a witness")
    told.line(f"a disk is a file of {DISK_MIB} MiB in {cluster.dir}; on two machines it would be a")
    told.line("partition or a logical volume, and nothing else in this story would change")
    began = time.monotonic()
    cluster.start()
    told.line(f"made the key and the metadata, started three daemons; they made alpha primary; "
              f"first resync: {time.monotonic() - began:.1f} s")
    told.line("alpha is primary. A write is acknowledged when it is on both disks")
    told.line(f"verdict of alpha: {cluster.alpha.status()['verdict']['text']}")


def write_under_it(told, storage, alpha):
    told.chapter(f"alpha serves {storage.what}")
    storage.make(alpha)
    writer = storage.writer(alpha, "first", SOURCES)
    began = time.monotonic()
    while not writer.has_copied.wait(0.3):
        if writer.process.poll() is not None:
            raise TestFailed(f"the writer has ended: {writer.end()}")
        told.progress(f"copying: {len(writer.safe)} files, {size(writer.bytes)}")
    copied, took = len(writer.safe), time.monotonic() - began
    expect(copied >= 1000, f"only {copied} files were found to copy")
    told.progress_ends(f"copied a tree of {copied} files, {size(writer.bytes)}, each one "
                       f"{storage.safe}, in {took:.1f} s")
    told.line(f"the writer goes on with new files, 8 at a time, each one {storage.safe}")
    wait_until("the writer has gone on for a while",
               lambda: len(writer.safe) > copied + 50
               and time.monotonic() - began > took + WRITE_ON_S, 60)
    return writer


def die_and_take_over(told, storage, writer, alpha, beta):
    told.chapter("alpha dies: SIGKILL, in the middle of a write")
    killed = time.monotonic()
    alpha.kill()
    alpha.end_holders()
    told.chapter("beta takes over, and nobody orders it")
    wait_until("beta serves", lambda: first_write(beta), 30)
    served = time.monotonic() - killed
    last = beta.ctl("status")["cluster_state"]["last_change"]
    told.line(f"the register: {last}")
    why = writer.end()
    told.line(f"the writer on alpha had {len(writer.safe)} files {storage.safe}, "
              f"{size(writer.bytes)}, when its disk went away")
    expect("gone" in why, f"the writer did not notice: {why}")
    told.line(bold(f"first acknowledged write {served:.2f} s after the SIGKILL"))
    storage.after_takeover(alpha, beta)
    check_files(told, storage, beta, writer.safe, "by alpha")
    return served


def come_back(told, storage, cluster, alpha, beta):
    told.chapter("beta works alone, then alpha comes back")
    writer = storage.writer(beta, "second")
    wait_until("beta has written alone", lambda: writer.bytes > 8 * MIB, 60)
    told.line(f"beta has written {size(writer.bytes)} that alpha lacks; the writer goes on")
    alpha.start()
    sent, took = resync(told, beta, cluster)
    told.line(beta.status()["verdict"]["text"])
    writer.stop()
    storage.forget_caches(beta)
    return writer, sent, took


def compare_disks(told, cluster, storage, beta):
    told.chapter("Are the two disks really the same?")
    storage.close(beta)
    with beta.client() as client:
        client.flush()
    cluster.wait_in_sync()
    began = time.monotonic()
    length = beta.replica()["size_bytes"]
    disks = cluster.resources["demo"]["disk"]
    differing = differing_blocks(disks["alpha"], disks["beta"], length)
    expect(not differing, f"{len(differing)} blocks differ: {differing[:20]}")
    told.line(bold(f"{length} bytes on each disk, not one differs")
              + f" ({time.monotonic() - began:.1f} s)")


def tell(told, cluster, storage):
    alpha, beta = cluster.alpha, cluster.beta
    begin(told, cluster)
    writer = write_under_it(told, storage, alpha)
    served = die_and_take_over(told, storage, writer, alpha, beta)
    second, sent, took = come_back(told, storage, cluster, alpha, beta)
    check_files(told, storage, beta, {**writer.safe, **second.safe}, "by alpha and beta")
    compare_disks(told, cluster, storage, beta)
    return [
        ("files promised to the writer",
         f"{len(writer.safe) + len(second.safe)} ({size(writer.bytes + second.bytes)}), lost: 0"),
        ("SIGKILL to first acknowledged write", f"{served:.2f} s"),
        ("resync of the old primary",
         f"{size(sent)} in {took:.1f} s, the disks have {DISK_MIB} MiB"),
    ]


def interrupted(*_):
    raise KeyboardInterrupt


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def undisturbed():
    """Nothing interrupts a clean-up."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    yield
    for number, action in before.items():
        signal.signal(number, action)


def tell_of_files(told):
    """The first part, on a cluster of its own: lines for the summary."""
    options = {"size_mib": DISK_MIB, "assume_equal": False, "name": "demo", "witness": True}
    if IS_ROOT:
        options |= {"attach": "auto", "device_root": "/dev/replicator"}
    cluster = Cluster(**options)
    storage = (FileSystem if IS_ROOT else Archive)(cluster, told)
    try:
        return tell(told, cluster, storage)
    except (TestFailed, Refused, Lost, OSError):
        print(cluster.evidence(), file=sys.stderr)
        raise
    finally:
        with undisturbed():
            for child in cluster.children:
                child.kill()
                child.wait()
            storage.clean_up()
            stop_orderly(cluster)
            cluster.close()
            storage.remove_devices()


def tell_of_database(told):
    """The second part, where it can be shown: lines for the summary."""
    why = os.environ.get("WITHOUT_DATABASE") or database.left_out()
    if why:
        told.chapter("PostgreSQL behind a floating address: left out here")
        told.line(why)
        return [("left out: PostgreSQL", why)]
    return database.tell(told)


def main():
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    told = Told()
    print(bold("Replicator: a primary dies, the other node goes on, nothing is lost."))
    try:
        lines = tell_of_files(told) + tell_of_database(told)
    except KeyboardInterrupt:
        print("\n\ninterrupted; everything was cleaned up", file=sys.stderr)
        return 130
    except (TestFailed, Refused, Lost, OSError) as error:
        print(f"\n{bold('This was not true:')} {error}", file=sys.stderr)
        return 1
    lines += [("the whole story", f"{time.monotonic() - told.began:.0f} s"),
              ("verdict", "everything that was promised was kept")]
    print(f"\n{bold('Summary')}")
    for what, value in lines:
        print(f"   {what:<44} {value}")
    print()
    return 0


def stop_orderly(cluster):
    """So that the daemons take their devices away; whoever cannot is killed afterwards."""
    running = [node.process for node in cluster.nodes.values() if node.is_running]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            pass  # killed afterwards


if __name__ == "__main__":
    sys.exit(main())
