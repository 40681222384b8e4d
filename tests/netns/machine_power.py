"""The power of a machine of `machine.py`: makes it in a network namespace, says `ready NUMBER` with the
number of its process 1, and cuts its power on SIGTERM or when whoever started this is gone.

    machine_power.py NAMESPACE      (as process 1: machine_power.py --process-one)

It keeps the mounts of the machine until all its processes have ended. If one of those were the last
to have them, it would unmount in its own end, before it lets go of /dev/fuse: a file system that is
served from there would wait for it for ever.
"""

import ctypes
import os
import pathlib
import signal
import subprocess
import sys

PR_SET_PDEATHSIG = 1


def process_one():
    """Takes leave of orphans, as init does, until it is killed; all its machine ends with it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    print("up", flush=True)
    while True:
        signal.sigwait([signal.SIGCHLD])
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass  # no child is left


def power(namespace):
    """The machine, from its beginning to its end."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    command = ["unshare", "--pid", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc",
               "ip", "netns", "exec", namespace, sys.executable, __file__, "--process-one"]
    machine = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]))
    if machine.stdout.readline() != "up\n":
        sys.exit(f"no machine could be made: {machine.stderr.read()}")
    children = pathlib.Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text()
    first = int(children.split()[0])
    mounts = os.open(f"/proc/{first}/ns/mnt", os.O_RDONLY)
    print("ready", first, flush=True)
    signal.sigwait([signal.SIGTERM])
    os.kill(first, signal.SIGKILL)
    machine.wait()
    os.close(mounts)


if __name__ == "__main__":
    if sys.argv[1] == "--process-one":
        process_one()
    else:
        power(sys.argv[1])
