"""A loop device that takes only so many bytes a second from the processes of one control group
(version 1 or 2): what they have submitted lands later, also when they are gone."""

import os
import pathlib
import tempfile

from cluster import MIB, run, wait_until
from control_group import ControlGroup


class ThrottledDisk:
    """The disk, while the `with` block lasts. A daemon is put behind it with `wrap`."""

    def __init__(self, size_mib):
        self.group = ControlGroup("blkio", "io")
        parent = os.environ.get("REPLICATOR_TEST_DIR", "/var/tmp")
        descriptor, name = tempfile.mkstemp(prefix="repl-slow-", dir=parent)
        os.truncate(descriptor, size_mib * MIB)
        os.close(descriptor)
        self.file = pathlib.Path(name)
        self.path = None

    def __enter__(self):
        self.group.make()
        found = run("losetup", "--find", "--show", "--direct-io=on", self.file)
        self.path = pathlib.Path(found.stdout.strip())
        return self

    def __exit__(self, *_):
        self.heal()
        run("losetup", "--detach", self.path, check=False)
        wait_until("the control group is empty", self.group.is_removed)
        self.file.unlink()

    @property
    def wrap(self):
        """A command in front of a daemon that puts it into the group."""
        return ("sh", "-c", f'echo $$ > {self.group.path}/cgroup.procs; exec "$@"', "sh")

    def throttle(self, bytes_per_second):
        """From now on so fast."""
        device = os.stat(self.path).st_rdev
        number = f"{os.major(device)}:{os.minor(device)}"
        if self.group.is_old:
            limit = self.group.path / "blkio.throttle.write_bps_device"
            limit.write_text(f"{number} {bytes_per_second}")
        else:
            (self.group.path / "io.max").write_text(f"{number} wbps={bytes_per_second}")

    def hang(self):
        """From now on no write is done."""
        self.throttle(1)

    def heal(self):
        """As fast as it is."""
        self.throttle(1 << 40)

    def sectors_written(self):
        """Sectors of 512 bytes that the device has completed."""
        return int(pathlib.Path(f"/sys/block/{self.path.name}/stat").read_text().split()[6])
