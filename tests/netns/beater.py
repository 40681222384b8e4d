#!/usr/bin/env python3
"""A service for tests: as long as it runs it writes who and where it is into a log outside all nodes.

    beater.py LOG NODE NAME

Each line: WORD NODE NAME TIME, where WORD is `begin`, `beat` (every 10 ms) or `end` (on SIGTERM), and
TIME is CLOCK_MONOTONIC of the machine, the same in every namespace.
"""

import os
import signal
import sys
import time

PAUSE_S = 0.01


def main():
    path, node, name = sys.argv[1:]
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(word):
        os.write(log, f"{word} {node} {name} {time.monotonic():.6f}\n".encode())

    def end(*_):
        say("end")
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    say("begin")
    while True:
        time.sleep(PAUSE_S)
        say("beat")


if __name__ == "__main__":
    main()
