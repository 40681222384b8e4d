"""Scenarios: what load balancers, Prometheus and hooks are told, asked from a client's namespace while
the primary is killed and comes back; a real HAProxy that follows the primary.
"""

import json
import os
import re
import shutil
import signal
import sys
import time

from cluster import ROOT, Skip, expect, run, wait_until
from nbd_client import Client, Failed, Lost, Refused as NbdRefused
from stopped_thread import StoppedThread
from trio import CLIENT_ADDRESS, Trio
from trio_services import Served

PORT = 7790
# How long a resource waits for a loop that does not answer.
PATIENCE_S = 2
GET = ("import http.client, sys\n"
       "host, method, path = sys.argv[1:4]\n"
       "link = http.client.HTTPConnection(host, timeout=5)\n"
       "link.request(method, path)\n"
       "answer = link.getresponse()\n"
       "print(answer.status)\n"
       "print(answer.read().decode())\n")


def ask(cluster, node, path, method="GET"):
    """HTTP status and body, asked from the client's namespace; 0 when nobody answers."""
    done = run("ip", "netns", "exec", cluster.client_namespace, sys.executable, "-c", GET,
               f"{node.host}:{PORT}", method, path, check=False)
    if done.returncode != 0:
        return 0, done.stderr
    status, _, body = done.stdout.partition("\n")
    return int(status), body


def seconds_of(cluster, node, path):
    """How long an answer took, without the start of the program that asks."""
    timed = GET.replace("link.request", "import time; began = time.monotonic(); link.request", 1)
    timed += "print(time.monotonic() - began)\n"
    done = run("ip", "netns", "exec", cluster.client_namespace, sys.executable, "-c", timed,
               f"{node.host}:{PORT}", "GET", path)
    return float(done.stdout.splitlines()[-1])


def statuses(cluster, path):
    """The HTTP status of each node, in the order alpha, beta, gamma."""
    return [ask(cluster, node, path)[0] for node in cluster.nodes.values()]


def samples(page):
    """The samples of a page of metrics: name with labels -> value."""
    lines = [line for line in page.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def endpoints_follow_the_primary_and_say_why_not():
    with Trio() as cluster:
        alpha, beta, gamma = cluster.start(watched=False).nodes.values()
        expect(statuses(cluster, "/primary/demo") == [200, 503, 503], "/primary")
        expect(statuses(cluster, "/primary") == [200, 503, 503], "/primary, bare")
        expect(statuses(cluster, "/replica/demo") == [503, 200, 503], "/replica")
        expect(statuses(cluster, "/sync") == [503, 200, 503], "/sync")
        for path in ("/health", "/liveness", "/readiness", "/status", "/metrics", "/"):
            expect(statuses(cluster, path) == [200, 200, 200], path)
        answer = json.loads(ask(cluster, beta, "/primary")[1])
        expect(answer["reason"] == "this node is secondary; alpha is primary", str(answer))
        for method in ("HEAD", "OPTIONS"):
            status, body = ask(cluster, beta, "/primary", method)
            expect((status, body.strip()) == (503, ""), f"{method}: {status} {body}")
        expect(ask(cluster, alpha, "/primary", "POST")[0] == 405, "POST is taken")
        status, body = ask(cluster, alpha, "/primary/dmeo")
        expect(status == 404 and "demo" in body, f"a misspelt name: {status} {body}")
        alpha.kill()
        wait_until("beta says that it is primary",
                   lambda: ask(cluster, beta, "/primary")[0] == 200, 15)
        expect(statuses(cluster, "/primary") == [0, 200, 503], "after the takeover")
        lost = '{resource="demo",cause="lost"}'
        found = wait_until("the failover is counted", lambda: (
            lambda it: it if f"replicator_failovers_total{lost}" in it else None)(
                samples(ask(cluster, beta, "/metrics")[1])), 15)
        expect(found[f"replicator_failovers_total{lost}"] == 1, "one failover")
        paused_s = found[f"replicator_failover_duration_seconds_sum{lost}"]
        expect(0.5 < paused_s < 15, f"clients waited {paused_s} s")
        gamma.kill()
        # The only member goes on alone (R5d); its control plane says what is missing.
        wait_until("beta is not ready without a majority",
                   lambda: ask(cluster, beta, "/readiness")[0] == 503, 15)
        expect("majority" in ask(cluster, beta, "/readiness")[1], "why it is not ready")
        expect(ask(cluster, beta, "/liveness")[0] == 200, "it lives")


def a_resource_that_hangs_delays_no_answer_about_another():
    with Trio(resources=("one", "two")) as cluster:
        cluster.create()
        for node in cluster.nodes.values():
            node.spawn()
        for resource in cluster.resources:
            cluster.wait_in_sync(resource)
        beta = cluster.beta
        with StoppedThread(beta.process, "data two"):
            status, body = ask(cluster, beta, "/primary/two")
            expect(status == 503 and "does not answer" in body, f"two: {status} {body}")
            # Whoever waits for the other waits for all of its patience, each time.
            wait_until("one is answered without that wait",
                       lambda: seconds_of(cluster, beta, "/replica/one") < PATIENCE_S * 0.75, 60)
            status, body = ask(cluster, beta, "/replica/one")
        expect(status == 200, f"one: {status} {body}")


def well_formed(page, path):
    """What Prometheus itself says of a page, where it is installed."""
    if shutil.which("promtool"):
        checked = run("promtool", "check", "metrics", input=page.strip() + "\n", check=False)
        # drbd-reactor's own names break some conventions; they must only parse.
        well = checked.returncode == 0 or (
            "drbd" in path and "error while linting" not in checked.stderr)
        expect(well, f"promtool on {path}:\n{checked.stdout}{checked.stderr}")


def metrics_are_well_formed_and_true():
    with Served() as cluster:
        alpha, beta, _ = cluster.start().nodes.values()
        wait_until("alpha says that its services run", lambda: all(
            cluster.service("alpha", name)["state"] == "running" for name in ("one", "two")), 20)
        with alpha.client() as client:
            for block in range(40):
                client.write(block * 4096, b"x" * 4096)
            client.flush()
        page = ask(cluster, alpha, "/metrics")[1]
        found = samples(page)
        for name, value in {
            'replicator_role{resource="demo",role="primary"}': 1,
            'replicator_role{resource="demo",role="secondary"}': 0,
            'replicator_majority': 1,
            'replicator_in_sync_replicas{resource="demo"}': 2,
            'replicator_in_sync{resource="demo",peer="beta"}': 1,
            'replicator_node_reachable{peer="gamma"}': 1,
            'replicator_requests_total{resource="demo",operation="write"}': 40,
            'replicator_request_bytes_total{resource="demo",operation="write"}': 40 * 4096,
            'replicator_request_duration_seconds_count{resource="demo",operation="write"}': 40,
            'replicator_request_duration_seconds_bucket{resource="demo",operation="write",'
            'le="+Inf"}': 40,
            'replicator_verdict{resource="demo"}': 0,
            'replicator_service_state{resource="demo",service="two",state="running"}': 1,
            'replicator_service_wanted{resource="demo",service="two"}': 1,
            'replicator_services_need_reset{resource="demo"}': 0,
            'replicator_guard_running': 1,
            'replicator_guard_restarts_total': 0,
        }.items():
            expect(found.get(name) == value, f"{name} is {found.get(name)}, not {value}\n{page}")
        expect(0 < found['replicator_lease_remaining_seconds{resource="demo"}'] <= 1, "the lease")
        for path in ("/metrics", "/metrics?names=drbd"):
            well_formed(ask(cluster, alpha, path)[1], path)
        drbd = samples(ask(cluster, beta, "/metrics?names=drbd")[1])
        for name, value in {
            'drbd_resource_role{name="demo",drbd_resource_role="Secondary"}': 1,
            'drbd_device_state{name="demo",volume="0",minor="0",drbd_device_state="UpToDate"}': 1,
            'drbd_connection_state{name="demo",conn_name="alpha",peer_node_id="0",'
            'drbd_connection_state="Connected"}': 1,
            'drbd_device_quorum{name="demo",volume="0",minor="0"}': 1,
            'drbd_resource_promotionscore{name="demo"}': 10102,
            'drbd_connection_congested{name="demo",conn_name="alpha",peer_node_id="0"}': 0,
            'drbd_device_unintentionaldiskless{name="demo",volume="0",minor="0"}': 0,
        }.items():
            expect(drbd.get(name) == value, f"{name} is {drbd.get(name)}, not {value}")
        of_primary = samples(ask(cluster, alpha, "/metrics?names=drbd")[1])
        name = 'drbd_device_alwrites_total{name="demo",volume="0",minor="0"}'
        expect(of_primary.get(name, 0) > 0, f"{name} is {of_primary.get(name)} after the writes")


def names_and_labels(page):
    """The labels with which each metric of a page has samples; `le` of buckets too."""
    found = {}
    for series in samples(page):
        name, _, labels = series.partition("{")
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


def asked_for(text):
    """What the queries of a file ask for: each metric, with the labels of its selector."""
    for name, selector in re.findall(r'\b(replicator_\w+)(?:\{(.*?)\})?', text):
        yield name, set(re.findall(r"(\w+)\s*[=!]~?", selector))


def what_dashboard_and_alerts_ask_for_is_exported_with_its_labels():
    """By daemons with services, after a takeover and a verify; a metric of what this machine has not is known by name."""
    needs_watchdog = {"replicator_watchdog_in_time"}
    with Served(attach="fuse") as cluster:
        alpha = cluster.start().alpha
        alpha.kill()
        cluster.wait_for_services("beta")
        alpha.start()
        cluster.wait_in_sync()
        alpha.ctl("verify", "demo", "--wait")

        def exported():
            found = {}
            for node in cluster.nodes.values():
                for name, labels in names_and_labels(ask(cluster, node, "/metrics")[1]).items():
                    found.setdefault(name, {"job", "instance"}).update(labels)
            return found
        deploy = ROOT / "tools/deploy"
        for path in (deploy / "prometheus/alerts.yml", deploy / "grafana/replicator.json"):
            # In JSON the quotes of a selector are escaped.
            asked = list(asked_for(path.read_text().replace('\\"', '"')))
            expect(len(asked) > 10, f"{path.name} asks for nothing: {asked}")

            def missing():
                there = exported()
                return [(name, labels - there.get(name, set())) for name, labels in asked
                        if name not in needs_watchdog
                        and (name not in there or labels - there[name])]
            wait_until(f"all that {path.name} asks for is there, lacking: {missing()}",
                       lambda: not missing(), 15)
            for label in set(re.findall(r"\$labels\.(\w+)", path.read_text())):
                expect(any(label in labels for labels in exported().values()),
                       f"{path.name} names the label {label}, which no metric has")
        for node in cluster.nodes.values():
            well_formed(ask(cluster, node, "/metrics")[1], "/metrics")


def only_who_is_allowed_gets_an_answer():
    with Trio(top='http_allow = ["10.99.0.1", "10.99.0.2"]') as cluster:
        alpha, *_ = cluster.start(watched=False).nodes.values()
        status, body = ask(cluster, alpha, "/status")
        expect(status == 403 and "http_allow" in body, f"{CLIENT_ADDRESS} got {status}: {body}")
        inside = run("ip", "netns", "exec", cluster.beta.namespace, sys.executable, "-c", GET,
                     f"{alpha.host}:{PORT}", "GET", "/primary").stdout
        expect(inside.startswith("200"), f"beta is allowed and got {inside}")


def hooks_are_told_what_happened():
    with Served() as cluster:
        hook, told = cluster.dir / "hook", cluster.dir / "told"
        hook.write_text("#!/bin/sh\n"
                        'echo "$REPLICATOR_NODE $REPLICATOR_EVENT $REPLICATOR_RESOURCE '
                        f'$REPLICATOR_WHAT by=$REPLICATOR_BY" >> {told}\n')
        hook.chmod(0o755)
        told.touch()
        for node in cluster.nodes.values():
            with open(node.config, "a", encoding="utf-8") as config:
                config.write(f'\n[hooks]\ncommand = "{hook}"\n')
        alpha, beta, _ = cluster.start().nodes.values()

        def lines():
            return told.read_text().splitlines()

        def wait_for(start):
            wait_until(f"a hook is told: {start}",
                       lambda: any(line.startswith(start) for line in lines()))
        wait_for("alpha primary demo")
        wait_for("alpha services_running demo")
        os.kill(alpha.ctl("status")["guard"]["pid"], signal.SIGKILL)
        wait_for("alpha guard_lost")
        cluster.isolate(alpha)
        wait_for("alpha lease_lapsed demo")
        wait_for("alpha majority_lost")
        wait_for("beta primary demo")
        takeover = "register_changed demo takeover by=beta"
        wait_until("both others told of the takeover", lambda: all(
            f"{name} {takeover}" in lines() for name in ("beta", "gamma")))
        cluster.heal()
        wait_for("alpha majority_back")
        expect(not any(line.startswith("gamma primary") for line in lines()), "the witness serves")
        beta.stop()
        expect(not any("beta guard_lost" in line for line in lines()), "an orderly end is no loss")


def haproxy_follows_the_primary():
    """The example configuration, unchanged, in front of NBD instead of a database."""
    if not shutil.which("haproxy"):
        raise Skip("haproxy is not installed")
    with Trio() as cluster:
        alpha, beta, _ = cluster.start(watched=False).nodes.values()
        door = cluster.dir / "writes.sock"
        variables = {
            "REPLICATOR_WRITES": f"unix@{door}",
            "REPLICATOR_RESOURCE": "demo",
            "REPLICATOR_HTTP_PORT": PORT,
            "REPLICATOR_ALPHA": f"{alpha.host}:{alpha.nbd_port}",
            "REPLICATOR_BETA": f"{beta.host}:{beta.nbd_port}",
        }
        cluster.spawn("ip", "netns", "exec", cluster.client_namespace, "env",
                      *(f"{name}={value}" for name, value in variables.items()), "haproxy", "-db",
                      "-f", ROOT / "tools/deploy/haproxy/haproxy.cfg", log=cluster.dir / "haproxy.log")

        def writes(number):
            try:
                with Client(door, "demo", timeout_s=3) as client:
                    client.write(number * 4096, bytes([number]) * 4096)
                    client.flush()
                    return True
            except (Lost, Failed, NbdRefused):
                return False
        def waited(number):
            began = time.monotonic()
            wait_until("a write gets through HAProxy again", lambda: writes(number), 20)
            return f"{time.monotonic() - began:.2f} s"

        def checks_of_the_lost():
            """How long each check took after which HAProxy gave alpha up, in ms."""
            told = (cluster.dir / "haproxy.log").read_text().splitlines()
            return [int(line.rpartition("check duration: ")[2].split("ms")[0]) for line in told
                    if "primary/alpha is DOWN" in line]
        wait_until("a write gets through HAProxy", lambda: writes(1), 20)
        # It accepts connections and answers nothing: the slowest kind of death to notice.
        alpha.signal(signal.SIGSTOP)
        stood = waited(2)
        took = wait_until("HAProxy gave up who does not answer", checks_of_the_lost, 20)
        expect(took[-1] < 1000, f"until then both get clients: the last check took {took[-1]} ms")
        alpha.signal(signal.SIGCONT)
        cluster.wait_in_sync()
        beta.kill()
        print(f"    clients behind HAProxy waited {stood}, and {waited(3)} after a kill")
        with alpha.client() as client:
            for number in (1, 2, 3):
                expect(client.read(number * 4096, 4096) == bytes([number]) * 4096,
                       f"write {number} is not on the new primary")


SCENARIOS = [
    endpoints_follow_the_primary_and_say_why_not,
    a_resource_that_hangs_delays_no_answer_about_another,
    metrics_are_well_formed_and_true,
    what_dashboard_and_alerts_ask_for_is_exported_with_its_labels,
    only_who_is_allowed_gets_an_answer,
    hooks_are_told_what_happened,
    haproxy_follows_the_primary,
]
