"""The loads of a chaos run: fio with verify, in bursts that know what must be on the disk, and
blkload, whose checker is told when all unflushed writes may be gone."""

import json
import re
import subprocess
import threading

from cluster import MIB, TestFailed, die_with_parent, expect
from nbd_client import Failed, Lost, Refused

FIO_ENDS_S = 120
GRACE_S = 10
DATA_ERROR = re.compile(r"verify:|bad magic|bad header|[Ii]nvalid or incomplete multibyte|err=84")


class Serving:
    """Which node serves, and how often what it serves was interrupted on purpose."""

    def __init__(self):
        self.changed = threading.Condition()
        self.node = None
        self.interruptions = 0
        self.ends = False

    def set(self, node):
        """This one serves now."""
        with self.changed:
            self.node = node
            self.changed.notify_all()

    def interrupt(self):
        """Clients are about to lose their connection, for a reason of ours: until further notice
        nobody serves."""
        with self.changed:
            self.interruptions += 1
            self.node = None

    def end(self):
        """No load begins anything new."""
        with self.changed:
            self.ends = True
            self.changed.notify_all()

    def wait(self):
        """The node that serves and the number of interruptions so far; no node at the end."""
        with self.changed:
            self.changed.wait_for(lambda: self.ends or self.node)
            return (None if self.ends else self.node), self.interruptions


class FioArea(threading.Thread):
    """One region of the disk that fio fills again and again, each time with another content, and
    reads back: in the same burst, and in the next one, which may be served by the other node."""

    def __init__(self, serving, directory, number, start_mib, size_mib, block_kib, rate):
        super().__init__(name=f"fio-{number}", daemon=True)
        self.serving, self.directory, self.number = serving, directory, number
        self.where = [f"--offset={start_mib}M", f"--size={size_mib}M", f"--bs={block_kib}k",
                      f"--rate_iops={4 * rate},{rate}", f"--fsync={8 * (number + 1)}"]
        self.blocks = size_mib * 1024 // block_kib
        self.content = None
        self.bursts = 0
        self.written = self.read_back = self.interrupted = 0
        self.failure = None

    def run(self):
        try:
            while True:
                node, interruptions = self.serving.wait()
                if node is None:
                    return
                if self.content is not None and not self.verify(node, interruptions):
                    continue
                self.write(node, interruptions)
        except TestFailed as failure:
            self.failure = str(failure)

    def words(self, content):
        """What this content looks like to fio: blocks with a checksum and their place in turn with
        blocks of a pattern that names the burst."""
        if content % 2:
            check = ["--verify=pattern", f"--verify_pattern=0x{content:08x}%o"]
        else:
            check = ["--verify=crc32c"]
        return [*check, f"--randseed={content}"]

    def fio(self, node, interruptions, content, *more):
        """Runs fio against a node; its exit code and output. Wrong data end the run."""
        command = ["fio", f"--name=area{self.number}", "--ioengine=nbd", f"--uri={node.uri()}",
                   "--rw=randwrite", "--iodepth=8", "--thread", "--verify_fatal=1",
                   f"--aux-path={self.directory}", *self.where, *self.words(content), *more]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 text=True, preexec_fn=die_with_parent)
        output = self.output_of(child, node, interruptions)
        if child.returncode != 0 and DATA_ERROR.search(output):
            raise TestFailed(f"fio read wrong data from {node.name} ({' '.join(command)}):\n"
                             f"{output[:3000]}")
        return child.returncode, output

    def output_of(self, child, node, interruptions):
        """Waits for fio, which may hang for ever where it loses the server while it begins."""
        waited = 0
        while True:
            try:
                return child.communicate(timeout=GRACE_S)[0]
            except subprocess.TimeoutExpired:
                waited += GRACE_S
            if self.serving.interruptions != interruptions:
                child.kill()
            elif waited > FIO_ENDS_S:
                child.kill()
                raise TestFailed(f"fio got no answer for {waited} s from {node.name}")

    def undisturbed(self, node, interruptions, code, output):
        """Whether a burst did what it was asked; a failure without a fault of ours is one."""
        if self.serving.interruptions != interruptions:
            self.interrupted += 1
            return False
        expect(code == 0, f"fio failed on {node.name} and nobody disturbed it:\n{output[-3000:]}")
        return True

    def verify(self, node, interruptions):
        """The content of the last whole burst is there. False when it could not be read."""
        code, output = self.fio(node, interruptions, self.content, "--verify_only")
        if code == 0:
            self.read_back += self.blocks
        return self.undisturbed(node, interruptions, code, output) or code == 0

    def write(self, node, interruptions):
        """Another content; while it is written, nothing is known of the area."""
        self.bursts += 1
        content = self.number << 16 | self.bursts
        self.content = None
        code, output = self.fio(node, interruptions, content)
        if code == 0:
            self.written += self.blocks
            self.read_back += self.blocks
            try:
                with node.client(timeout_s=FIO_ENDS_S) as client:
                    client.flush()
            except (Lost, Refused, Failed) as error:
                code, output = 1, str(error)
        if self.undisturbed(node, interruptions, code, output):
            self.content = content


class CheckedLoad:
    """blkload in the background: it says what it acknowledged to a journal and checks each read."""

    def __init__(self, cluster, size_mib, rate, seed):
        self.log_path = cluster.dir / "blkload.log"
        self.program = cluster.bin / "blkload"
        self.uris = [word for node in cluster.data_nodes
                     for word in ("--uri", node.blkload_uri())]
        self.common = ["--journal", cluster.dir / "journal", "--json"]
        words = [self.program, "run", *self.uris, *self.common, "--seconds", 1 << 20,
                 "--connections", 3, "--reconnect-seconds", 1 << 20, "--io-timeout", 20,
                 "--size", size_mib * MIB, "--rate", rate, "--seed", seed, "--notes-stdin"]
        self.output = []
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, preexec_fn=die_with_parent)
        cluster.children.append(self.process)

    def tell(self, note):
        """Tells the checker, and waits until it knows."""
        self.process.stdin.write(note + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        expect(answer == f"noted {note}", f"blkload answered {answer!r} to {note!r}:\n"
                                          f"{self.log_tail()}")

    def log_tail(self):
        """The end of what it says."""
        return self.log_path.read_text(errors="replace")[-3000:]

    def expect_well(self):
        """It runs, and has found nothing."""
        expect(self.process.poll() is None, f"blkload ended:\n{self.log_tail()}")
        lines = self.log_tail().splitlines()[1:]  # the first may be cut
        wrong = [line for line in lines if "violations" in line and " 0 violations" not in line]
        expect(not wrong, f"blkload found violations: {wrong[:1]}")

    def stop(self):
        """Ends the load; what it counted. No violation while it ran."""
        out, _ = self.process.communicate("stop\n", timeout=60)
        expect(self.process.returncode == 0,
               f"blkload ended with {self.process.returncode}:\n{out[-2000:]}{self.log_tail()}")
        return json.loads(out.strip().splitlines()[-1])

    def verify(self):
        """Reads all back: nothing lost, resurrected, unread or torn; what it counted."""
        words = [self.program, "verify", *self.uris, *self.common]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                              timeout=300, check=False)
        expect(done.returncode == 0, f"blkload found violations:\n{done.stdout}{done.stderr}")
        return json.loads(done.stdout.strip().splitlines()[-1])
