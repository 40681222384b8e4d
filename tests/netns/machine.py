"""A machine of its own for a node, as far as one kernel can be several: process numbers, mounts and
System V memory belong to it, beside the network namespace that it is made in. Databases need that: a
lock file names a process, and on another machine that number means nothing.

A daemon that is killed leaves its services running in its machine; a machine whose power is cut
ends whole, at one instant.
"""

import contextlib
import ctypes
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CLONE_NEWPID = 0x20000000
LIBC = ctypes.CDLL(None, use_errno=True)


class Machine:
    """Runs from the moment it is made until its power is cut."""

    def __init__(self, namespace):
        command = [sys.executable, HERE / "machine_power.py", namespace]
        self.power = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                      text=True, start_new_session=True)
        words = self.power.stdout.readline().split()
        if words[:1] != ["ready"]:
            raise OSError(f"no machine could be made in {namespace}")
        self.process_one = int(words[1])
        self.children = []

    @property
    def is_running(self):
        """Whether its power is on."""
        return self.power.poll() is None

    def command(self, command):
        """The command as it has to be for a process that is born here."""
        places = [f"--{kind}=/proc/{self.process_one}/ns/{file}"
                  for kind, file in (("mount", "mnt"), ("ipc", "ipc"), ("net", "net"))]
        return ["nsenter", *places, "--", *command]

    @contextlib.contextmanager
    def birth(self):
        """Children that are started within this block get process numbers of this machine."""
        ours = os.open("/proc/thread-self/ns/pid_for_children", os.O_RDONLY)
        theirs = os.open(f"/proc/{self.process_one}/ns/pid", os.O_RDONLY)
        try:
            _enter(theirs)
            try:
                yield
            finally:
                _enter(ours)
        finally:
            os.close(ours)
            os.close(theirs)

    def spawn(self, *command, **more):
        """Starts a program here, which lives until it ends or the power is cut."""
        with self.birth():
            child = subprocess.Popen(self.command(command), stdin=subprocess.DEVNULL, **more)
        self.children.append(child)

    def cut_power(self, ours):
        """Every process of it ends now, by SIGKILL, and its mounts are gone. `ours` are others that
        were started from here: the kernel holds the end of a machine until they are waited for."""
        self.power.terminate()
        for process in [*ours, *self.children]:
            process.wait()
        self.power.wait()
        self.power.stdout.close()


def _enter(descriptor):
    if LIBC.setns(descriptor, CLONE_NEWPID) != 0:
        raise OSError(ctypes.get_errno(), "setns")
