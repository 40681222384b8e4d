"""Scenarios: wrong configurations, wrong disks, strangers and garbage on every port. The answer is
a clear error, no daemon panics, nothing is lost."""

import errno
import json
import os
import pathlib
import random
import shutil
import socket

from cluster import BLOCK, MIB, ROOT, Cluster, Skip, expect, run, wait_until
from nbd_client import Failed
from peer_speaker import FRAME_KINDS, READY, REFUSED, Closed, Speaker, frame, opening
from roles import fill, holds

GARBAGE_ROUNDS = 150


def refuses_to_start(node, exit_code, *words):
    """The daemon ends with this code, and its message has these words."""
    node.log_path.unlink(missing_ok=True)
    node.spawn()
    code = node.process.wait(20)
    text = node.log()
    expect(code == exit_code, f"it ended with {code}, not {exit_code}:\n{text}")
    for word in words:
        expect(word in text, f"{word!r} is not in the message:\n{text}")


def wrong_configurations_are_refused_with_the_place_and_a_hint():
    with Cluster() as cluster:
        alpha = cluster.create().alpha
        good = alpha.config.read_text()
        cases = [
            ('disk.alpha', 'dsik.alpha', ("dsik", "disk")),
            ('attach = "none"', 'attach = "nonne"', ("nonne", "none")),
            ('address = "127', 'address = "host127', ("not an IP address",)),
            ('cluster = "test"', '', ("cluster",)),
            ('[node.beta]', '[node.beta', ()),
            ('test_backing', 'log_extents = 7\ntest_backing', ("log_extents", "64")),
        ]
        for old, new, words in cases:
            wrong = good.replace(old, new, 1)
            expect(wrong != good, f"{old} is not in the configuration")
            alpha.config.write_text(wrong)
            line = next(number for number, (one, two) in enumerate(
                zip(good.splitlines(), wrong.splitlines()), 1) if one != two)
            place = f"replicator.toml:{line}:" if new else "replicator.toml"
            refuses_to_start(alpha, 2, place, *words)
            code, _, error = alpha.ctl_raw("check", as_json=False)
            expect(code == 2 and place in error, f"replctl check: {code} {error}")
        alpha.config.write_text(good)
        alpha.config.unlink()
        refuses_to_start(alpha, 2, "replicator.toml")


def the_example_configurations_are_good():
    with Cluster() as cluster:
        for example in sorted((ROOT / "tools/deploy/examples").glob("*.toml")):
            done = run(cluster.bin / "replctl", "--config", example, "--json", "check", check=False)
            expect(done.returncode in (0, 4), f"{example.name}: {done.stdout}{done.stderr}")
            expect(json.loads(done.stdout)["resources"], f"{example.name} has no resources")


def a_key_that_is_missing_open_to_others_or_too_short_is_refused():
    with Cluster() as cluster:
        alpha = cluster.create().alpha
        key = alpha.key.read_bytes()
        alpha.key.chmod(0o644)
        refuses_to_start(alpha, 2, "key", "644")
        alpha.key.chmod(0o600)
        alpha.key.write_bytes(b"short")
        refuses_to_start(alpha, 2, "key", "5")
        alpha.key.unlink()
        refuses_to_start(alpha, 2, "key", "init")
        alpha.key.write_bytes(key)
        alpha.key.chmod(0o600)
        alpha.start()


def fails_to_run(node, *words):
    """The daemon runs, the resource does not, and says why with these words."""
    node.start()
    status = wait_until("the resource gave up", lambda: (
        node.status()["state"] == "failed" and node.status()))
    for word in words:
        expect(word in status["why"], f"{word!r} is not in {status['why']!r}")
    expect(status["verdict"]["level"] == "attention", f"the verdict is {status['verdict']}")
    expect(node.ctl_raw("status")[0] == 4, "status does not end with 4")
    node.refuses("promote", "demo", "--alone")
    node.stop()


def d6_wrong_disks_are_told_apart_and_left_alone():
    with Cluster() as cluster:
        alpha, beta = cluster.create().alpha, cluster.beta
        disk, saved = alpha.disk(), alpha.dir / "saved"
        size = disk.stat().st_size
        shutil.copy(disk, saved)

        disk.unlink()
        fails_to_run(alpha, str(disk), "No such file")
        disk.mkdir()
        fails_to_run(alpha, str(disk))
        disk.rmdir()
        disk.write_bytes(bytes(size))
        fails_to_run(alpha, str(disk))
        disk.write_bytes(random.Random(1).randbytes(size))
        before = disk.read_bytes()
        fails_to_run(alpha, str(disk))
        expect(disk.read_bytes() == before, "a disk that is not ours was written")
        shutil.copy(saved, disk)
        os.truncate(disk, size - 8 * MIB)
        fails_to_run(alpha, str(disk))
        disk.write_bytes(b"")
        fails_to_run(alpha, str(disk))
        shutil.copy(beta.disk(), disk)
        fails_to_run(alpha, "beta", "swapped")
        shutil.copy(saved, disk)
        alpha.start()
        wait_until("the right disk is taken", lambda: alpha.status()["state"] == "up")


def a_disk_that_holds_something_is_not_made_a_replica_unasked():
    with Cluster() as cluster:
        alpha = cluster.alpha
        alpha.ctl("init")
        disk = alpha.disk()
        run("mkfs.ext4", "-q", "-F", disk)
        before = disk.read_bytes()
        for flags in (("--origin",), ()):
            refusal = alpha.refuses("create", "demo", *flags)
            expect("ext4" in refusal.why, f"it does not say what is there: {refusal}")
        expect(disk.read_bytes() == before, "it was written all the same")
        alpha.ctl("create", "demo", "--origin", "--force", "ext4")
        refusal = alpha.refuses("create", "demo", "--origin")
        expect("replica" in refusal.why.lower(), f"a second create: {refusal}")
        refusal = alpha.refuses("create", "nothing")
        expect("demo" in refusal.why, f"an unknown resource: {refusal}")


def stay_apart(reason_here, reason_there, prepare):
    """Two nodes that must not find together; the reason is counted on both."""
    with Cluster() as cluster:
        alpha, beta = cluster.create().alpha, cluster.beta
        prepare(cluster)
        alpha.start()
        beta.start()
        for node, reason in ((alpha, reason_here), (beta, reason_there)):
            def counted(node=node, reason=reason):
                refused = node.ctl("status")["refused_greetings"]
                return any(entry["reason"] == reason and entry["count"] for entry in refused)
            wait_until(f"{node.name} counts {reason}", counted)
        why = alpha.peer()["why"]
        expect(why, "the peer's line does not say why")
        print(f"    {why}")


def another_key_is_refused_on_both_sides():
    def prepare(cluster):
        cluster.beta.key = cluster.beta.dir / "key"
        cluster.write_config()
        cluster.beta.ctl("init")
    stay_apart("wrong_key_there", "wrong_key", prepare)


def another_cluster_with_the_same_key_is_refused():
    def prepare(cluster):
        cluster.write_config(beta={"cluster": "elsewhere"})
    stay_apart("wrong_cluster", "wrong_cluster", prepare)


def strangers_and_garbage_on_the_peer_port_disturb_nobody():
    """Random bytes, other versions, truncated greetings; beside them the two replicate."""
    with Cluster() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        draw = random.Random(11)
        key = cluster.alpha.key.read_bytes()
        for number in range(GARBAGE_ROUNDS):
            port = (alpha, beta)[number // 6 % 2].port
            stranger = Speaker(port)
            try:
                match number % 6:
                    case 0:
                        stranger.send(draw.randbytes(draw.randrange(1, 3000)))
                    case 1:
                        stranger.send(opening()[: draw.randrange(1, 48)])
                    case 2:
                        stranger.send(opening() + draw.randbytes(draw.randrange(1, 2000)))
                    case 3:
                        kind = stranger.greet(key, "test", "alpha", "beta", "demo", (9, 9))
                        expect(kind == REFUSED, f"version 9 was answered with {kind}")
                    case 4:
                        kind = stranger.greet(b"x" * 32, "test", "alpha", "beta", "demo")
                        expect(kind == REFUSED, f"a wrong key was answered with {kind}")
                    case 5:
                        stranger.send(b"GET / HTTP/1.1\r\nHost: example\r\n" + b"x" * 30)
                        stranger.receive(1000)
            except Closed:
                pass
            stranger.close()
        fill(alpha, range(10), b"p")
        expect(alpha.peer()["state"] == "current", "the two lost each other")
        names = {entry["reason"] for entry in beta.ctl("status")["refused_greetings"]}
        expect({"wrong_version", "wrong_key", "not_replicator"} <= names, f"counted: {names}")
        cluster.expect_identical()


def random_frames_of_a_proved_member_never_panic_and_never_change_data():
    """The key is right, the checksums are right, the rest is wrong."""
    with Cluster() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        fill(alpha, range(100), b"q")
        alpha.stop()
        size = beta.replica()["size_bytes"]
        with open(beta.disk(), "rb") as disk:
            before = disk.read(size)
        key, draw = cluster.beta.key.read_bytes(), random.Random(12)
        agreed = 0
        for number in range(GARBAGE_ROUNDS):
            member = Speaker(beta.port)
            try:
                agreed += member.greet(key, "test", "alpha", "beta", "demo") == READY
                for _ in range(draw.randrange(1, 6)):
                    payload = draw.randbytes(draw.choice((0, 0, 1, 16, 200, 4096)))
                    one = frame(
                        draw.randrange(0, FRAME_KINDS + 3), payload, flags=draw.randrange(8),
                        tenure=draw.choice((0, 1, 2, 3, 1 << 63)), seq=draw.randrange(5),
                        start=draw.choice((0, BLOCK, 1 << 40, (1 << 64) - BLOCK)),
                        length=draw.choice((0, len(payload), BLOCK, 1 << 62)),
                        volume=draw.choice((0, 0, 7)), version=draw.choice((1, 1, 1, 2)))
                    cut = draw.choice((len(one), len(one), draw.randrange(1, len(one))))
                    member.send(one[:cut] if number % 5 else draw.randbytes(200))
            except Closed:
                pass
            member.close()
        expect(agreed > GARBAGE_ROUNDS // 2, f"only {agreed} greetings were agreed on")
        expect(beta.is_running, f"the daemon died:\n{beta.log_tail()}")
        wait_until("it answers", lambda: beta.status()["state"] == "up")
        with open(beta.disk(), "rb") as disk:
            expect(disk.read(size) == before, "the data were changed")
        alpha.start()
        wait_until("the two have met", lambda: alpha.peer().get("state") == "idle")
        alpha.promote()
        cluster.wait_in_sync()
        expect(holds(alpha, range(100), b"q"), "data are missing")
        cluster.expect_identical()


def garbage_on_the_control_socket_disturbs_nobody():
    with Cluster() as cluster:
        alpha = cluster.start().alpha
        draw = random.Random(13)
        for number in range(60):
            with socket.socket(socket.AF_UNIX) as one:
                one.settimeout(10)
                one.connect(str(alpha.dir / "control.sock"))
                data = (draw.randbytes(3000), b"{" * 20000 + b"\n", b'{"Promote":7}\n', b"null\n")
                try:
                    one.sendall(data[number % 4])
                except OSError:
                    pass  # closed already: fine
        # As many as may be under way may not have ended when the last of them is gone.
        wait_until("the last stranger is forgotten", lambda: alpha.ctl_raw("status")[0] == 0)
        expect(alpha.status()["state"] == "up", "it is not up any more")
        cluster.expect_identical()


class SmallFileSystem:
    """An ext4 of few MiB, on which sparse disks run full."""

    def __init__(self, size_mib):
        if os.geteuid() != 0:
            raise Skip("a small file system needs root to mount it")
        self.dir = pathlib.Path(run("mktemp", "-d", "/var/tmp/repl-small-XXXXXX").stdout.strip())
        self.size_mib = size_mib
        self.path = self.dir / "mnt"

    def __enter__(self):
        image = self.dir / "image"
        with open(image, "wb") as file:
            file.truncate(self.size_mib * MIB)
        run("mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image)
        self.path.mkdir()
        run("mount", "-o", "loop", image, self.path)
        return self

    def __exit__(self, *_):
        run("umount", self.path, check=False)
        shutil.rmtree(self.dir, ignore_errors=True)

    def disk(self, size_mib):
        """A sparse disk that is larger than what is left."""
        path = self.path / "disk.img"
        with open(path, "wb") as file:
            file.truncate(size_mib * MIB)
        return path


def fill_until_full(node, size):
    """Writes everywhere; the number of errors and what was acknowledged."""
    written = []
    with node.client() as client:
        for at in range(0, size - MIB, MIB):
            client.write(at, bytes([at // MIB % 250 + 1]) * MIB)
            written.append(at)
        client.flush()
    return written


def d3_a_full_disk_of_the_secondary_takes_it_out_and_no_client_sees_it():
    with SmallFileSystem(24) as small:
        with Cluster(disks={("demo", "beta"): small.disk(64)}) as cluster:
            alpha, beta = cluster.start().alpha, cluster.beta
            size = alpha.replica()["size_bytes"]
            written = fill_until_full(alpha, size)
            wait_until("it left the set", lambda: not alpha.peer()["is_member"])
            text = json.dumps(beta.status())
            expect("space" in text.lower(), f"the secondary does not say why: {text[:2000]}")
            with alpha.client() as client:
                for at in written:
                    expect(client.read(at, BLOCK) == bytes([at // MIB % 250 + 1]) * BLOCK, "lost")
            expect(alpha.status()["counters"]["errors"] == 0, "clients saw errors")


def d3_a_full_disk_of_the_primary_loses_nothing_that_was_acknowledged():
    """R16: the request that does not fit fails with ENOSPC; the secondary, where it fitted, is
    made equal again."""
    with SmallFileSystem(24) as small:
        with Cluster(disks={("demo", "alpha"): small.disk(64)}) as cluster:
            alpha = cluster.start().alpha
            written = []
            try:
                with alpha.client(timeout_s=20) as client:
                    for at in range(0, 60 * MIB, MIB):
                        client.write(at, bytes([at // MIB + 1]) * MIB)
                        written.append(at)
            except Failed as error:
                expect(error.code == errno.ENOSPC, f"the client got {error}")
            expect(0 < len(written) < 60, f"{len(written)} MiB fitted: the disk was never full")
            cluster.wait_in_sync()
            with alpha.client() as client:
                for at in written:
                    expect(client.read(at, BLOCK) == bytes([at // MIB + 1]) * BLOCK, "lost")
            cluster.expect_identical()


SCENARIOS = [
    wrong_configurations_are_refused_with_the_place_and_a_hint,
    the_example_configurations_are_good,
    a_key_that_is_missing_open_to_others_or_too_short_is_refused,
    d6_wrong_disks_are_told_apart_and_left_alone,
    a_disk_that_holds_something_is_not_made_a_replica_unasked,
    another_key_is_refused_on_both_sides,
    another_cluster_with_the_same_key_is_refused,
    strangers_and_garbage_on_the_peer_port_disturb_nobody,
    random_frames_of_a_proved_member_never_panic_and_never_change_data,
    garbage_on_the_control_socket_disturbs_nobody,
    d3_a_full_disk_of_the_secondary_takes_it_out_and_no_client_sees_it,
    d3_a_full_disk_of_the_primary_loses_nothing_that_was_acknowledged,
]
