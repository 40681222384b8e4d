"""A thread of a daemon that hangs, while its others run: stopped by ptrace(2)."""

import ctypes
import os
import pathlib

from cluster import expect

WALL = 0x40000000


class StoppedThread:
    """One thread of a process stands still for a while; the others run."""

    SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17

    def __init__(self, process, name):
        tasks = pathlib.Path(f"/proc/{process.pid}/task").iterdir()
        self.id = next(int(task.name) for task in tasks
                       if (task / "comm").read_text().strip() == name)
        self.ptrace = ctypes.CDLL(None, use_errno=True).ptrace
        self.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

    def order(self, request):
        """As ptrace(2)."""
        expect(self.ptrace(request, self.id, None, None) == 0,
               f"ptrace {request:#x}: {os.strerror(ctypes.get_errno())}")

    def __enter__(self):
        self.order(self.SEIZE)
        self.order(self.INTERRUPT)
        os.waitpid(self.id, WALL)
        return self

    def __exit__(self, *_):
        self.order(self.DETACH)
