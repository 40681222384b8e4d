"""Scenarios: etcd keeps the register, and is spoken to by TLS with certificates on both sides."""

import time

from cluster import expect, wait_until
from etcd_register import Loopback, check
from etcd_site import EtcdPair, Site, expect_endpoints
from trio import stay

LEASE_S = 2.0
TAKEN_WITHIN_S = 20


def etcd_by_tls_a_killed_primary_is_replaced_and_returns():
    with EtcdPair(lease_ms=int(LEASE_S * 1000), secure=True) as cluster:
        alpha, beta = cluster.start().alpha, cluster.beta
        report = cluster.etcd_report(beta)
        expect_endpoints(report, leader=1, follower=2)
        expect(report["trouble"] is None, f"{report}")
        alpha.kill()
        killed = time.monotonic()
        cluster.wait_for_acks("beta", TAKEN_WITHIN_S)
        took = next(ack[2] for ack in cluster.watch.acks() if ack[0] == "beta") - killed
        print(f"    the first write on beta {took:.2f} s after SIGKILL")
        alpha.start()
        cluster.finish()


def etcd_by_tls_what_is_wrong_with_certificates_or_password_is_named_and_mended_while_it_runs():
    site = Site(count=1, secure=True)
    try:
        with SecureLoopback(site) as cluster:
            cluster.create()
            site.start()
            check_names_files(cluster, site.certificates)
            check_names_the_side_that_refuses(cluster, site.certificates)
            cluster.start_both()
            wrong_files_do_no_harm_and_new_ones_are_used(cluster, site.certificates)
            a_new_password_is_used(cluster, site.certificates)
    finally:
        site.close()


class SecureLoopback(Loopback):
    """Two nodes on loopback; `write_config(tls={KEY: PATH})` replaces files of theirs."""

    def _config(self, mine):
        lines = self.site.certificates.client_lines
        text = super()._config({**mine, "etcd": self.login()})
        return text.replace("\n".join(lines()), "\n".join(lines(**mine.get("tls", {}))))

    @property
    def password(self):
        """The file with the password."""
        return self.dir / "password"

    def login(self):
        """An etcd without users lets everybody in that has one."""
        if not self.password.exists():
            self.password.write_text("secret\n")
            self.password.chmod(0o600)
        return f'user = "root"\npassword_file = "{self.password}"'

    def expect_problem(self, *words, **tls):
        """`replctl check` says all these words about files."""
        self.write_config(tls=tls)
        problems = check(self.alpha)
        expect(any(all(str(word) in it for word in words) for it in problems),
               f"nothing of {words} in {problems}")


def check_names_files(cluster, certificates):
    """Files of this machine: with the line and the column that name them."""
    expect(check(cluster.alpha) == [], f"{check(cluster.alpha)}")
    text = cluster.alpha.config.read_text()
    for key, path in zip(("ca", "certificate", "key"), (certificates.ca, *certificates.client)):
        line = text[:text.index(f'{key} = "{path}"')].count("\n") + 1
        place = f"{cluster.alpha.config}:{line}:{len(key) + 4}: "
        absent = cluster.dir / "absent"
        cluster.expect_problem(place, f"{key} {absent}", "No such file", **{key: absent})
        other = cluster.password
        cluster.expect_problem(place, f"{key} {other}", "in it", **{key: other})
    foreign = certificates.sign("other")
    cluster.expect_problem(f"key {foreign[1]}", "does not belong to the certificate",
                           key=foreign[1])
    certificates.client[1].chmod(0o644)
    cluster.expect_problem("mode 0644", f"chmod 0600 {certificates.client[1]}")
    certificates.client[1].chmod(0o600)


def check_names_the_side_that_refuses(cluster, certificates):
    """What the two sides have against each other, with the endpoint."""
    endpoint = cluster.site.members[0].endpoint
    cluster.expect_problem(endpoint, "not signed by the CA in", certificates.foreign_ca,
                           "name in `ca`", ca=certificates.foreign_ca)
    for name, how in (("expired", {"days": -1}), ("foreigner", {"ca": certificates.foreign_ca})):
        certificate, key = certificates.sign(name, **how)
        cluster.expect_problem(endpoint, f"refuses the certificate {certificate}",
                               "openssl x509 -noout -dates", certificate=certificate, key=key)
    cluster.expect_problem(endpoint, "without a certificate", "write certificate and key",
                           certificate=None, key=None)
    cluster.write_config(tls={"ca": None, "certificate": None, "key": None})
    config = cluster.alpha.config
    config.write_text(config.read_text().replace("https://", "http://"))
    expect(any("if it speaks TLS, write https://" in it for it in check(cluster.alpha)),
           f"{check(cluster.alpha)}")
    for words, how in (("not for this address", {"names": "IP:192.0.2.1"}),
                       ("has expired", {"names": f"IP:{certificates.host}", "days": -1})):
        certificates.sign("server", uses="serverAuth,clientAuth", **how)
        cluster.expect_problem(endpoint, words)
    certificates.sign("server", uses="serverAuth,clientAuth", names=f"IP:{certificates.host}")
    cluster.write_config()
    expect(check(cluster.alpha) == [], f"{check(cluster.alpha)}")


def wrong_files_do_no_harm_and_new_ones_are_used(cluster, certificates):
    """New files while the daemons run: what is wrong is seen, and the lease goes on."""
    primary, (certificate, _) = cluster.primary(), certificates.client
    wait_until("etcd is well", lambda: is_well(primary), 10)
    certificate.write_text("no certificate\n")
    wait_until("the file is named", lambda: tells(primary, "why", f"certificate {certificate}: no"),
               10)
    expect(f"certificate {certificate}" in primary.ctl_raw("status", as_json=False)[1],
           "status says it in words")
    certificates.sign("client", ca=certificates.foreign_ca)
    wait_until("the refusal is seen", lambda: report(primary)["trouble"] is None and
               f"refuses the certificate {certificate}" in report(primary)["endpoints"][0]["why"],
               10)
    stay(2 * LEASE_S)
    expect(cluster.primary() is primary and lease_left_ms(primary) > 0, "the lease is over")
    certificates.sign("client")
    wait_until("etcd is well again", lambda: is_well(primary), 10)


def a_new_password_is_used(cluster, certificates):
    """etcd wants a password, and then another one. With users its gateway refuses a certificate with
    a common name."""
    site, primary = cluster.site, cluster.primary()
    for words in (("user", "add", "root:secret"), ("user", "grant-role", "root", "root"),
                  ("auth", "enable")):
        site.ctl(*words, check=words != ("user", "grant-role", "root", "root"))
    site.login = ("--user", "root:secret")
    wait_until("the common name is refused",
               lambda: tells(primary, "next", "without a common name"), 10)
    certificates.sign("client", subject="/O=replicator")
    wait_until("etcd is well with a password", lambda: is_well(primary), 10)
    stay(2 * LEASE_S)
    expect(lease_left_ms(primary) > 0 and is_well(primary), f"{report(primary)}")
    site.ctl("user", "passwd", "root", "--interactive=false", input="other\n")
    site.login = ("--user", "root:other")
    wait_until("the password is wrong",
               lambda: tells(primary, "next", "password_file of [etcd]"), 10)
    expect(any("password_file of [etcd]" in it for it in check(primary)), f"{check(primary)}")
    cluster.password.write_text("other\n")
    wait_until("etcd is well again", lambda: is_well(primary) and lease_left_ms(primary) > 0, 10)
    expect(check(primary) == [], f"{check(primary)}")
    cluster.wait_in_sync()


def report(node):
    """etcd as a node tells of it."""
    return node.ctl("status")["cluster_state"]["etcd"]


def tells(node, field, words):
    """Whether the trouble with etcd is of that kind."""
    return words in (report(node)["trouble"] or {}).get(field, "")


def is_well(node):
    """All its endpoints are there, and nothing else is wrong."""
    found = report(node)
    return found["trouble"] is None and all(
        it["state"] in ("leader", "follower") for it in found["endpoints"])


def lease_left_ms(node):
    """Of the office of a primary."""
    return node.ctl("status")["cluster_state"]["resources"][0]["lease_left_ms"]


SCENARIOS = [
    etcd_by_tls_a_killed_primary_is_replaced_and_returns,
]

LONG = [
    etcd_by_tls_what_is_wrong_with_certificates_or_password_is_named_and_mended_while_it_runs,
]
