"""The application of the demo: copies a tree of real files, then goes on writing new ones, until its
storage goes away. After each file that is safe on the storage (fsync, or write and flush) it prints
one line: `path sha256`. What was not printed was never promised.

    writer.py directory TARGET ROUND [SOURCE]...           files of a file system
    writer.py device SOCKET EXPORT FIRST_BYTE ROUND [SOURCE]...   an archive on a bare device
"""

import concurrent.futures
import hashlib
import os
import pathlib
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests" / "netns"))

from nbd_client import Client

TREE_BYTES_MAX = 180 << 20
TREE_FILES_MAX = 6000
FILE_BYTES_MAX = 4 << 20
TREE_S = 15  # a slow machine copies less, and the story stays short
WRITERS = 8
BLOCK = 4096


def tree(sources):
    """Up to some thousand regular files below the sources, as (name, path)."""
    found, total = [], 0
    for source in sources:
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = pathlib.Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                size = path.stat().st_size
                if not 0 < size <= FILE_BYTES_MAX:
                    continue
                if len(found) == TREE_FILES_MAX or total + size > TREE_BYTES_MAX:
                    return found
                found.append((str(path).lstrip("/"), path))
                total += size
    return found


class Directory:
    """Files in a mounted file system."""

    def __init__(self, target):
        self.target = pathlib.Path(target)

    def put(self, name, data):
        """Returns when the file is durable; where it is found again."""
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return name


class Device:
    """Files one behind the other on a bare device; one connection for each thread."""

    def __init__(self, socket, export, first_byte):
        self.socket, self.export = socket, export
        self.next = int(first_byte)
        self.lock = threading.Lock()
        self.own = threading.local()

    def put(self, name, data):
        """Returns when the file is durable; where it is found again."""
        if not hasattr(self.own, "client"):
            self.own.client = Client(self.socket, self.export)
        with self.lock:
            at = self.next
            self.next += -(-len(data) // BLOCK) * BLOCK
        if self.next > self.own.client.size:
            raise OSError("the device is full")
        for start in range(0, len(data), 1 << 20):
            self.own.client.write(at + start, data[start : start + (1 << 20)])
        self.own.client.flush()
        return f"{at}+{len(data)}"


def main():
    kind, *words = sys.argv[1:]
    if kind == "directory":
        target, round_name, *sources = words
        storage = Directory(target)
    else:
        socket, export, first_byte, round_name, *sources = words
        storage = Device(socket, export, first_byte)
    printing = threading.Lock()

    def store(name, data):
        digest = hashlib.sha256(data).hexdigest()
        place = storage.put(name, data)
        with printing:
            print(place, digest, len(data), flush=True)

    until = time.monotonic() + TREE_S

    def copy(entry):
        if time.monotonic() < until:
            store(f"tree/{entry[0]}", entry[1].read_bytes())

    def go_on(number):
        count = 0
        while True:
            count += 1
            size = 1000 + (count * 7919 + number * 104729) % 60000
            store(f"{round_name}/{number}/{count}", os.urandom(size))

    try:
        with concurrent.futures.ThreadPoolExecutor(WRITERS) as threads:
            for _ in threads.map(copy, tree(sources)):
                pass
            print("copied", flush=True)
            for done in concurrent.futures.as_completed(
                    [threads.submit(go_on, number) for number in range(WRITERS)]):
                done.result()
    except Exception as error:
        print(f"the storage is gone: {error}", file=sys.stderr)
        os._exit(3)


if __name__ == "__main__":
    main()
