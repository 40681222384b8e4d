"""Notes on which nodes a domain of libvirt runs, from outside all of them: by the processes that there
are, whatever anybody's libvirtd says. Usage: domain_watcher.py FILE DOMAIN NODE=NAMESPACE...

FILE gets a line whenever that changes, and one at first: `at SECONDS NODE...`, in seconds of
CLOCK_MONOTONIC. It goes on until it is killed.
"""

import os
import pathlib
import sys
import time

EVERY_S = 0.1


def hosts(domain, names):
    """The nodes with an emulator of the domain."""
    found = set()
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and any(
                    word.startswith(f"guest={domain},".encode()) for word in words):
                found.add(names.get((entry / "ns/net").stat().st_ino, "elsewhere"))
        except OSError:
            pass  # it has ended meanwhile
    return found - {"elsewhere"}


def main():
    path, domain, *nodes = sys.argv[1:]
    pairs = [node.split("=") for node in nodes]
    names = {os.stat(f"/run/netns/{namespace}").st_ino: name for name, namespace in pairs}
    before = None
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        while True:
            now = hosts(domain, names)
            if now != before:
                told.write(" ".join(["at", str(time.monotonic()), *sorted(now)]) + "\n")
            before = now
            time.sleep(EVERY_S)


main()
