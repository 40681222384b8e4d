"""Three real members of etcd, from Debian's package, and two data nodes whose register they keep."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from certificates import Certificates
from cluster import Skip, die_with_parent, expect, free_port, run, wait_until
from trio import Trio

ETCD_ADDRESS = "10.99.0.20"
MEMBERS = 3


class Member:
    """One process of etcd."""

    def __init__(self, site, number):
        self.site = site
        self.name = f"m{number}"
        self.client_port, self.peer_port = free_port(), free_port()
        self.dir = site.dir / self.name
        self.process = None

    @property
    def endpoint(self):
        """Its client address."""
        return f"{self.site.host}:{self.client_port}"

    @property
    def url(self):
        """The same with how it is spoken to."""
        return f"{'https' if self.site.certificates else 'http'}://{self.endpoint}"

    def start(self):
        """Starts it; a member that was there before finds its data again."""
        client, peer = self.url, f"http://{self.site.host}:{self.peer_port}"
        members = ",".join(f"{it.name}=http://{self.site.host}:{it.peer_port}"
                           for it in self.site.members)
        command = ["etcd", "--name", self.name, "--data-dir", self.dir,
                   "--listen-client-urls", client, "--advertise-client-urls", client,
                   "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                   "--initial-cluster", members, "--log-level", "error"]
        if self.site.certificates:
            command += self.site.certificates.server_options()
        with open(self.site.dir / f"{self.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in (*self.site.inside, *command)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent)

    def signal(self, number):
        """Sends a signal to it."""
        self.process.send_signal(number)

    def kill(self):
        """SIGKILL, also of one that is stopped."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Site:
    """The members, on one address; their data lie in memory. `secure`: by TLS, and only with a
    certificate of the client."""

    def __init__(self, host="127.0.0.1", namespace=None, count=MEMBERS, secure=False):
        if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
            raise Skip("no etcd here: apt-get install etcd-server etcd-client")
        parent = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="repl-etcd-", dir=parent))
        self.host = host
        # Not by `ip netns exec`, which copies all mounts and so keeps those of other tests busy.
        self.inside = ("nsenter", f"--net=/run/netns/{namespace}") if namespace else ()
        self.login = ()
        self.certificates = Certificates(self.dir, host) if secure else None
        self.members = [Member(self, number) for number in range(1, count + 1)]

    def start(self):
        """All of them, and waits for a leader."""
        for member in self.members:
            member.start()
        wait_until("etcd has a leader", self.leader, 20)
        return self

    def ctl(self, *arguments, member=None, check=True, **more):
        """Runs etcdctl against one member, or all that run."""
        asked = [member] if member else [it for it in self.members if it.process]
        endpoints = ",".join(it.url for it in asked)
        proofs = self.certificates.ctl_options() if self.certificates else ()
        return run(*self.inside, "etcdctl", "--endpoints", endpoints, "--command-timeout", "3s",
                   "--dial-timeout", "1s", *proofs, *self.login, *arguments, check=check,
                   **more, env={**os.environ, "ETCDCTL_API": "3"}).stdout

    def leader(self):
        """The member that leads now; nothing while there is none."""
        for member in self.members:
            told = self.ctl("endpoint", "status", "-w", "json", member=member, check=False)
            try:
                status = json.loads(told)[0]["Status"]
            except (json.JSONDecodeError, IndexError, KeyError):
                continue
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                return member
        return None

    def get(self, key):
        """The value of one key as JSON."""
        return json.loads(self.ctl("get", "--print-value-only", key))

    def close(self):
        """Ends all, and removes their data."""
        for member in self.members:
            member.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


class EtcdPair(Trio):
    """alpha and beta, each in a namespace on a bridge, and the members of etcd in another one; no
    witness. Needs root."""

    def __init__(self, lease_ms=None, etcd_options="", secure=False, **more):
        self.site, self.is_secure = None, secure
        self.lease_ms, self.etcd_options = lease_ms, etcd_options
        try:
            super().__init__(witness=False, **more)
        except BaseException:
            if self.site:
                self.site.close()
            raise

    def _make_namespaces(self):
        super()._make_namespaces()
        place, bridge = self._namespace("etcd"), self._namespace("bridge")
        run("ip", "netns", "add", place)
        run("ip", "-n", place, "link", "set", "lo", "up")
        run("ip", "-n", place, "link", "add", "link0", "type", "veth", "peer", "name", "etcd",
            "netns", bridge)
        run("ip", "-n", place, "addr", "add", f"{ETCD_ADDRESS}/24", "dev", "link0")
        run("ip", "-n", place, "link", "set", "link0", "up")
        run("ip", "-n", bridge, "link", "set", "etcd", "master", "bridge", "up")
        self.site = Site(ETCD_ADDRESS, place, secure=self.is_secure).start()

    def _config(self, mine):
        first, rest = super()._config(mine).split("\n", 1)
        return "\n".join([first, etcd_lines(self.site, self.lease_ms, self.etcd_options), rest])

    def cut_from_etcd(self, node):
        """Nothing passes between a node and etcd; the nodes still reach each other."""
        self.cuts.add((node.name, "etcd"))
        chain = f"ip saddr {ETCD_ADDRESS} drop; ip daddr {ETCD_ADDRESS} drop;"
        rules = (f"table inet no_etcd {{ chain i {{ type filter hook input priority 0; {chain} }}; "
                 f"chain o {{ type filter hook output priority 0; {chain} }}; }}")
        run("ip", "netns", "exec", node.namespace, "nft", rules)

    def etcd_report(self, node):
        """etcd as a node tells of it."""
        return node.ctl("status")["cluster_state"]["etcd"]

    def evidence(self):
        text = super().evidence()
        for member in self.site.members if self.site else []:
            log = (self.site.dir / f"{member.name}.log").read_text(errors="replace")
            text += f"  -- etcd {member.name}: log\n{log[-400:]}\n"
        return text

    def close(self, keep=False):
        super().close(keep)
        if self.site:
            self.site.close()
        run("ip", "netns", "del", self._namespace("etcd"), check=False)


def etcd_lines(site, lease_ms=None, options=""):
    """The part of a configuration that makes etcd the register."""
    endpoints = ", ".join(f'"{member.url}"' for member in site.members)
    lines = ['register = "etcd"', "[etcd]", f"endpoints = [{endpoints}]"]
    if site.certificates:
        lines += site.certificates.client_lines()
    if lease_ms:
        lines.append(f"lease_ms = {lease_ms}")
    return "\n".join([*lines, options])


def pause_leader(site):
    """Stops etcd's leader as a machine that hangs does; gives it."""
    leader = wait_until("etcd has a leader", site.leader, 20)
    leader.signal(signal.SIGSTOP)
    return leader


def expect_endpoints(report, **states):
    """The number of endpoints in each state is as given."""
    found = {}
    for endpoint in report["endpoints"]:
        found[endpoint["state"]] = found.get(endpoint["state"], 0) + 1
    expect(all(found.get(state, 0) == count for state, count in states.items()),
           f"endpoints are {found}, expected {states}")

