"""The systems that are compared: how each is started, where clients reach it, and which daemons
serve it. All lie on one disk, on files that were written once from end to end with random data,
so that nobody pays for the allocation of blocks."""

import json
import subprocess
import time

from machine import BenchError, wait_for

MIB = 1 << 20
# Behind the data of each file: room for internal metadata.
TAIL_BYTES = 16 * MIB
EXTENT_BYTES = 4 * MIB
# Of the resource for the cold row: the smallest that is allowed, so that ten times as much data
# need not be tens of GiB. The default of 1024 evicts sixteen times as many with one flush.
COLD_LOG_EXTENTS = 64


class System:
    """One thing to measure."""

    def __init__(self, name, title, daemons=(), socket=None, export="", path=None):
        self.name = name
        self.title = title
        self.daemons = list(daemons)
        self.socket = socket
        self.export = export
        self.path = path

    @property
    def uri(self):
        """Where NBD clients connect."""
        return f"nbd+unix:///{self.export}?socket={self.socket}"

    def fio_target(self):
        """The fio options that name it."""
        if self.path:
            return ["--ioengine=io_uring", "--direct=1", f"--filename={self.path}"]
        return ["--ioengine=nbd", f"--uri={self.uri}"]


def fill(path, size_bytes):
    """Writes a file with random data past the page cache: no hole, no unwritten extent."""
    command = [
        "fio", "--name=fill", f"--filename={path}", f"--size={size_bytes}", "--rw=write",
        "--bs=1m", "--direct=1", "--ioengine=io_uring", "--iodepth=8", "--end_fsync=1",
        "--fallocate=none", "--refill_buffers", "--output-format=terse",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"cannot fill {path}: {done.stderr.strip() or done.stdout.strip()}")


def start_raw(bench):
    """The disk itself: the ceiling of everything else."""
    path = bench.directory / "raw.img"
    fill(path, bench.size_bytes)
    return System("raw", "raw io_uring", path=path)


def start_qemu_nbd(bench):
    """The usual NBD server, unreplicated."""
    path, socket = bench.directory / "qemu-nbd.img", bench.directory / "qemu-nbd.sock"
    fill(path, bench.size_bytes)
    daemon = bench.processes.start("qemu-nbd", [
        "qemu-nbd", "-f", "raw", "-t", "-e", "32", "-k", socket, "--cache=none",
        "--aio=io_uring", "-x", "demo", path,
    ])
    wait_for_socket(bench, daemon, socket)
    return System("qemu-nbd", "qemu-nbd", [daemon], socket, "demo")


def _storage_daemon(bench, name, socket, *options):
    return bench.processes.start(name, [
        "qemu-storage-daemon",
        "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0", *options,
    ])


def _qemu_file(node, path):
    return [
        "--blockdev",
        f"driver=file,node-name={node},filename={path},cache.direct=on,aio=io_uring",
    ]


def _qemu_export(node):
    return ["--export", f"type=nbd,id=export,node-name={node},name=demo,writable=on"]


def start_quorum(bench):
    """qemu's mirror: writes need both children, reads take the first; the second child is
    served by another daemon over a Unix socket."""
    near, far = bench.directory / "quorum-a.img", bench.directory / "quorum-b.img"
    near_socket, far_socket = bench.directory / "quorum-a.sock", bench.directory / "quorum-b.sock"
    fill(near, bench.size_bytes)
    fill(far, bench.size_bytes)
    remote = _storage_daemon(
        bench, "quorum-remote", far_socket, *_qemu_file("disk", far), *_qemu_export("disk")
    )
    wait_for_socket(bench, remote, far_socket)
    local = _storage_daemon(
        bench, "quorum", near_socket, *_qemu_file("near", near),
        "--blockdev",
        f"driver=nbd,node-name=far,server.type=unix,server.path={far_socket},export=demo",
        "--blockdev",
        "driver=quorum,node-name=mirror,vote-threshold=2,read-pattern=fifo,"
        "children.0=near,children.1=far",
        *_qemu_export("mirror"),
    )
    wait_for_socket(bench, local, near_socket)
    return System("quorum", "quorum mirror", [local, remote], near_socket, "demo")


def wait_for_socket(bench, daemon, socket):
    """Until a daemon listens, or it is known to have failed."""
    def ready():
        bench.processes.must_live(daemon)
        return socket.exists()
    wait_for(f"{daemon.bench_name} to make {socket}", ready)


class Cluster:
    """One or two replicatord with their resources, of which the first node is primary."""

    def __init__(self, bench, name, nodes, resources, port):
        self.bench = bench
        self.name = name
        self.nodes = nodes
        self.directory = bench.directory / name
        self.directory.mkdir()
        self.resources = resources
        self.config = self.directory / "replicator.toml"
        self.config.write_text(self._config_text(port))
        self.daemons = []

    def _config_text(self, port):
        lines = ['cluster = "bench"', f'key = "{self.directory}/key"']
        for number, node in enumerate(self.nodes):
            place = self.directory / node
            place.mkdir()
            lines += [
                f"[node.{node}]", f'address = "127.0.0.1:{port + number}"',
                f'state_dir = "{place}"', f'run_dir = "{place}"', f'device_dir = "{place}/dev"',
            ]
        for name, options in self.resources.items():
            lines.append(f"[resource.{name}]")
            lines += [f'disk.{node} = "{self.disk(name, node)}"' for node in self.nodes]
            lines.append('attach = "none"')
            lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()
                      if key != "size_bytes"]
        return "\n".join(lines) + "\n"

    def disk(self, resource, node):
        """The backing file of a resource on a node."""
        return self.directory / f"{resource}-{node}.img"

    def control(self, node, *words, check=True):
        """Runs replctl; gives what it printed."""
        command = [self.bench.replctl, "--config", self.config, "--node", node, *words]
        command = [str(word) for word in command]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if check and done.returncode != 0:
            raise BenchError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def start(self):
        """Makes the replicas, starts the daemons, waits until all is in sync and served."""
        first = self.nodes[0]
        self.control(first, "init")
        for name, options in self.resources.items():
            for node in self.nodes:
                path = self.disk(name, node)
                if options.get("test_backing") == "null":
                    with open(path, "wb") as file:
                        file.truncate(options["size_bytes"])
                else:
                    fill(path, options["size_bytes"])
                words = ["--origin"] if node == first else []
                if options.get("test_backing") != "null":
                    # The random bytes are nobody's.
                    words += ["--force", "data"]
                self.control(node, "create", name, *words)
        for node in self.nodes:
            self.daemons.append(self.bench.processes.start(f"{self.name}-{node}", [
                self.bench.replicatord, "--config", self.config, "--node", node,
            ]))
        for node, daemon in zip(self.nodes, self.daemons):
            wait_for_socket(self.bench, daemon, self.directory / node / "control.sock")
        for name in self.resources:
            self.promote(name)
            self.wait_in_sync(name)

    def promote(self, resource):
        """Makes the first node primary; a daemon that has just started may need a moment."""
        def promoted():
            for daemon in self.daemons:
                self.bench.processes.must_live(daemon)
            self.control(self.nodes[0], "promote", resource, check=False)
            replica = self.replica(resource)
            return replica and replica["role"] == "primary"
        wait_for(f"{self.name}: {resource} to become primary", promoted, 60, 0.1)

    def replica(self, resource):
        """What the primary says of a resource; none while it is not up."""
        try:
            status = json.loads(self.control(self.nodes[0], "--json", "status", check=False))
        except ValueError:
            return None
        found = [r for r in status.get("resources", []) if r["name"] == resource]
        return found[0]["replica"] if found else None

    def peer(self, resource):
        """What the primary says of its peer."""
        replica = self.replica(resource)
        return replica["peers"][0] if replica and replica["peers"] else None

    def is_in_sync(self, resource):
        """Whether every node is in the in-sync set with nothing left to copy."""
        replica = self.replica(resource)
        return bool(replica) and len(replica["in_sync"]) == len(self.nodes) and all(
            peer["state"] == "current" and peer["dirty_bytes"] == 0 for peer in replica["peers"]
        )

    def wait_in_sync(self, resource, seconds=300):
        """Waits for the end of a resync; the seconds it took."""
        began = time.monotonic()
        wait_for(f"{self.name}: {resource} in sync", lambda: self.is_in_sync(resource), seconds)
        return time.monotonic() - began

    def system(self, name, title, resource):
        """A resource of this cluster as something to measure."""
        socket = self.directory / self.nodes[0] / "nbd.sock"
        system = System(name, title, self.daemons, socket, resource)
        system.cluster = self
        return system


def start_single(bench):
    """Ours, with one node."""
    cluster = Cluster(bench, "single", ["alpha"], {"demo": _normal(bench)}, bench.port)
    cluster.start()
    return cluster.system("single", "ours, alone", "demo")


def start_mirrored(bench):
    """Ours, with two nodes over TCP."""
    cluster = Cluster(
        bench, "mirrored", ["alpha", "beta"], {"demo": _normal(bench)}, bench.port + 10
    )
    cluster.start()
    return cluster.system("mirrored", "ours, mirrored", "demo")


def start_null(bench):
    """Ours, with two nodes, without the disk: nothing else is left out."""
    options = dict(_normal(bench), test_backing="null")
    cluster = Cluster(bench, "null", ["alpha", "beta"], {"demo": options}, bench.port + 20)
    cluster.start()
    return cluster.system("null", "ours, mirrored, no disk", "demo")


def start_cold(bench):
    """Ours, with two nodes, a small activity log and ten times as much data."""
    data_bytes = 10 * COLD_LOG_EXTENTS * EXTENT_BYTES
    options = {"size_bytes": data_bytes + TAIL_BYTES, "log_extents": COLD_LOG_EXTENTS}
    cluster = Cluster(bench, "cold", ["alpha", "beta"], {"demo": options}, bench.port + 30)
    cluster.start()
    system = cluster.system("cold", "ours, mirrored, small log", "demo")
    system.data_bytes = data_bytes
    return system


def _normal(bench):
    return {"size_bytes": bench.size_bytes + TAIL_BYTES}


STARTERS = {
    "raw": start_raw,
    "qemu-nbd": start_qemu_nbd,
    "quorum": start_quorum,
    "single": start_single,
    "mirrored": start_mirrored,
    "null": start_null,
    "cold": start_cold,
}
