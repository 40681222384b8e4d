"""The rows of the comparison: one function call measures one row on one system once."""

import json
import subprocess
import time
from pathlib import Path

import machine
from machine import BenchError, wait_for
from systems import MIB, fill

REPLICATED = ("raw", "qemu-nbd", "quorum", "single", "mirrored")
WITH_NULL = REPLICATED + ("null",)


class Row:
    """One row: a name, what it says in the table, the fio options, and who takes part."""

    def __init__(self, name, title, fio, systems=REPLICATED, shown="iops"):
        self.name = name
        self.title = title
        self.fio = fio
        self.systems = systems
        self.shown = shown


RANDOM_4K = ["--bs=4k", "--norandommap=1"]
ROWS = [
    Row("write-4k-d1", "4k random write, depth 1",
        [*RANDOM_4K, "--rw=randwrite", "--iodepth=1"], WITH_NULL, "us"),
    Row("write-4k-d32", "4k random write, depth 32",
        [*RANDOM_4K, "--rw=randwrite", "--iodepth=32"], WITH_NULL),
    Row("write-128k-seq", "128k sequential write, depth 16",
        ["--bs=128k", "--rw=write", "--iodepth=16"], WITH_NULL, "mb"),
    Row("read-4k-d32", "4k random read, depth 32",
        [*RANDOM_4K, "--rw=randread", "--iodepth=32"]),
    Row("mix-4k-d32", "4k random, 70 % reads, depth 32",
        [*RANDOM_4K, "--rw=randrw", "--rwmixread=70", "--iodepth=32"]),
    Row("four-clients", "4k random write, 4 connections, depth 8",
        [*RANDOM_4K, "--rw=randwrite", "--iodepth=8", "--numjobs=4"]),
    Row("flush", "flush after each 4k write (libnbd)", None,
        ("qemu-nbd", "quorum", "single", "mirrored"), "us"),
    Row("cold", "4k random write, depth 32, over 10x the activity log", None, ("cold",)),
    Row("resync", "full resync, and an application beside it", None, ("cold",), "mb"),
]


def fio(target, options, seconds, size_bytes):
    """Runs fio once; gives its figures in plain units."""
    command = [
        "fio", "--name=row", *target, *options, f"--size={size_bytes}", f"--runtime={seconds}",
        "--time_based=1", "--group_reporting=1", "--randrepeat=0", "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          timeout=seconds * 5 + 60)
    start = done.stdout.find("{")
    if done.returncode != 0 or start < 0:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise BenchError(f"fio failed: {' '.join(command)}: {said}")
    job = json.loads(done.stdout[start:])["jobs"][0]
    if job["error"]:
        raise BenchError(f"fio saw error {job['error']}: {' '.join(command)}")
    sides = [job[side] for side in ("read", "write") if job[side]["total_ios"]]
    count = sum(side["total_ios"] for side in sides)
    elapsed = max(side["runtime"] for side in sides) / 1000
    # Where both directions run, the mean of all and the worse p99.
    mean_ns = sum(side["clat_ns"]["mean"] * side["total_ios"] for side in sides) / count
    return {
        "requests": count,
        "iops": count / elapsed,
        "mb_per_s": sum(side["io_bytes"] for side in sides) / elapsed / 1e6,
        "mean_us": mean_ns / 1000,
        "p99_us": max(side["clat_ns"]["percentile"]["99.000000"] for side in sides) / 1000,
        "client_cpu_s": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000,
    }


def with_cpu(system, measure):
    """Runs a measurement and adds what it cost the daemons."""
    before = [machine.cpu_seconds(daemon.pid) for daemon in system.daemons]
    others = machine.Others()
    found = measure()
    after = [machine.cpu_seconds(daemon.pid) for daemon in system.daemons]
    spent = [later - earlier for earlier, later in zip(before, after)]
    foreign, steal = others.share(sum(spent))
    found["cpu_s_per_million"] = [seconds / found["requests"] * 1e6 for seconds in spent]
    found["others_share"] = foreign
    found["steal_share"] = steal
    return found


def measure_fio(bench, row, system):
    """A row that is one fio command."""
    return with_cpu(system, lambda: fio(
        system.fio_target(), row.fio, bench.seconds, bench.data_bytes))


def measure_flush(bench, system):
    """The flush row."""
    script = Path(__file__).with_name("flush_latency.py")
    command = [machine.PYTHON_WITH_NBD, script, system.uri, bench.data_bytes, bench.seconds]

    def run():
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                              check=False, timeout=bench.seconds * 5 + 60)
        if done.returncode != 0:
            raise BenchError(f"flushing {system.uri}: {done.stderr.strip()[-600:]}")
        told = json.loads(done.stdout)
        return {"requests": told["count"], "iops": told["count"] / bench.seconds, **told}
    return with_cpu(system, run)


def measure_cold(bench, system):
    """The same line within what the activity log covers and over ten times as much; the
    difference is what moving the log's extents costs."""
    line = [*RANDOM_4K, "--rw=randwrite", "--iodepth=32"]

    def over(size_bytes):
        return with_cpu(system, lambda: fio(
            system.fio_target(), line, bench.seconds, size_bytes))
    # What is hot from the last round must not help.
    within_bytes = system.data_bytes // 10 - 16 * MIB
    fio(system.fio_target(), line, 0.5, within_bytes)
    within = over(within_bytes)
    beyond = over(system.data_bytes)
    return {**beyond, "within": within, "of_within": beyond["iops"] / within["iops"]}


def disk_copy_mb_per_s(bench, seconds):
    """What this disk can copy from one file to another: both replicas lie on it."""
    read, write = bench.directory / "raw.img", bench.directory / "copy.img"
    if not write.exists():
        fill(write, bench.size_bytes)
    common = ["--ioengine=io_uring", "--direct=1", "--bs=512k", "--iodepth=8", "--time_based=1",
              f"--runtime={seconds}", f"--size={bench.data_bytes}"]
    command = [
        "fio", "--output-format=json", *common,
        "--name=from", f"--filename={read}", "--rw=read",
        "--name=to", f"--filename={write}", "--rw=write",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True,
                          timeout=seconds * 5 + 60)
    jobs = json.loads(done.stdout[done.stdout.find("{"):])["jobs"]
    return min(jobs[0]["read"]["bw_bytes"], jobs[1]["write"]["bw_bytes"]) / 1e6


APPLICATION = [*RANDOM_4K, "--rw=randrw", "--rwmixread=70", "--iodepth=4"]


def measure_resync(bench, system):
    """All of a replica copied anew: alone for the speed, then beside an application for its
    p99."""
    cluster = system.cluster
    target = system.fio_target()
    seconds = max(1, min(bench.seconds, 2))
    copy = disk_copy_mb_per_s(bench, seconds)
    alone = fio(target, APPLICATION, seconds, system.data_bytes)

    began_at = _begin_resync(cluster)
    cluster.wait_in_sync("demo")
    took = time.monotonic() - began_at

    _begin_resync(cluster)
    beside = fio(target, APPLICATION, seconds, system.data_bytes)
    left = cluster.peer("demo")["resync_left_bytes"]
    cluster.wait_in_sync("demo")
    speed = system.data_bytes / took / 1e6
    return {
        "requests": beside["requests"], "iops": beside["iops"], "mb_per_s": speed,
        "seconds": took, "disk_copy_mb_per_s": copy, "of_disk_copy": speed / copy,
        "p99_alone_us": alone["p99_us"], "p99_us": beside["p99_us"],
        "mean_us": beside["mean_us"], "p99_ratio": beside["p99_us"] / alone["p99_us"],
        "application_iops_alone": alone["iops"],
        # The p99 means less when the resync was over before fio was.
        "resync_ran_all_the_time": left > 0,
    }


def _begin_resync(cluster):
    cluster.control(cluster.nodes[0], "resync", "demo", "--full")
    began_at = time.monotonic()
    wait_for("the resync to begin", lambda: not cluster.is_in_sync("demo"), 10, 0.005)
    return began_at


def measure(bench, row, system):
    """Measures one row on one system once."""
    for daemon in system.daemons:
        bench.processes.must_live(daemon)
    if row.fio:
        return measure_fio(bench, row, system)
    special = {"flush": measure_flush, "cold": measure_cold, "resync": measure_resync}
    return special[row.name](bench, system)
