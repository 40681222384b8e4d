"""A client of PostgreSQL that reconnects: inserts numbered rows through one address and notes every
commit that was promised. Usage: rows_writer.py HOST FILE. A line `ok NUMBER BEGAN ENDED` for each
commit, `down TIME WHY` for each connection that ended. It goes on until it is killed."""

import sys
import time

import psycopg2

PATIENCE_MS = 800


def connect(host):
    """A connection that is given up soon when the other end is silent."""
    connection = psycopg2.connect(
        host=host, dbname="postgres", user="postgres", connect_timeout=2,
        tcp_user_timeout=PATIENCE_MS, keepalives_idle=1, keepalives_interval=1, keepalives_count=1)
    connection.autocommit = True
    return connection


def main():
    host, path = sys.argv[1:]
    number = 0
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        while True:
            try:
                connection = connect(host)
                with connection.cursor() as cursor:
                    while True:
                        began = time.monotonic()
                        cursor.execute("INSERT INTO rows (number) VALUES (%s)", (number,))
                        told.write(f"ok {number} {began} {time.monotonic()}\n")
                        number += 1
            except psycopg2.Error as error:
                # The outcome of this number is unknown: it is not used again.
                number += 1
                told.write(f"down {time.monotonic()} {' '.join(str(error).split())}\n")
                time.sleep(0.02)


main()
