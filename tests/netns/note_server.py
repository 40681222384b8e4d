"""A service for measurements: keeps each line that clients send in a file, durably, and answers with who
it is. Usage: note_server.py FILE PORT. The answer is `NODE/PROCESS`, with the node's name from
REPLICATOR_NODE."""

import os
import socketserver
import sys
import threading


def main():
    path, port = sys.argv[1:]
    who = f"{os.environ['REPLICATOR_NODE']}/{os.getpid()}".encode()
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    lock = threading.Lock()

    class Notes(socketserver.StreamRequestHandler):
        """One client."""

        disable_nagle_algorithm = True

        def handle(self):
            for line in self.rfile:
                if not line.endswith(b"\n"):
                    return  # cut off in the middle
                with lock:
                    os.write(file, line)
                    os.fdatasync(file)
                self.wfile.write(who + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        """Starts again at once where one has just ended."""

        allow_reuse_address = True
        daemon_threads = True

    Server(("", int(port)), Notes).serve_forever()


main()
