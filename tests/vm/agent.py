"""Inside a test machine: runs what comes in over TCP with bash and answers with what it said and its
status. See `Machine.inside` of alpha_machine.py.

    agent.py PORT
"""

import socketserver
import subprocess
import sys


class Order(socketserver.StreamRequestHandler):
    """One connection, one command."""

    def handle(self):
        command = self.rfile.read().decode()
        done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        self.wfile.write(done.stdout + b"\nexit %d" % done.returncode)


class Server(socketserver.ThreadingTCPServer):
    """Several at a time."""

    allow_reuse_address = True
    daemon_threads = True


Server(("", int(sys.argv[1])), Order).serve_forever()
