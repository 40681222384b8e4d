"""A small NBD client of the tests and the demo: reads, writes and flushes one export. It needs no
library, so it also runs where libnbd is not installed. Simple replies only, one request at a time.
"""

import os
import socket
import struct

READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, ZEROES = range(7)
FUA = 1
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
OPTION_GO, REPLY_ACK, REPLY_INFO = 7, 1, 3


class Refused(Exception):
    """The server does not serve this export, and says why."""


class Lost(Exception):
    """The connection ended, or was silent for too long: nothing is known about the last request."""


class Failed(Exception):
    """The server answered a request with an error."""

    def __init__(self, code):
        super().__init__(f"the server answered error {code} ({os.strerror(code)})")
        self.code = code


class Client:
    """One connection to one export."""

    def __init__(self, target, export, timeout_s=60):
        """`target` is the path of a Unix socket, or (host, port)."""
        try:
            if isinstance(target, tuple):
                self.socket = socket.create_connection(target, timeout_s)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                self.socket = socket.socket(socket.AF_UNIX)
                self.socket.settimeout(timeout_s)
                self.socket.connect(str(target))
        except OSError as error:
            raise Lost(f"cannot connect: {error}") from error
        self.cookie = 0
        self.size = 0
        self._go(export.encode())

    def _go(self, export):
        if self._receive(18)[:16] != b"NBDMAGICIHAVEOPT":
            raise Lost("the other end is no NBD server")
        data = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._send(struct.pack(">IQII", 3, OPTION_MAGIC, OPTION_GO, len(data)) + data)
        while True:
            magic, _, kind, length = struct.unpack(">QIII", self._receive(20))
            body = self._receive(length)
            if magic != OPTION_REPLY_MAGIC:
                raise Lost("the server answered out of step")
            if kind == REPLY_ACK:
                return
            if kind & 1 << 31:
                raise Refused(body.decode(errors="replace"))
            if kind == REPLY_INFO and body[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", body[2:12])

    def _send(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Lost(f"sending: {error}") from error

    def _receive(self, length):
        data = bytearray()
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except OSError as error:
                raise Lost(f"receiving: {error}") from error
            if not piece:
                raise Lost("the server closed the connection")
            data += piece
        return bytes(data)

    def send_request(self, kind, offset=0, length=0, data=b"", flags=0):
        """Sends one request without waiting for its answer."""
        self.cookie += 1
        header = struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, self.cookie, offset, length)
        self._send(header + data)

    def request(self, kind, offset=0, length=0, data=b"", flags=0):
        """One request and its answer; the data of a read."""
        self.send_request(kind, offset, length, data, flags)
        self.read_reply()
        return self._receive(length) if kind == READ else b""

    def read_reply(self):
        """Waits for the answer to the request that was sent last, the only one."""
        magic, code, cookie = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC or cookie != self.cookie:
            raise Lost("the server answered out of step")
        if code:
            raise Failed(code)

    def read(self, offset, length):
        """Bytes of the export."""
        return self.request(READ, offset, length)

    def write(self, offset, data, fua=False):
        """Acknowledged when it returns; with `fua` durable on every in-sync replica."""
        self.request(WRITE, offset, len(data), data, FUA if fua else 0)

    def zero(self, offset, length):
        """Zeroes, wherever the storage behind them goes."""
        self.request(ZEROES, offset, length)

    def flush(self):
        """Everything acknowledged before is durable when it returns."""
        self.request(FLUSH)

    def close(self):
        """Says good-bye; also fine when the server is gone."""
        try:
            self.send_request(DISCONNECT)
        except Lost:
            pass
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
