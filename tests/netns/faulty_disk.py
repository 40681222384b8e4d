"""A disk that fails on demand: a file behind nbdkit's error filter, mounted by nbdfuse. What is
written through it is in the plain file `image` when the fault is over."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from cluster import MIB, Skip, die_with_parent, run, wait_until


class FaultyDisk:
    """The disk, while the `with` block lasts."""

    def __init__(self, size_mib):
        if os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK):
            raise Skip("a faulty disk needs root and /dev/fuse")
        if not shutil.which("nbdfuse") or not shutil.which("nbdkit"):
            raise Skip("a faulty disk needs nbdfuse and nbdkit")
        parent = os.environ.get("REPLICATOR_TEST_DIR", "/var/tmp")
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="repl-faulty-", dir=parent))
        self.size_mib = size_mib
        self.image = self.dir / "image"
        self.mount = self.dir / "mnt"
        self.path = self.mount / "disk"
        self.process = None

    def __enter__(self):
        with open(self.image, "wb") as file:
            file.truncate(self.size_mib * MIB)
        self.mount.mkdir()
        words = ["nbdfuse", self.path, "--command", "nbdkit", "-s", "--exit-with-parent",
                 "--filter=error", "file", self.image, "error=EIO"]
        for kind in ("pread", "pwrite", "zero"):
            words += [f"error-{kind}-rate=100%", f"error-{kind}-file={self.dir / kind}"]
        self.process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                                        preexec_fn=die_with_parent)
        wait_until("the faulty disk is there", self.path.exists)
        return self

    def __exit__(self, *_):
        run("fusermount3", "-u", "-z", self.mount, check=False)
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def fail(self, *kinds):
        """From now on reads (`pread`) or writes (`pwrite`, `zero`) end with EIO."""
        for kind in kinds:
            (self.dir / kind).touch()

    def heal(self):
        """It works again."""
        for kind in ("pread", "pwrite", "zero"):
            (self.dir / kind).unlink(missing_ok=True)
