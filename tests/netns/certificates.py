"""Certificates for etcd and its clients, made by openssl in a directory."""

import shutil

from cluster import Skip, run

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
ENDINGS = ("crt", "key")


class Certificates:
    """A CA, one pair of files for the members, and one for the clients."""

    def __init__(self, directory, host):
        if shutil.which("openssl") is None:
            raise Skip("no openssl here: apt-get install openssl")
        self.dir, self.host = directory, host
        self.ca, self.foreign_ca = self.make_ca("ca"), self.make_ca("foreign-ca")
        self.server = self.sign("server", uses="serverAuth,clientAuth", names=f"IP:{host}")
        self.client = self.sign("client")

    def make_ca(self, name):
        """A certificate that signs others."""
        certificate, key = self.dir / f"{name}.crt", self.dir / f"{name}.key"
        run("openssl", "req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-days", 30,
            "-keyout", key, "-out", certificate)
        return certificate

    def sign(self, name, ca=None, days=30, uses="clientAuth", names="DNS:client",
             subject=None):
        """The paths of a certificate and of its key; new ones take the place of others at once."""
        ca = ca or self.ca
        request, made = self.dir / f"{name}.csr", [self.dir / f"{name}.new.{it}" for it in ENDINGS]
        run("openssl", "req", "-new", *NEW_KEY, "-subj", subject or f"/CN={name}", "-addext",
            "basicConstraints=critical,CA:FALSE", "-addext", f"extendedKeyUsage={uses}", "-addext",
            f"subjectAltName={names}", "-keyout", made[1], "-out", request)
        # Only this command makes some that have expired.
        run("openssl", "x509", "-req", "-in", request, "-days", days, "-CA", ca, "-CAkey",
            ca.with_suffix(".key"), "-CAcreateserial", "-copy_extensions", "copyall", "-out",
            made[0])
        return tuple(path.rename(self.dir / f"{name}{path.suffix}") for path in made)

    def server_options(self):
        """What a member is started with."""
        certificate, key = self.server
        return ["--cert-file", certificate, "--key-file", key, "--client-cert-auth",
                "--trusted-ca-file", self.ca]

    def ctl_options(self):
        """What etcdctl is called with: the pair of the members, which no test changes for it."""
        certificate, key = self.server
        return ["--cacert", self.ca, "--cert", certificate, "--key", key]

    def client_lines(self, **paths):
        """The keys of `[etcd]`; None leaves one out."""
        paths = {"ca": self.ca, "certificate": self.client[0], "key": self.client[1], **paths}
        return [f'{key} = "{path}"' for key, path in paths.items() if path]
