"""How far the clock of a machine is ahead of this one's, to some milliseconds: its kernel stamps an ICMP
question. A program that is started there to ask it would take an emulated processor for a second.
"""

import os
import select
import socket
import struct
import time

from cluster import expect, in_namespace

QUESTIONS = 20
ANSWER_S = 1
DAY_MS = 86400 * 1000
ASKED, ANSWERED = 13, 14


def clock_ahead_s(place, host):
    """Asked from a namespace. The answer that came soonest is the most exact."""
    with in_namespace(place):
        asker = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with asker:
        found = [answer for number in range(QUESTIONS) if (answer := ask(asker, host, number))]
    expect(found, f"{host} does not say what time it is")
    return min(found)[1]


def ask(asker, host, number):
    """One question: (how long the answer took, how far ahead), in seconds; nothing if there is none."""
    body = struct.pack("!HHIII", os.getpid() & 0xFFFF, number, 0, 0, 0)
    total = sum(struct.unpack("!10H", struct.pack("!BBH", ASKED, 0, 0) + body))
    total = (total & 0xFFFF) + (total >> 16)
    began = time.time()
    asker.sendto(struct.pack("!BBH", ASKED, 0, 0xFFFF - total) + body, (host, 0))
    while select.select([asker], [], [], ANSWER_S)[0]:
        answer = asker.recv(256)[20:]
        if answer[0] == ANSWERED and answer[4:8] == body[:4]:
            took = time.time() - began
            # Milliseconds since midnight.
            ahead_ms = struct.unpack("!I", answer[12:16])[0] - (began + took / 2) * 1000
            return took, ((ahead_ms + DAY_MS / 2) % DAY_MS - DAY_MS / 2) / 1000
    return None
