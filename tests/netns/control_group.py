"""A control group of the host's, version 1 or 2, of a test's own."""

import os
import pathlib

from cluster import Skip

ROOT = pathlib.Path("/sys/fs/cgroup")
CONTROLLERS = ROOT / "cgroup.controllers"


class ControlGroup:
    """One with a controller that is called `old` in version 1 and `new` in version 2."""

    def __init__(self, old, new):
        if os.geteuid() != 0:
            raise Skip("a control group needs root")
        self.controller = new
        self.is_old = (ROOT / old).is_dir()
        if not self.is_old and not (CONTROLLERS.exists()
                                    and new in CONTROLLERS.read_text().split()):
            raise Skip(f"no control group with the controller {new} here")
        self.path = (ROOT / old if self.is_old else ROOT) / f"rt-{os.getpid()}"

    def make(self):
        """Makes it."""
        if not self.is_old:
            (ROOT / "cgroup.subtree_control").write_text(f"+{self.controller}")
        self.path.mkdir()

    def is_removed(self):
        """Removes it as soon as nobody is in it; whether it is gone."""
        try:
            self.path.rmdir()
        except OSError:
            return not self.path.exists()
        return True
