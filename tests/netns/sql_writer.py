"""A client of MariaDB: inserts numbered rows through one address, each by a run of the `mariadb` program,
and notes every commit that was promised. Usage: sql_writer.py HOST FILE; lines as rows_writer.py has
them. It goes on until it is killed."""

import subprocess
import sys
import time

PATIENCE_S = 2


def main():
    host, path = sys.argv[1:]
    number = 0
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        while True:
            command = ["mariadb", "--no-defaults", "-h", host, "-u", "client", "--connect-timeout=1",
                       "items", "-e", f"INSERT INTO items VALUES ({number})"]
            began = time.monotonic()
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
                why = None if done.returncode == 0 else " ".join(done.stderr.split())
            except subprocess.TimeoutExpired:
                why = "no answer"
            if why is None:
                told.write(f"ok {number} {began} {time.monotonic()}\n")
            else:
                # The outcome of this number is unknown: it is not used again.
                told.write(f"down {time.monotonic()} {why}\n")
                time.sleep(0.02)
            number += 1


main()
