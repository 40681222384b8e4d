"""Scenarios: real PostgreSQL on ext4 on the device, behind a floating address, and a client that
reconnects, while its primary dies. Every committed row must be there.
"""

import contextlib
import os
import pathlib
import shutil
import signal

from cluster import ROOT, Skip, expect, run, wait_until
from trio import Trio

ADDRESS = "10.99.0.100"
FILE_SYSTEM_MIB = 200
DISK_MIB = 224
SYSTEM_PYTHON = "/usr/bin/python3"
HERE = pathlib.Path(__file__).resolve().parent


def postgres_binaries():
    """Where pg_ctl is; Debian keeps it out of the path."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found or os.geteuid() != 0:
        raise Skip("needs root and Debian's postgresql")
    if run(SYSTEM_PYTHON, "-c", "import psycopg2", check=False).returncode != 0:
        raise Skip("needs python3-psycopg2")
    return found[-1].parent


def as_postgres(*command):
    """Runs something as the user of the database."""
    return run("runuser", "-u", "postgres", "--", *command)


class Database(Trio):
    """Three nodes whose resource carries a file system, an address and PostgreSQL."""

    def __init__(self):
        self.binaries = postgres_binaries()
        super().__init__(attach="fuse", size_mib=DISK_MIB)
        self.mount = self.dir / "srv"
        self.mount.mkdir()
        self.dir.chmod(0o755)
        example = (ROOT / "tools/deploy/examples/postgresql-command.toml").read_text()
        services = example[example.index("services = ["):]
        for old, new in {"/srv/postgresql": str(self.mount), "192.0.2.100/24": f"{ADDRESS}/24",
                         "eth0": "link0", "/usr/lib/postgresql/15/bin": str(self.binaries)}.items():
            expect(old in services, f"the example has no {old} any more")
            services = services.replace(old, new)
        self.options = services
        self.write_config()
        self._prepare()

    def _prepare(self):
        """An empty database on both disks: the data area begins at the first byte of the disk."""
        alpha, beta = self.alpha.disk(), self.beta.disk()
        run("mkfs.ext4", "-q", "-F", alpha, f"{FILE_SYSTEM_MIB}M")
        place = self.dir / "prepare"
        place.mkdir()
        run("mount", "-o", "loop", alpha, place)
        try:
            data = place / "data"
            data.mkdir(mode=0o700)
            shutil.chown(data, "postgres", "postgres")
            as_postgres(self.binaries / "initdb", "-D", data, "-A", "trust", "--no-instructions")
            with open(data / "postgresql.conf", "a", encoding="utf-8") as conf:
                conf.write("listen_addresses = '*'\nunix_socket_directories = ''\n"
                           "max_wal_size = '64MB'\nshared_buffers = '16MB'\n")
            with open(data / "pg_hba.conf", "a", encoding="utf-8") as hba:
                hba.write("host all all 10.99.0.0/24 trust\n")
        finally:
            run("umount", place)
        # Sparse, and the same bytes: both replicas count as equal from the start.
        run("cp", "--sparse=always", alpha, beta)

    def ask(self, sql):
        """What the database answers through the floating address, in lines."""
        program = ("import psycopg2, sys\n"
                   f"link = psycopg2.connect(host='{ADDRESS}', dbname='postgres', user='postgres', "
                   "connect_timeout=2)\n"
                   "link.autocommit = True\n"
                   "cursor = link.cursor()\n"
                   "cursor.execute(sys.argv[1])\n"
                   "rows = cursor.fetchall() if cursor.description else []\n"
                   "print('\\n'.join(str(row[0]) for row in rows))\n")
        done = run("ip", "netns", "exec", self.client_namespace, SYSTEM_PYTHON, "-c", program, sql,
                   check=False)
        return done.stdout.split() if done.returncode == 0 else None

    def start(self, watched=False):
        super().start(watched=watched)
        wait_until("the database answers at the floating address",
                   lambda: self.ask("SELECT 1") == ["1"], 60)
        self.ask("CREATE TABLE rows (number bigint PRIMARY KEY)")
        return self


class Rows:
    """The client, and what it was promised."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.path = cluster.dir / "rows"
        self.path.touch()
        self.program = cluster.spawn("ip", "netns", "exec", cluster.client_namespace, SYSTEM_PYTHON,
                                     HERE / "rows_writer.py", ADDRESS, self.path,
                                     log=cluster.dir / "rows.log")
        self.wait_for_more()

    def commits(self):
        """(number, began, ended) of every promised commit."""
        text = self.path.read_text()
        lines = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return [(int(line[1]), float(line[2]), float(line[3])) for line in lines if line[0] == "ok"]

    def wait_for_more(self, count=20, deadline_s=60):
        """Waits until that many more rows are committed."""
        before = len(self.commits())
        wait_until(f"{count} more rows are committed",
                   lambda: len(self.commits()) >= before + count, deadline_s)

    def longest_pause(self):
        """The longest time between two commits, in seconds."""
        ends = [ended for _, _, ended in self.commits()]
        return max(b - a for a, b in zip(ends, ends[1:]))

    def finish(self):
        """Ends the client; every row that was promised must be there."""
        self.program.kill()
        self.program.wait()
        promised = {number for number, *_ in self.commits()}
        kept = {int(number) for number in self.cluster.ask("SELECT number FROM rows")}
        lost = sorted(promised - kept)
        expect(not lost, f"{len(lost)} committed rows are lost: {lost[:10]}")
        print(f"    {len(promised)} rows were committed, 0 lost; the client waited at most "
              f"{self.longest_pause():.2f} s")
        return len(promised), self.longest_pause()


def postgresql_goes_on_after_the_machine_of_its_primary_is_gone():
    """Its daemon, its database and its network end at one instant."""
    with Database() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        rows = Rows(cluster)
        cluster.isolate(alpha)
        # The nodes share this machine's process numbers: a database that lived on would keep the
        # other one from starting by its lock file.
        for number in run("ip", "netns", "pids", alpha.namespace).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        alpha.kill()
        rows.wait_for_more()
        expect(cluster.office(beta)["primary"] == "beta", "beta did not take over")
        rows.finish()


def postgresql_follows_a_switchover_and_back():
    with Database() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        rows = Rows(cluster)
        for node, target in ((alpha, "beta"), (beta, "alpha")):
            node.ctl("switchover", "demo", "--to", target)
            rows.wait_for_more()
            expect(cluster.office(node)["primary"] == target, f"{target} is not primary")
        rows.finish()


SCENARIOS = [postgresql_goes_on_after_the_machine_of_its_primary_is_gone]
LONG = [postgresql_follows_a_switchover_and_back]
