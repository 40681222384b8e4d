"""A client of an iSCSI target that keeps one session: writes numbered blocks through one address with
qemu-io, each with FUA, and notes every one that was promised. Usage: block_writer.py HOST FILE; lines as
rows_writer.py has them. It goes on until it is killed, or until an answer is an error."""

import subprocess
import sys
import time

URL = "iscsi://{}/iqn.2026-11.example.shop:san/1"
BLOCK, BLOCKS = 4096, 8192


def pattern(number):
    """The byte that a block with this number is full of; never that of an unwritten one."""
    return number * 7 % 255 + 1


def main():
    host, path = sys.argv[1:]
    # It ends with this program, also while it waits for its target.
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-io", "-f", "raw", URL.format(host)]
    tool = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, bufsize=1)
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        for number in range(BLOCKS):
            began = time.monotonic()
            # One command at a time: qemu-io does not look at a second line before the next input.
            tool.stdin.write(f"write -f -P {pattern(number)} {number * BLOCK} {BLOCK}\n")
            for line in tool.stdout:
                if "failed" in line or "error" in line.lower():
                    sys.exit(f"block {number}: {line}")
                if "wrote " in line:
                    break
            else:
                sys.exit("qemu-io ended")
            told.write(f"ok {number} {began} {time.monotonic()}\n")
    sys.exit("the disk is full")


if __name__ == "__main__":
    main()
