"""A client of an NFS server, by the kernel's hard mount: stores numbered files, adds a row for each to a
file that it keeps open and locked all the time, and notes every one that was flushed; lines `ok NUMBER
BEGAN ENDED` on its standard output. The first error ends it: a hard mount has none.
Usage: nfs_writer.py DIRECTORY
"""

import fcntl
import os
import pathlib
import sys
import time


def main():
    place = pathlib.Path(sys.argv[1])
    (place / "items").mkdir()
    rows = os.open(place / "rows", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    fcntl.lockf(rows, fcntl.LOCK_EX | fcntl.LOCK_NB)
    number = 0
    while True:
        began = time.monotonic()
        item = os.open(place / "items" / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(item, f"item {number}\n".encode())
        os.fsync(item)
        os.close(item)
        os.write(rows, f"{number}\n".encode())
        os.fsync(rows)
        print(f"ok {number} {began} {time.monotonic()}", flush=True)
        number += 1


main()
