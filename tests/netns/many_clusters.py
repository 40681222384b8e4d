"""Scenarios: one witness process for many clusters, from a directory of their configuration files."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from contextlib import ExitStack

from cluster import ROOT, Cluster, binaries, die_with_parent, expect, free_port, run, wait_until

MEMORY_MAX_KIB = 20 << 10


class Shared:
    """Clusters whose witness, gamma, is one process at one port."""

    def __init__(self, *names):
        parent = os.environ.get("REPLICATOR_TEST_DIR", "/var/tmp")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="repl-shared-", dir=parent))
        self.port = free_port()
        self.process = None
        self.at_end = ExitStack()
        self.clusters = {}
        for name in names:
            cluster = self.at_end.enter_context(Cluster(name=name, witness=True, size_mib=32))
            cluster.gamma.port = self.port
            cluster.write_config()
            cluster.create()
            self.clusters[name] = cluster

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
        self.at_end.__exit__(*error)
        shutil.rmtree(self.dir)

    def serve(self, *names):
        """The files of these clusters lie in the directory from the next start on."""
        for file in self.dir.iterdir():
            file.unlink()
        for name in names:
            shutil.copy(self.clusters[name].gamma.config, self.dir / f"{name}.toml")

    def spawn(self):
        """Starts the witness."""
        log = open(self.clusters_log(), "ab")
        self.process = subprocess.Popen(
            [binaries() / "replicatord", "--config", self.dir, "--node", "gamma"], cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent)
        log.close()

    def clusters_log(self):
        """Where it logs."""
        return self.clusters["shop"].dir / "witness.log"

    def log(self):
        """What it has logged."""
        return self.clusters_log().read_text()

    def kill(self):
        """SIGKILL."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def memory_kib(self):
        """What it has in memory."""
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1])

    def strange(self, name, field):
        """The refused messages that the status of the witness shows for one cluster."""
        code, out, _ = self.clusters[name].gamma.ctl_raw("status")
        if code not in (0, 4):
            return 0, ""
        return json.loads(out)["cluster_state"][field]


def one_witness_process_serves_many_clusters():
    with Shared("shop", "blog", "mail", "wiki") as shared:
        clusters = shared.clusters
        # The witness has another key of `mail`, and does not know `wiki`.
        right = clusters["mail"].gamma.key
        wrong = shared.dir.parent / f"{shared.dir.name}.key"
        shared.at_end.callback(wrong.unlink, missing_ok=True)
        shutil.copy(clusters["shop"].gamma.key, wrong)
        shared.serve("shop", "blog", "mail")
        file = shared.dir / "mail.toml"
        text = file.read_text()
        head, gamma = text.split("[node.gamma]", 1)
        file.write_text(f"{head}[node.gamma]{gamma.replace(str(right), str(wrong), 1)}")
        (shared.dir / "broken.toml").write_text("cluster = 7\n")
        # Two want their pages at one address: the first file has them.
        pages = free_port()
        for name in ("blog", "shop"):
            file = shared.dir / f"{name}.toml"
            head, gamma = file.read_text().split("[node.gamma]", 1)
            expect("http_port = 0" in gamma, gamma)
            gamma = gamma.replace("http_port = 0", f"http_port = {pages}", 1)
            file.write_text(f"{head}[node.gamma]{gamma}")
        shared.spawn()
        for cluster in clusters.values():
            for node in cluster.data_nodes:
                node.spawn()
        for name in ("shop", "blog"):
            clusters[name].wait_in_sync()
        for name in ("mail", "wiki"):
            offices = clusters[name].alpha
            wait_until(f"alpha of {name} answers", offices.answers_or_died)
            state = offices.ctl("status")["cluster_state"]
            expect(state["revision"] == 0, f"{name} was founded without its witness: {state}")

        def refused(name, field, *words):
            def given():
                count, last = shared.strange(name, field)
                return count > 0 and all(word in last for word in words) and last
            print(f"    {wait_until(f'{field} of {name} name {words}', given, 20)}")

        refused("mail", "refused_messages", "its code is wrong")
        refused("shop", "strange_messages", "cluster wiki, which is not served here",
                "served: blog, mail, shop")
        expect(shared.strange("blog", "refused_messages")[0] == 0, "messages of blog were refused")
        words = clusters["shop"].gamma.ctl_raw("status", as_json=False)[1]
        expect("is for cluster wiki" in words, words)
        warnings = clusters["shop"].gamma.ctl("status")["warnings"]
        expect(any("broken.toml" in it for it in warnings), f"{warnings}")
        words = (f"{shared.dir}/shop.toml: its pages (HTTP) would be at 127.0.0.1:{pages}, which "
                 f"{shared.dir}/blog.toml has")
        expect(any(words in it for it in warnings), f"{warnings}")
        checked = run(binaries() / "replctl", "--config", shared.dir / "shop.toml", "--node", "gamma",
                      "check", check=False)
        expect(checked.returncode == 4 and words in checked.stdout, f"{checked}")
        kib = shared.memory_kib()
        print(f"    the witness of three clusters has {kib / 1024:.1f} MiB")
        expect(kib <= MEMORY_MAX_KIB, f"it has {kib} KiB")

        # Each has its failover, whatever becomes of the others.
        for name in ("shop", "blog"):
            primary = clusters[name].primary()
            other = next(node for node in clusters[name].data_nodes if node is not primary)
            primary.kill()
            wait_until(f"{other.name} of {name} took over",
                       lambda: other.replica()["role"] == "primary")
            primary.spawn()
            clusters[name].wait_in_sync()

        # A restart with all files as they should be, under the writes of the others.
        shared.kill()
        shared.serve("shop", "blog", "mail", "wiki")
        shared.spawn()
        for cluster in clusters.values():
            cluster.wait_in_sync()
            cluster.expect_identical()
        expect(shared.strange("mail", "refused_messages")[0] == 0, "mail is still refused")
        shared.process.terminate()
        expect(shared.process.wait(20) == 0, f"it did not stop orderly:\n{shared.log()}")


SCENARIOS = [one_witness_process_serves_many_clusters]
