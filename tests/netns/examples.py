#!/usr/bin/env python3
"""The configurations of tools/deploy/examples, run whole: each service starts through its floating
address, is written to, loses the machine of its primary, goes on with everything that was promised,
and is switched back. `tools/test examples` calls this.

    examples.py [WORD...]           those with one of these words in the name
"""

import http.server
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import threading
import tomllib

import block_writer
import trio_postgres
from cluster import Skip, binaries, expect, run, wait_until
from example import ADDRESS, EXAMPLES, Example, goes_on_elsewhere_and_back, strange_warnings
from guests import Guest, GuestOfLibvirt
from run import play_all, sentence
from trio import stay


def every_example_is_accepted_as_shipped():
    """`replctl check`: nothing is wrong with the files; only keys and disks are not there."""
    for path in sorted(EXAMPLES.glob("*.toml")):
        done = run(binaries() / "replctl", "--config", path, "--node", "alpha", "check", check=False)
        expect(done.returncode in (0, 4), f"{path.name}: {done.stdout}{done.stderr}")
        strange = strange_warnings(done.stdout)
        expect(not strange, f"{path.name}: {strange}")
        for name in re.findall(r"(\S+) of this directory", path.read_text()):
            expect((EXAMPLES / name).exists(), f"{path.name} names {name}, which is not there")


def command_of(name, key, **replaced):
    """The start or stop command of an example, with some words replaced."""
    config = tomllib.loads((EXAMPLES / name).read_text())
    services = next(iter(config["resource"].values()))["services"]
    text = next(it for it in services if "command" in it)[key]
    for old, new in replaced.items():
        text = text.replace(old, str(new))
    return text


def a_mariadb_that_dies_at_its_start_has_failed_at_once():
    """There is nothing to wait for until the time-out."""
    if not shutil.which("mariadbd"):
        raise Skip("needs mariadb-server")
    with tempfile.TemporaryDirectory() as place:
        start = command_of("mariadb-command.toml", "start", **{"/srv/mariadb": place})
        # It has no data directory.
        done = run("timeout", "30", "sh", "-c", start, check=False)
        expect(done.returncode == 1, f"the start ended with {done.returncode}:\n{done.stderr}")


def a_postgresql_that_was_killed_is_stopped():
    """A stop has nothing to do then, and only then."""
    pg_ctl = trio_postgres.postgres_binaries() / "pg_ctl"
    with tempfile.TemporaryDirectory() as place:
        shutil.chown(place, "postgres", "postgres")
        replaced = {"/srv/postgresql": place, "/usr/lib/postgresql/15/bin/pg_ctl": pg_ctl}
        stop = command_of("postgresql-command.toml", "stop", **replaced)
        data = pathlib.Path(place, "data")
        trio_postgres.as_postgres(pg_ctl, "-D", data, "-o", "-A trust -N --no-instructions", "initdb")
        done = run("sh", "-c", stop, check=False)
        expect(done.returncode == 0, f"never started: {done.returncode} {done.stderr}")
        trio_postgres.as_postgres(pg_ctl, "-D", data, "-w", "-l", f"{place}/log",
                                  "-o", f"-F -h '' -k {place}", "start")
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        done = run("sh", "-c", stop, check=False)
        expect(done.returncode == 0, f"killed: {done.returncode} {done.stdout}{done.stderr}")
        data.rename(f"{place}/elsewhere")
        done = run("sh", "-c", stop, check=False)
        expect(done.returncode != 0, "a stop that sees no data directory says that it is stopped")


class Web(Example):
    """apache.toml with its apache-httpd.conf."""

    file, mount_point, port = "apache.toml", "/srv/www", 80
    server = ADDRESS

    def __init__(self):
        if not shutil.which("apache2"):
            raise Skip("needs apache2-bin")
        super().__init__()

    def fill(self, place):
        conf = (EXAMPLES / "apache-httpd.conf").read_text()
        for old, new in {self.mount_point: str(self.mount), "192.0.2.0/24": "10.99.0.0/24"}.items():
            expect(old in conf, f"apache-httpd.conf has no {old} any more")
            conf = conf.replace(old, new)
        (place / "httpd.conf").write_text(conf)
        for name in ("htdocs", "lock"):
            (place / name).mkdir()
            shutil.chown(place / name, "www-data", "www-data")
        (place / "htdocs" / "ready").write_text("yes\n")

    def get(self, name):
        """What the server says of a file: 200 and its content, or another status; nothing when it does
        not answer in time, or says that it cannot now."""
        done = self.outside("curl", "-s", "--max-time", "2", "-w", "\\n%{http_code}",
                            f"http://{self.server}/{name}", check=False)
        content, _, status = done.stdout.rpartition("\n")
        return (int(status), content) if done.returncode == 0 and status < "500" else None

    def is_served(self):
        return self.get("ready") == (200, "yes\n")

    def kept(self, promised):
        """Of these numbers those whose files are there as they were written. A server that is slow
        has lost nothing: it is asked again."""
        def has(number):
            answer = wait_until(f"the server answers for {number}", lambda: self.get(number),
                                self.patience_s)
            return answer == (200, f"item {number}\n")
        return [number for number in promised if has(number)]


class Slow(http.server.BaseHTTPRequestHandler):
    """A server that answers the first question for each number late or not at all."""

    content = {"0": b"item 0\n", "1": b"item 1\n", "2": b"something else\n", "3": b"item 3\n"}
    asked = set()

    def do_GET(self):
        """The number is the path."""
        number = self.path[1:]
        is_first = number not in self.asked
        self.asked.add(number)
        if number == "1" and is_first:
            stay(2.5)  # longer than whoever asks waits
        elif number == "3" and is_first:
            self.send_error(503)
        elif number in self.content:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.content[number])
        else:
            self.send_error(404)

    def log_message(self, *_):
        """Says nothing."""


class WebElsewhere(Web):
    """The questions of the example, to a server on this machine."""

    def __init__(self, server):  # pylint: disable=super-init-not-called
        self.server = server

    def outside(self, *command, **more):
        return run(*command, **more)


def what_a_slow_server_did_not_answer_at_once_is_not_lost():
    """Only what it says not to have, or has otherwise."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        web = WebElsewhere(f"127.0.0.1:{server.server_address[1]}")
        kept = web.kept(range(5))
        server.shutdown()
    expect(kept == [0, 1, 3], f"kept: {kept}")


class MariaDb(Example):
    """mariadb-command.toml."""

    file, mount_point, port = "mariadb-command.toml", "/srv/mariadb", 3306

    def __init__(self):
        if not shutil.which("mariadbd") or not shutil.which("mariadb-install-db"):
            raise Skip("needs mariadb-server")
        super().__init__()

    def fill(self, place):
        data = place / "data"
        data.mkdir()
        shutil.chown(data, "mysql", "mysql")
        run("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}",
            "--auth-root-authentication-method=normal", "--skip-test-db", timeout=300)
        run("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", "--bootstrap",
            timeout=300, input="CREATE DATABASE items;\nUSE items;\n"
            "CREATE TABLE items (number BIGINT PRIMARY KEY) ENGINE=InnoDB;\nFLUSH PRIVILEGES;\n"
            "CREATE USER client@'10.99.0.%';\nGRANT ALL ON items.* TO client@'10.99.0.%';\n")

    def ask(self, sql):
        """What the database answers through the floating address, in lines."""
        done = self.outside("mariadb", "--no-defaults", "-h", ADDRESS, "-u", "client", "-N",
                            "--connect-timeout=2", "items", "-e", sql, check=False)
        return done.stdout.split() if done.returncode == 0 else None

    def is_served(self):
        return self.ask("SELECT 1") == ["1"]

    def kept(self, _):
        """The rows that are there."""
        return wait_until("the database tells its rows",
                          lambda: self.ask("SELECT number FROM items"), self.patience_s)


class Iscsi(Example):
    """iscsi.toml with its iscsi-tgt: no file system of ours, the initiator has the disk."""

    file, port = "iscsi.toml", 3260

    def __init__(self):
        if not shutil.which("tgtd") or "iscsi" not in run("qemu-img", "--help").stdout:
            raise Skip("needs tgt and qemu-block-extra")
        super().__init__()

    def replaced(self):
        script = (EXAMPLES / "iscsi-tgt").read_text()
        expect("192.0.2.0/24" in script, "iscsi-tgt has no 192.0.2.0/24 any more")
        # On one machine all have one /run: the place of tgtd's socket is the node's own.
        own = f"export TGT_IPC_SOCKET={self.dir}/tgt-$REPLICATOR_NODE\n"
        script = script.replace("192.0.2.0/24", "10.99.0.0/24").replace("set -eu\n", "set -eu\n" + own)
        path = self.dir / "iscsi-tgt"
        path.write_text(script)
        path.chmod(0o755)
        return {"/etc/replicator/iscsi-tgt": path}

    @property
    def url(self):
        return block_writer.URL.format(ADDRESS)

    def is_served(self):
        return self.outside("timeout", "5", "qemu-io", "-r", "-f", "raw", "-c", "read 0 512", self.url,
                            check=False).returncode == 0

    def kept(self, promised):
        """Of these numbers those whose blocks are there as they were written."""
        size = block_writer.BLOCK
        copy = self.dir / "copy"
        self.outside("qemu-img", "convert", "-O", "raw", self.url, copy, timeout=60)
        with open(copy, "rb") as disk:
            blocks = {number: os.pread(disk.fileno(), size, number * size) for number in promised}
        return [number for number, block in blocks.items()
                if block == bytes([block_writer.pattern(number)]) * size]


def a_virtual_machine_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(Guest, "http_writer.py", more=(Guest.answers_within_s,))


def a_domain_of_libvirt_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(GuestOfLibvirt, "http_writer.py", more=(Guest.answers_within_s,))


def iscsi_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(Iscsi, "block_writer.py")


class DatabaseByAgent(trio_postgres.Database):
    """postgresql-ocf.toml."""

    file = "postgresql-ocf.toml"

    def __init__(self):
        if not pathlib.Path("/usr/lib/ocf/resource.d/heartbeat/pgsql").exists():
            raise Skip("needs resource-agents")
        super().__init__()


def postgresql_run_by_its_agent_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(DatabaseByAgent, "rows_writer.py",
                               python=trio_postgres.SYSTEM_PYTHON)


def mariadb_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(MariaDb, "sql_writer.py")


def apache_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(Web, "http_writer.py")


def postgresql_goes_on_elsewhere_and_back():
    goes_on_elsewhere_and_back(trio_postgres.Database, "rows_writer.py",
                               python=trio_postgres.SYSTEM_PYTHON)


SCENARIOS = [
    what_a_slow_server_did_not_answer_at_once_is_not_lost,
    every_example_is_accepted_as_shipped,
    a_mariadb_that_dies_at_its_start_has_failed_at_once,
    a_postgresql_that_was_killed_is_stopped,
    postgresql_goes_on_elsewhere_and_back,
    postgresql_run_by_its_agent_goes_on_elsewhere_and_back,
    apache_goes_on_elsewhere_and_back,
    mariadb_goes_on_elsewhere_and_back,
    iscsi_goes_on_elsewhere_and_back,
    a_virtual_machine_goes_on_elsewhere_and_back,
    a_domain_of_libvirt_goes_on_elsewhere_and_back,
]


def main():
    words = sys.argv[1:]
    if words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    chosen = [it for it in SCENARIOS if not words or any(word in sentence(it) for word in words)]
    binaries()
    ended = play_all(chosen, 1)
    counts = {word: len(ended[word]) for word in ("ok", "FAILED", "skipped")}
    print("\n{ok} passed, {FAILED} failed, {skipped} skipped".format(**counts))
    return 1 if ended["FAILED"] or not chosen else 77 if ended["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
