"""Scenarios: real PostgreSQL on ext4 on the device, behind a floating address, and a client that
reconnects, while its primary dies. Every committed row must be there.
"""

import os
import pathlib
import shutil

from cluster import Skip, expect, run, wait_until
from example import ADDRESS, Example, Items

SYSTEM_PYTHON = "/usr/bin/python3"


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


class Database(Example):
    """Three machines whose resource carries a file system, an address and PostgreSQL."""

    file, mount_point, port = "postgresql-command.toml", "/srv/postgresql", 5432

    def __init__(self):
        self.binaries = postgres_binaries()
        super().__init__()

    def replaced(self):
        return {**super().replaced(), "/usr/lib/postgresql/15/bin": self.binaries}

    def fill(self, place):
        data = place / "data"
        data.mkdir(mode=0o700)
        shutil.chown(data, "postgres", "postgres")
        as_postgres(self.binaries / "initdb", "-D", data, "-A", "trust", "--no-instructions")
        with open(data / "postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write("listen_addresses = '*'\nunix_socket_directories = ''\n"
                       "max_wal_size = '64MB'\nshared_buffers = '16MB'\n")
        with open(data / "pg_hba.conf", "a", encoding="utf-8") as hba:
            hba.write("host all all 10.99.0.0/24 trust\n")

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
        done = self.outside(SYSTEM_PYTHON, "-c", program, sql, check=False)
        return done.stdout.split() if done.returncode == 0 else None

    def is_served(self):
        return self.ask("SELECT 1") == ["1"]

    def start(self, watched=False):
        super().start(watched=watched)
        self.ask("CREATE TABLE rows (number bigint PRIMARY KEY)")
        return self

    def kept(self, _):
        """The rows that are there."""
        return wait_until("the database tells its rows",
                          lambda: self.ask("SELECT number FROM rows"), self.patience_s)

    def rows(self):
        """The client, which writes from now on."""
        return Items(self, "rows_writer.py", SYSTEM_PYTHON)


def postgresql_goes_on_after_the_machine_of_its_primary_is_gone():
    """Its daemon, its database and its network end at one instant."""
    with Database() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        rows = cluster.rows()
        cluster.isolate(alpha)
        alpha.cut_power()
        rows.wait_for_more()
        expect(cluster.office(beta)["primary"] == "beta", "beta did not take over")
        rows.finish(cluster.kept)
        cluster.expect_well()


def postgresql_goes_on_after_its_primary_is_cut_off_alive():
    """The old database runs, reachable for nobody, until its own node stops it."""
    with Database() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        rows = cluster.rows()
        cluster.isolate(alpha)
        rows.wait_for_more()
        expect(cluster.office(beta)["primary"] == "beta", "beta did not take over")
        cluster.heal()
        cluster.wait_in_sync()
        rows.wait_for_more()
        expect(cluster.office(beta)["primary"] == "beta", "beta did not stay primary")
        rows.finish(cluster.kept)
        cluster.expect_well()


def postgresql_follows_a_switchover_and_back():
    with Database() as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        rows = cluster.rows()
        for node, target in ((alpha, "beta"), (beta, "alpha")):
            node.ctl("switchover", "demo", "--to", target)
            rows.wait_for_more()
            expect(cluster.office(node)["primary"] == target, f"{target} is not primary")
        rows.finish(cluster.kept)
        cluster.expect_well()


SCENARIOS = [postgresql_goes_on_after_the_machine_of_its_primary_is_gone]
LONG = [postgresql_goes_on_after_its_primary_is_cut_off_alive,
        postgresql_follows_a_switchover_and_back]
