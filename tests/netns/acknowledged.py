#!/usr/bin/env python3
"""Writes 4 KiB again and again to every node that serves, and notes each acknowledgement with its
times, so that others can tell who served when. Runs in any network namespace.

    acknowledged.py FILE EXPORT FIRST_BYTE PAUSE_MS NODE=SOCKET|NODE=HOST:PORT...

FILE gets one line for each event, times in seconds of CLOCK_MONOTONIC:
`ack NODE SENT ACKNOWLEDGED`, `open NODE TIME`, `end NODE TIME WHY`. Each node has a block of its
own, FIRST_BYTE + 4096 times its place.
"""

import struct
import sys
import threading
import time

from nbd_client import Client, Failed, Lost, Refused

CONNECT_S = 1.0
ANSWER_S = 120.0
RETRY_S = 0.01


def serve(note, name, target, export, offset, pause_s):
    """One node, for ever."""
    number = 0
    while True:
        try:
            client = Client(target, export, CONNECT_S)
        except (Lost, Refused):
            time.sleep(RETRY_S)
            continue
        client.socket.settimeout(ANSWER_S)
        note(f"open {name} {time.monotonic():.6f}")
        try:
            while True:
                number += 1
                sent = time.monotonic()
                data = struct.pack(">Qd", number, sent) * 256
                client.write(offset, data)
                note(f"ack {name} {sent:.6f} {time.monotonic():.6f}")
                time.sleep(pause_s)
        except (Lost, Failed) as why:
            note(f"end {name} {time.monotonic():.6f} {why}")
        client.socket.close()
        time.sleep(RETRY_S)


def main():
    path, export, first, pause_ms, *targets = sys.argv[1:]
    lock = threading.Lock()
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        def note(line):
            with lock:
                file.write(line + "\n")

        for place, word in enumerate(targets):
            name, target = word.split("=", 1)
            if not target.startswith("/"):
                host, port = target.rsplit(":", 1)
                target = (host, int(port))
            threading.Thread(target=serve, daemon=True, args=(
                note, name, target, export, int(first) + 4096 * place,
                float(pause_ms) / 1000)).start()
        threading.Event().wait()


if __name__ == "__main__":
    main()
