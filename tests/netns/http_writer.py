"""A client of a web server: stores numbered files by PUT through one address and notes every one that
was promised, on a new connection after each that ended. Usage: http_writer.py HOST FILE [PATIENCE_S];
lines as rows_writer.py has them. It goes on until it is killed."""

import http.client
import sys
import time

PATIENCE_S = 0.8
WELL = (200, 201, 204)


def main():
    host, path, *more = sys.argv[1:]
    patience_s = float(more[0]) if more else PATIENCE_S
    number = 0
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        while True:
            connection = http.client.HTTPConnection(host, timeout=patience_s)
            try:
                while True:
                    began = time.monotonic()
                    connection.request("PUT", f"/{number}", body=f"item {number}\n")
                    answer = connection.getresponse()
                    answer.read()
                    if answer.status not in WELL:
                        raise http.client.HTTPException(f"answered {answer.status}")
                    told.write(f"ok {number} {began} {time.monotonic()}\n")
                    number += 1
            except (OSError, http.client.HTTPException) as error:
                # The outcome of this number is unknown: it is not used again.
                number += 1
                told.write(f"down {time.monotonic()} {error}\n")
                connection.close()
                time.sleep(0.02)


main()
