#!/usr/bin/env python3
"""Unmodified NBD clients against a primary with a secondary: libnbd's tools, qemu, fio, nbd-client,
nbdkit, and clients that are slow, hostile or gone. One line for each check; exit code 0 when all
of them passed. In the end both disks hold the same bytes and the daemon has kept its memory small.

    nbd_clients.py [PART OF A CHECK'S NAME]...      only these checks
"""

import json
import os
import pathlib
import random
import socket
import struct
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "netns"))

from cluster import MIB, Cluster, TestFailed, expect, run, wait_until
from nbd_client import OPTION_GO, OPTION_MAGIC, READ, WRITE, Client, Refused

SIZE_MIB = 128
CLIENT_TIMEOUT_MS = 2000
MEMORY_KIB_MAX = 64 * 1024
CONNECTIONS = 100


class Bench:
    """What every check gets: the running cluster and two images of the export's size."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.primary, self.secondary = cluster.alpha, cluster.beta
        self.unix = self.primary.uri()
        self.tcp = f"nbd://127.0.0.1:{self.primary.nbd_port}/demo"
        self.size = self.primary.replica()["size_bytes"]
        self.image, self.copy = cluster.dir / "in.img", cluster.dir / "out.img"

    def uris(self):
        return (self.unix, self.tcp)

    def make_image(self, seed):
        """Data and holes, the same for the same seed."""
        draw = random.Random(seed)
        with open(self.image, "wb") as file:
            file.truncate(self.size)
            for at in range(0, self.size - MIB, 2 * MIB):
                file.seek(at)
                file.write(draw.randbytes(MIB))
            file.seek(self.size - 4096)
            file.write(draw.randbytes(4096))


def nbdinfo_tells_size_and_abilities(bench):
    for uri in bench.uris():
        info = json.loads(run("nbdinfo", "--json", uri).stdout)
        export = info["exports"][0]
        expect(info["structured"], "no structured replies")
        expect(export["export-size"] == bench.size, f"size {export['export-size']}")
        for able in ("can_flush", "can_fua", "can_trim", "can_zero", "can_df",
                     "can_multi_conn"):
            expect(export[able], f"{able} is false over {uri}")
        expect(not export["is_read_only"], "it is read-only")
        expect(str(bench.size) in run("nbdinfo", uri).stdout, "nbdinfo shows another size")
        for able in ("multi-conn", "fua", "zero", "trim"):
            run("nbdinfo", "--can", able, uri)


def nbdinfo_lists_the_exports(bench):
    for uri in (f"nbd+unix:///?socket={bench.primary.nbd_socket}",
                f"nbd://127.0.0.1:{bench.primary.nbd_port}"):
        exports = json.loads(run("nbdinfo", "--list", "--json", uri).stdout)["exports"]
        names = [export["export-name"] for export in exports]
        expect(names == ["demo"], f"it lists {names}")


def nbdinfo_maps_the_whole_export(bench):
    extents = json.loads(run("nbdinfo", "--map", "--json", bench.unix).stdout)
    total = sum(extent["length"] for extent in extents)
    expect(total == bench.size, f"the map has {total} of {bench.size} bytes")


def nbdcopy_goes_both_ways(bench):
    for seed, uri in enumerate(bench.uris()):
        bench.make_image(seed)
        bench.copy.unlink(missing_ok=True)
        run("nbdcopy", "--flush", bench.image, uri)
        run("nbdcopy", uri, bench.copy)
        run("cmp", bench.image, bench.copy)


def qemu_img_converts_compares_and_maps(bench):
    bench.make_image(77)
    bench.copy.unlink(missing_ok=True)
    raw = ("-f", "raw")
    run("qemu-img", "convert", "-n", "-W", "-m", "4", *raw, "-O", "raw", bench.image, bench.unix)
    run("qemu-img", "compare", *raw, "-F", "raw", bench.image, bench.unix)
    run("qemu-img", "convert", *raw, "-O", "raw", bench.tcp, bench.copy)
    run("cmp", bench.image, bench.copy)
    extents = json.loads(run("qemu-img", "map", "--output=json", *raw, bench.unix).stdout)
    expect(sum(extent["length"] for extent in extents) == bench.size, f"the map is {extents[:5]}")


def qemu_img_sees_a_difference(bench):
    """The comparison above can fail."""
    with bench.primary.client() as client:
        before = client.read(5 * MIB, 512)
        client.write(5 * MIB, bytes(byte ^ 1 for byte in before))
        done = run("qemu-img", "compare", "-f", "raw", "-F", "raw", bench.image, bench.unix,
                   check=False)
        expect(done.returncode == 1, f"compare ended with {done.returncode}")
        client.write(5 * MIB, before)


def qemu_io_writes_with_fua_zeroes_discards_and_unaligned(bench):
    steps = [
        "write -P 0xab 0 1M", "read -P 0xab 0 1M", "write -f -P 0xcd 64k 4k", "read -P 0xcd 64k 4k",
        "write -z 128k 64k", "read -P 0 128k 64k", "write -z -u 256k 64k", "read -P 0 256k 64k",
        "write -P 0xef 513 1000", "read -P 0xef 513 1000", "read -P 0xab 0 513",
        "read -P 0xab 1513 535", "write -z 700k 777", "read -P 0 700k 777",
        "write -P 0x11 1M 8M", "discard 1M 8M", "write -P 0x12 3M 1M", "read -P 0x12 3M 1M",
        "aio_write -P 0x33 20M 512k", "aio_write -P 0x34 21M 512k", "aio_flush",
        "read -P 0x33 20M 512k", "read -P 0x34 21M 512k", "flush",
    ]
    for uri in bench.uris():
        commands = [word for step in steps for word in ("-c", step)]
        done = run("qemu-io", "-f", "raw", *commands, uri)
        expect("verification failed" not in done.stdout, done.stdout)


def unaligned_requests_touch_only_their_own_bytes(bench):
    """Down to single bytes, against a copy in memory; libnbd and qemu would align them first."""
    draw = random.Random(8)
    start, length = 40 * MIB, 64 * 1024
    with bench.primary.client() as client:
        model = bytearray(draw.randbytes(length))
        client.write(start, bytes(model))
        for step in range(300):
            at = draw.randrange(length - 5000)
            size = draw.choice((1, 7, 511, 512, 513, 4095, 4097, 5000))
            if step % 4 == 0:
                client.zero(start + at, size)
                model[at : at + size] = bytes(size)
            else:
                data = draw.randbytes(size)
                client.write(start + at, data, fua=step % 7 == 0)
                model[at : at + size] = data
            expect(client.read(start + at, size) == model[at : at + size], "it reads other bytes")
        expect(client.read(start, length) == model, "bytes beside the requests have changed")


def fio_verifies_mixed_random_io(bench):
    for uri, jobs in ((bench.unix, 1), (bench.unix, 4), (bench.tcp, 2)):
        run("fio", "--name=mixed", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--bs=4k",
            "--iodepth=16", "--size=16M", f"--numjobs={jobs}", "--offset_increment=16M",
            "--verify=crc32c", "--verify_fatal=1", "--fsync=64", cwd=bench.cluster.dir)


def fio_trims_and_verifies_what_it_wrote_after(bench):
    common = ["--ioengine=nbd", f"--uri={bench.unix}", "--size=32M", "--iodepth=8"]
    run("fio", "--name=trim", *common, "--rw=randtrim", "--bs=64k", cwd=bench.cluster.dir)
    run("fio", "--name=trimwrite", *common, "--rw=trimwrite", "--bs=16k", cwd=bench.cluster.dir)
    run("fio", "--name=after", *common, "--rw=randwrite", "--bsrange=512-64k",
        "--verify=crc32c", "--verify_fatal=1", cwd=bench.cluster.dir)


def nbdkit_passes_requests_through(bench):
    """nbdkit's own client, and its filters in between: retried after injected errors."""
    bench.make_image(5)
    bench.copy.unlink(missing_ok=True)
    run("nbdkit", "-U", "-", "--filter=retry", "--filter=error", "nbd",
        f"socket={bench.primary.nbd_socket}", "export=demo", "error=EIO", "error-rate=0.3%",
        "retry-delay=1", "retry-exponential=no",
        "--run", f'nbdcopy {bench.image} "$uri" && nbdcopy "$uri" {bench.copy}')
    run("cmp", bench.image, bench.copy)


def nbd_client_lists_the_exports(bench):
    done = run("nbd-client", "-l", "127.0.0.1", "-p", bench.primary.nbd_port, check=False)
    if done.returncode != 0:
        done = run("nbd-client", "-l", "127.0.0.1", bench.primary.nbd_port)
    expect("demo" in done.stdout, f"it lists {done.stdout!r}")


def a_flush_on_one_connection_covers_all_of_them(bench):
    """CAN_MULTI_CONN: what one connection wrote, the other reads."""
    with bench.primary.client() as one, bench.primary.client() as two:
        expect(one.flags & 1 << 8, "CAN_MULTI_CONN is not set")
        for step in range(50):
            data = struct.pack(">Q", step) * 512
            one.write(step * 4096, data)
            two.flush()
            expect(two.read(step * 4096, 4096) == data, "the other connection reads old data")


def bad_input_gets_the_right_answer_and_harms_nobody(bench):
    probe = HERE / "nbd_bad_input.py"
    common = ("--export", "demo", "--size", bench.size)
    run("python3", probe, "--unix", bench.primary.nbd_socket, *common)
    run("python3", probe, "--tcp", f"127.0.0.1:{bench.primary.nbd_port}", *common)


def a_secondary_refuses_and_says_where_the_primary_is(bench):
    try:
        bench.secondary.client()
    except Refused as refusal:
        expect("alpha" in str(refusal), f"it says only: {refusal}")
    else:
        raise TestFailed("a secondary serves")
    done = run("nbdinfo", bench.secondary.uri(), check=False)
    expect(done.returncode != 0, "nbdinfo opened the export of a secondary")
    try:
        bench.primary.client("nothing")
    except Refused as refusal:
        expect("no export" in str(refusal) and "demo" in str(refusal), f"it says only: {refusal}")
    else:
        raise TestFailed("an export that does not exist is served")


def no_client_left(bench, deadline_s=20):
    def gone():
        return not bench.primary.status()["clients"]
    wait_until("all hostile clients are closed", gone, deadline_s)


def serves_quickly(bench):
    """An honest client in the middle of all that."""
    started = time.monotonic()
    with bench.primary.client(timeout_s=10) as client:
        for step in range(20):
            data = os.urandom(4096)
            client.write(100 * MIB + step * 4096, data, fua=step % 5 == 0)
            expect(client.read(100 * MIB + step * 4096, 4096) == data, "it reads other data")
    took = time.monotonic() - started
    limit_s = 5 * CLIENT_TIMEOUT_MS / 1000  # the time-out for each of four, and some
    expect(took < limit_s, f"20 writes and reads took {took:.1f} s beside hostile clients")


def a_client_that_never_reads_its_replies_is_closed(bench):
    clients = [bench.primary.client() for _ in range(4)]
    for client in clients:
        client.socket.settimeout(0.5)
        try:
            for at in range(2000):
                client.send_request(READ, at % 100 * MIB, MIB)
        except Exception:  # the socket is full: what was wanted
            pass
    serves_quickly(bench)
    no_client_left(bench)
    for client in clients:
        client.socket.close()


def half_a_request_and_then_silence_is_closed(bench):
    clients = [bench.primary.client() for _ in range(4)]
    clients[0].socket.sendall(b"\x25\x60\x95\x13\x00")
    for client in clients[1:]:
        client.send_request(WRITE, 0, MIB, b"x" * 1000)
    serves_quickly(bench)
    no_client_left(bench)
    for client in clients:
        client.socket.close()


def half_a_negotiation_and_then_silence_holds_nobody_up(bench):
    sockets = []
    for _ in range(20):
        one = socket.create_connection(("127.0.0.1", bench.primary.nbd_port), 10)
        one.sendall(struct.pack(">IQI", 3, OPTION_MAGIC, OPTION_GO))
        sockets.append(one)
    serves_quickly(bench)
    for one in sockets:
        one.close()


def clients_that_vanish_in_the_middle_leave_nothing(bench):
    for _ in range(30):
        client = bench.primary.client()
        for at in range(20):
            client.send_request(READ, at * MIB, MIB)
            client.send_request(WRITE, 110 * MIB, 4096, b"v" * 4096)
        client.socket.close()
    no_client_left(bench)
    serves_quickly(bench)


def a_hundred_connections_at_once(bench):
    clients = []
    for number in range(CONNECTIONS):
        target = bench.primary.nbd_socket
        if number % 2:
            target = ("127.0.0.1", bench.primary.nbd_port)
        clients.append(Client(target, "demo"))
    for number, client in enumerate(clients):
        client.send_request(WRITE, number * 8192, 4096, bytes([number]) * 4096)
    for client in clients:
        magic, code, _ = struct.unpack(">IIQ", client._receive(16))
        expect(magic == 0x67446698 and code == 0, f"a write ended with {code}")
    for number, client in enumerate(clients):
        expect(client.read(number * 8192, 4096) == bytes([number]) * 4096, "other data")
        client.close()
    no_client_left(bench)


def random_bytes_end_only_their_own_connection(bench):
    draw = random.Random(4)
    for round_number in range(200):
        one = socket.create_connection(("127.0.0.1", bench.primary.nbd_port), 10)
        try:
            if round_number % 2:
                one.sendall(struct.pack(">I", 3))
            one.sendall(draw.randbytes(draw.randrange(1, 5000)))
        except OSError:
            pass  # closed already: fine
        one.close()
    serves_quickly(bench)


def the_daemon_stays_below_64_mib(bench):
    for node in (bench.primary, bench.secondary):
        used = node.memory_kib()
        bitmaps = bench.size // 4096 // 8 // 1024
        print(f"      {node.name}: {used / 1024:.1f} MiB now, "
              f"{node.memory_kib('VmHWM') / 1024:.1f} MiB at most")
        expect(used < MEMORY_KIB_MAX + bitmaps, f"{node.name} uses {used} KiB")


def both_disks_hold_the_same_bytes(bench):
    bench.cluster.wait_in_sync()
    bench.cluster.expect_identical()
    for node in (bench.primary, bench.secondary):
        expect(node.is_running, f"the daemon of {node.name} has ended")
    expect(bench.primary.status()["counters"]["disk_errors"] == 0, "disk errors were counted")


CHECKS = [
    nbdinfo_tells_size_and_abilities, nbdinfo_lists_the_exports, nbdinfo_maps_the_whole_export,
    nbdcopy_goes_both_ways, qemu_img_converts_compares_and_maps, qemu_img_sees_a_difference,
    qemu_io_writes_with_fua_zeroes_discards_and_unaligned,
    unaligned_requests_touch_only_their_own_bytes, fio_verifies_mixed_random_io,
    fio_trims_and_verifies_what_it_wrote_after, nbdkit_passes_requests_through,
    nbd_client_lists_the_exports, a_flush_on_one_connection_covers_all_of_them,
    bad_input_gets_the_right_answer_and_harms_nobody,
    a_secondary_refuses_and_says_where_the_primary_is,
    a_client_that_never_reads_its_replies_is_closed, half_a_request_and_then_silence_is_closed,
    half_a_negotiation_and_then_silence_holds_nobody_up,
    clients_that_vanish_in_the_middle_leave_nothing, a_hundred_connections_at_once,
    random_bytes_end_only_their_own_connection, the_daemon_stays_below_64_mib,
    both_disks_hold_the_same_bytes,
]


def main():
    wanted = sys.argv[1:]
    failed = 0
    options = f"client_timeout_ms = {CLIENT_TIMEOUT_MS}"
    with Cluster(size_mib=SIZE_MIB, tcp=True, options=options) as cluster:
        bench = Bench(cluster.start())
        for check in CHECKS:
            name = check.__name__.replace("_", " ")
            if wanted and not any(word in name for word in wanted):
                continue
            started = time.monotonic()
            try:
                check(bench)
                print(f"ok     {name} ({time.monotonic() - started:.1f} s)", flush=True)
            except Exception as error:
                failed += 1
                print(f"FAILED {name} ({time.monotonic() - started:.1f} s)\n{error}", flush=True)
        if failed:
            print(cluster.evidence())
    print(f"{failed} checks failed" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
