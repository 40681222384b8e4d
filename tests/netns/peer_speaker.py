"""Speaks the greeting of two nodes (replicator/src/greeting.rs) and single frames (replicator/core/
src/wire.rs), for tests that send a daemon what a peer never would."""

import hashlib
import hmac
import os
import socket
import struct
import zlib

MAGIC, FRAME_MAGIC = b"RPLGREET", b"RPL1"
PROOF, IDENTITY, READY, REFUSED = 1, 2, 3, 4
FRAME_KINDS = 22


class Closed(Exception):
    """The daemon ended the connection."""


def authenticate(key, *parts):
    """The code of `ClusterKey::authenticate`."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(struct.pack("<Q", len(part)) + part)
    return mac.digest()


# The protocol that this build speaks (replicator/core/src/wire.rs).
VERSION = 4


def opening(versions=(VERSION, VERSION)):
    """The first bytes of a dialer."""
    return MAGIC + bytes(versions) + b"D" + bytes(5) + os.urandom(32)


class Speaker:
    """A connection to the peer port of a node, as the node `me`."""

    def __init__(self, port, host="127.0.0.1"):
        self.socket = socket.create_connection((host, port), 10)

    def close(self):
        """Ends the connection."""
        self.socket.close()

    def send(self, data):
        """All of it, or Closed."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Closed from error

    def receive(self, length):
        """Exactly so many bytes, or Closed."""
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except OSError as error:
                raise Closed from error
            if not piece:
                raise Closed
            data += piece
        return data

    def receive_unit(self):
        """Kind and body of a unit of the greeting."""
        kind, length = struct.unpack("<BH", self.receive(3))
        return kind, self.receive(length)

    def send_unit(self, kind, body):
        """A unit of the greeting."""
        self.send(struct.pack("<BH", kind, len(body)) + body)

    def greet(self, key, cluster, me, peer, resource, versions=(VERSION, VERSION)):
        """The whole greeting; the kind of the last unit that came back (READY: agreed)."""
        ours = opening(versions)
        self.send(ours)
        # A listener that refuses the version answers with its opening and a refusal.
        theirs = self.receive(48)
        session_key = authenticate(key, b"session key", ours, theirs)
        self.send_unit(PROOF, authenticate(key, b"membership proof", b"D", ours, theirs))
        kind, _ = self.receive_unit()
        if kind != PROOF:
            return kind
        names = [name.encode() for name in (cluster, me, peer, resource)]
        body = b"".join(bytes([len(name)]) + name for name in names)
        self.send_unit(IDENTITY, body + authenticate(session_key, b"D" + bytes([IDENTITY]), body))
        kind, _ = self.receive_unit()
        if kind != IDENTITY:
            return kind
        self.send_unit(READY, authenticate(session_key, b"D" + bytes([READY]), b""))
        return READY


def frame(kind, payload=b"", flags=0, volume=0, tenure=0, seq=0, start=0, length=0, version=VERSION):
    """A frame whose checksums are right."""
    header = FRAME_MAGIC + struct.pack(
        "<BBHHHIQQQQI", version, kind, flags, volume, 0, len(payload), tenure, seq, start, length,
        zlib.crc32(payload) if payload else 0)
    header = header.ljust(60, b"\0")
    return header + struct.pack("<I", zlib.crc32(header)) + payload
