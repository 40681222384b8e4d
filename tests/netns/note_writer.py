"""A client for measurements: sends numbers to note_server.py through one address, and connects again as
soon as it is not answered. Usage: note_writer.py HOST FILE PORT. FILE gets a line
`ok NUMBER BEGAN ENDED WHO` for each that was promised, `down TIME WHY` for each connection that ended.
It goes on until it is killed."""

import socket
import sys
import time

CONNECT_S = 0.1
ANSWER_S = 0.4
PAUSE_S = 0.002
RETRY_S = 0.01


def main():
    host, path, port = sys.argv[1:]
    number = 0
    with open(path, "a", encoding="utf-8", buffering=1) as told:
        while True:
            try:
                with socket.create_connection((host, int(port)), CONNECT_S) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    connection.settimeout(ANSWER_S)
                    answers = connection.makefile("rb")
                    while True:
                        began = time.monotonic()
                        connection.sendall(f"{number}\n".encode())
                        who = answers.readline().decode().strip()
                        if not who:
                            raise OSError("the connection was closed")
                        told.write(f"ok {number} {began} {time.monotonic()} {who}\n")
                        number += 1
                        time.sleep(PAUSE_S)
            except OSError as error:
                # The outcome of this number is unknown: it is not used again.
                number += 1
                told.write(f"down {time.monotonic()} {error}\n")
                time.sleep(RETRY_S)


main()
