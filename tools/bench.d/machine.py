"""What the bench needs of the machine: packages, a description of it, CPU times, processes."""

import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
PYTHON_WITH_NBD = "/usr/bin/python3"
# Command that must be there, and the Debian package that brings it.
NEEDS = [
    ("fio", "fio"),
    ("qemu-nbd", "qemu-utils"),
    ("qemu-storage-daemon", "qemu-system-common"),
]


class BenchError(Exception):
    """Something that the reader of the message can repair."""


def install_needs():
    """Installs what is missing, when run as root; names it otherwise."""
    missing = [package for command, package in NEEDS if not shutil.which(command)]
    has_nbd = subprocess.run(
        [PYTHON_WITH_NBD, "-c", "import nbd"], stderr=subprocess.DEVNULL, check=False
    )
    if has_nbd.returncode != 0:
        missing.append("python3-libnbd")
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BenchError(f"missing: {' '.join(missing)}; install them, or run this as root")
    print("installing", *missing, flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "check": False}
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if subprocess.run(command, env=environment, **quiet).returncode != 0:
        raise BenchError(f"apt-get could not install {' '.join(missing)}")


def first_line(*command):
    """The first line that a command prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError as error:
        return str(error)
    return ((done.stdout or done.stderr).splitlines() or ["?"])[0]


def describe(directory):
    """Machine, kernel, disk and versions."""
    cpu = "unknown CPU"
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo", encoding="ascii") as lines:
        memory_kib = int(re.search(r"MemTotal:\s+(\d+)", lines.read()).group(1))
    place = first_line("findmnt", "-no", "SOURCE,FSTYPE", "-T", str(directory))
    git = first_line("git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty")
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory_gib": round(memory_kib / 2**20, 1),
        "kernel": platform.release(),
        "disk": " ".join(place.split()),
        "fio": first_line("fio", "--version"),
        "qemu": first_line("qemu-nbd", "--version"),
        "replicator": git,
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _busy_ticks():
    with open("/proc/stat", encoding="ascii") as stat:
        fields = [int(field) for field in stat.readline().split()[1:9]]
    # user, nice, system, irq, softirq; steal is somebody else's machine, not our work.
    return fields[0] + fields[1] + fields[2] + fields[5] + fields[6], sum(fields), fields[7]


def busy_share(seconds=0.5):
    """How much of all CPUs is in use now, by whoever; 0 to 1. The bench itself must be idle."""
    busy, total, _ = _busy_ticks()
    time.sleep(seconds)
    busy_later, total_later, _ = _busy_ticks()
    return (busy_later - busy) / max(1, total_later - total)


def load():
    """The load average of the last minute."""
    return os.getloadavg()[0]


def cpu_seconds(pid):
    """User and system time of a process with all its threads, io_uring's workers included."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Others:
    """CPU that is used by nobody the bench knows, while something is measured."""

    def __init__(self):
        self.busy, self.total, self.steal = _busy_ticks()
        self.children = sum(os.times()[2:4])

    def share(self, daemons_seconds):
        """Share of all CPUs that went to others since the start, 0 to 1, and to the host."""
        busy, total, steal = _busy_ticks()
        children = sum(os.times()[2:4]) - self.children
        elapsed = max(1, total - self.total)
        foreign = (busy - self.busy) - (daemons_seconds + children) * TICKS
        return max(0.0, foreign / elapsed), (steal - self.steal) / elapsed


class Processes:
    """The daemons that the bench started; `stop` ends them, by their ids, whatever happened."""

    def __init__(self, log_directory):
        self.log_directory = log_directory
        self.running = []

    def start(self, name, command):
        """Starts a daemon; what it says goes to a file of its name."""
        log = open(self.log_directory / f"{name}.log", "wb")  # pylint: disable=R1732
        with log:
            process = subprocess.Popen(  # pylint: disable=R1732
                [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )
        process.bench_name = name
        self.running.append(process)
        return process

    def must_live(self, process):
        """Raises with the end of its log when a daemon has ended."""
        if process.poll() is not None:
            log = (self.log_directory / f"{process.bench_name}.log").read_text(errors="replace")
            raise BenchError(
                f"{process.bench_name} ended with {process.returncode}:\n{log[-1500:]}"
            )

    def stop(self):
        """Ends them all."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        for process in self.running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
            if process.poll() is None:
                process.kill()
                process.wait()
        self.running.clear()


def wait_for(what, condition, seconds=30, poll_seconds=0.02):
    """Waits until a condition holds; raises BenchError after a while."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise BenchError(f"waited {seconds} s in vain for {what}")
        time.sleep(poll_seconds)
