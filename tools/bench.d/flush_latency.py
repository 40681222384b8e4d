"""Writes 4 KiB at random places and flushes after each, one at a time; prints latencies as JSON.

Run with the Python that has libnbd:  flush_latency.py URI SIZE_BYTES SECONDS
fio cannot measure this: its nbd engine polls for the end of a flush once a millisecond.
"""

import json
import random
import sys
import time

import nbd

BLOCK_BYTES = 4096


def main():
    uri, size_bytes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    client = nbd.NBD()
    client.connect_uri(uri)
    blocks = [random.randbytes(BLOCK_BYTES) for _ in range(64)]
    places = size_bytes // BLOCK_BYTES
    flushes, both = [], []
    now = time.perf_counter_ns
    end = now() + int(seconds * 1e9)
    began = now()
    while began < end:
        client.pwrite(blocks[len(both) % len(blocks)], random.randrange(places) * BLOCK_BYTES)
        written = now()
        client.flush()
        ended = now()
        flushes.append(ended - written)
        both.append(ended - began)
        began = ended
    client.shutdown()
    flushes.sort()
    print(json.dumps({
        "count": len(flushes),
        "mean_us": sum(flushes) / len(flushes) / 1000,
        "p50_us": flushes[len(flushes) // 2] / 1000,
        "p99_us": flushes[len(flushes) * 99 // 100] / 1000,
        "write_and_flush_mean_us": sum(both) / len(both) / 1000,
    }))


main()
