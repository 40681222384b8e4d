#!/usr/bin/python3
"""Sends every kind of bad input to a live NBD server over a raw socket and checks the answers.

    nbd_bad_input.py (--unix PATH | --tcp HOST:PORT) --export NAME [--size BYTES]
                     [--read-only NAME] [--refused NAME]

After each bad request the next good one must still work. No data are changed: the probe compares
the first and the last block of the export before and after. Exit code 0: all right; 1: a wrong
answer (each one is printed); 2: the server could not be reached or opened.
"""

import argparse
import socket
import struct
import sys

OPTION_MAGIC = 0x49484156454F5054
OPT = {"EXPORT_NAME": 1, "ABORT": 2, "LIST": 3, "PEEK_EXPORT": 4, "STARTTLS": 5, "INFO": 6,
       "GO": 7, "STRUCTURED_REPLY": 8, "LIST_META": 9, "SET_META": 10, "EXTENDED_HEADERS": 11}
ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, POLICY, INVALID, UNKNOWN, SHUTDOWN, TOO_BIG = (2**31 + n for n in (1, 2, 3, 6, 7, 9))
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS, RESIZE = range(9)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
T_READ_ONLY, T_TRIM, T_ZEROES, T_CACHE, T_FAST_ZERO = 1 << 1, 1 << 5, 1 << 6, 1 << 10, 1 << 11
EPERM, EINVAL, ENOSPC, EOVERFLOW = 1, 22, 28, 75
MIB = 1 << 20
U64 = (1 << 64) - 1
DEADLINE_S = 20


class Closed(Exception):
    """The server ended the connection."""


class ServerGone(Exception):
    """A bad request ended not only its connection but the server."""


class Wrong(Exception):
    """The server answered what it must not answer."""


class Connection:
    """One raw connection, from the greeting on."""

    def __init__(self, target, client_flags=3):
        if target.unix:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(DEADLINE_S)
            self.socket.connect(target.unix)
        else:
            host, port = target.tcp.rsplit(":", 1)
            self.socket = socket.create_connection((host, int(port)), DEADLINE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.structured = False
        greeting = self.receive(18)
        if greeting[:16] != b"NBDMAGICIHAVEOPT":
            raise Wrong(f"greeting {greeting!r}")
        self.send(struct.pack(">I", client_flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self, length):
        data = b""
        while len(data) < length:
            try:
                piece = self.socket.recv(length - len(data))
            except ConnectionResetError as error:
                raise Closed from error
            if not piece:
                raise Closed
            data += piece
        return data

    # ---- negotiation ----

    def send_option(self, option, data=b"", length=None):
        length = len(data) if length is None else length
        self.send(struct.pack(">QII", OPTION_MAGIC, option, length) + data)

    def option(self, option, data=b""):
        """Sends an option and returns its final reply type and the replies before it."""
        self.send_option(option, data)
        before = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
            if magic != 0x3E889045565A9 or echoed != option:
                raise Wrong(f"option reply magic {magic:#x}, option {echoed}")
            body = self.receive(length)
            if kind == ACK or kind & 2**31:
                return kind, before, body
            before.append((kind, body))

    def go(self, export):
        kind, before, body = self.option(OPT["GO"], open_data(export, [3]))
        if kind != ACK:
            raise Wrong(f"GO of {export!r} was refused with {kind:#x}: {body.decode()}")
        self.size, self.unit = None, 512
        for reply, info in before:
            if reply == INFO and info[:2] == b"\0\0":
                self.size, self.flags = struct.unpack(">QH", info[2:])
            if reply == INFO and info[:2] == b"\0\3":
                self.unit = max(512, struct.unpack(">I", info[2:6])[0])
        if self.size is None:
            raise Wrong("GO gave no INFO_EXPORT")
        return self

    # ---- transmission ----

    def request(self, command, flags, offset, length, cookie, payload=b""):
        header = struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length)
        self.send(header + payload)

    def replies(self, sent):
        """Reads the replies to all requests of `sent` ({cookie: (command, offset, length of the
        data to expect)}), in whatever order they come. Gives {cookie: (error, data)}."""
        done = {}
        data = {cookie: bytearray(length) for cookie, (_, _, length) in sent.items()}
        errors = dict.fromkeys(sent, 0)
        while len(done) < len(sent):
            magic, = struct.unpack(">I", self.receive(4))
            if magic == 0x67446698:
                error, cookie = struct.unpack(">IQ", self.receive(12))
                command, _, length = self.outstanding(cookie, sent, done)
                if self.structured and command == READ:
                    raise Wrong("simple reply to READ after structured replies were negotiated")
                if error == 0 and length:
                    data[cookie][:] = self.receive(length)
                done[cookie] = (error, bytes(data[cookie]))
                continue
            if magic != 0x668E33EF or not self.structured:
                raise Wrong(f"reply magic {magic:#x}")
            flags, kind, cookie, size = struct.unpack(">HHQI", self.receive(16))
            _, offset, _ = self.outstanding(cookie, sent, done)
            body = self.receive(size)
            if kind & 0x8000:
                errors[cookie], text_length = struct.unpack(">IH", body[:6])
                body[6:6 + text_length].decode()
            elif kind == 1:
                at = struct.unpack(">Q", body[:8])[0] - offset
                data[cookie][at:at + size - 8] = body[8:]
            if flags & 1:
                done[cookie] = (errors[cookie], bytes(data[cookie]))
        return done

    @staticmethod
    def outstanding(cookie, sent, done):
        if cookie not in sent or cookie in done:
            raise Wrong(f"reply with cookie {cookie:#x}, which is not outstanding")
        return sent[cookie]

    def read(self, offset, length):
        self.request(READ, 0, offset, length, 0x600D)
        error, data = self.replies({0x600D: (READ, offset, length)})[0x600D]
        if error or len(data) != length:
            raise Wrong(f"a good READ failed with error {error}")
        return data

    def edges(self):
        """The first and the last block."""
        return self.read(0, self.unit), self.read(self.size - self.unit, self.unit)


def open_data(export, infos=()):
    name = export.encode()
    return struct.pack(">I", len(name)) + name + struct.pack(f">{1 + len(infos)}H", len(infos), *infos)


def meta_data(export, *queries):
    data = open_data(export)[:-2] + struct.pack(">I", len(queries))
    for query in queries:
        data += struct.pack(">I", len(query)) + query
    return data


class Report:
    """Counts and prints."""

    def __init__(self):
        self.good = self.bad = 0

    def check(self, name, probe):
        try:
            problem = probe()
        except Closed:
            problem = "the server closed the connection"
        except socket.timeout:
            problem = f"no answer within {DEADLINE_S} s"
        except (Wrong, struct.error, UnicodeDecodeError) as error:
            problem = str(error)
        if problem:
            self.bad += 1
            print(f"WRONG  {name}: {problem}")
        else:
            self.good += 1


def expect_option(target, option, data, wanted, prepare=()):
    """The option gets one of the wanted replies, and LIST still works behind it."""
    def probe():
        with Connection(target) as connection:
            for earlier, earlier_data in prepare:
                connection.option(earlier, earlier_data)
            kind, _, _ = connection.option(option, data)
            if kind not in wanted:
                return f"reply {kind:#x}, wanted {' or '.join(f'{w:#x}' for w in wanted)}"
            kind, _, _ = connection.option(OPT["LIST"])
            if kind != ACK:
                return f"the next option (LIST) got {kind:#x}"
            return None
    return probe


def expect_close(target, raw, client_flags=3):
    """These bytes end the connection."""
    def probe():
        with Connection(target, client_flags) as connection:
            try:
                connection.send(raw)
                while True:
                    connection.receive(1)
            except Closed:
                return None
    return probe


def negotiation(target, report):
    export = target.export
    name = export.encode()
    counted = struct.pack(">I", len(name)) + name
    invalid = [
        ("GO without data", OPT["GO"], b""),
        ("GO, name longer than the data", OPT["GO"], struct.pack(">I", 2**32 - 1) + name),
        ("GO without info count", OPT["GO"], counted),
        ("GO, info count too high", OPT["GO"], counted + b"\0\5"),
        ("GO, trailing bytes", OPT["GO"], counted + b"\0\0\0\0"),
        ("INFO, trailing bytes", OPT["INFO"], counted + b"\0\0\0\0"),
        ("LIST with data", OPT["LIST"], b"x"),
        ("STRUCTURED_REPLY with data", OPT["STRUCTURED_REPLY"], b"x"),
        ("SET_META before STRUCTURED_REPLY", OPT["SET_META"], meta_data(export, b"base:allocation")),
    ]
    for title, option, data in invalid:
        report.check(title, expect_option(target, option, data, [INVALID]))
    structured = [(OPT["STRUCTURED_REPLY"], b"")]
    truncated = meta_data(export, b"base:allocation")[:-3]
    for option in (OPT["SET_META"], OPT["LIST_META"]):
        report.check(f"truncated query in option {option}",
                     expect_option(target, option, truncated, [INVALID], structured))
        report.check(f"unknown namespace in option {option}",
                     expect_option(target, option, meta_data(export, b"x-none:y"), [ACK], structured))
    unknown = "no such export, certainly"
    for option in (OPT["GO"], OPT["INFO"]):
        report.check(f"unknown export in option {option}",
                     expect_option(target, option, open_data(unknown), [UNKNOWN]))
    if target.refused:
        report.check("refused export", expect_option(target, OPT["GO"], open_data(target.refused),
                                                     [POLICY, SHUTDOWN]))
    report.check("STARTTLS without TLS",
                 expect_option(target, OPT["STARTTLS"], b"", [POLICY, UNSUP]))
    for option in (0, OPT["PEEK_EXPORT"], OPT["EXTENDED_HEADERS"], 4711, 2**32 - 1):
        report.check(f"unknown option {option}", expect_option(target, option, b"x" * 300, [UNSUP]))
    report.check("unknown option of 64 KiB",
                 expect_option(target, 4711, b"x" * 65536, [UNSUP, TOO_BIG]))
    header = struct.pack(">QII", OPTION_MAGIC, 4711, 2**31)
    report.check("option of 2 GiB", expect_close(target, header))
    report.check("bad option magic", expect_close(target, b"\0" * 16))
    report.check("unknown client flags", expect_close(target, b"", client_flags=0x83))
    report.check("EXPORT_NAME of an unknown export", expect_close(
        target, struct.pack(">QII", OPTION_MAGIC, OPT["EXPORT_NAME"], 4) + b"\xff\xfe\0!"))

    def abort():
        with Connection(target) as connection:
            kind, _, _ = connection.option(OPT["ABORT"])
            if kind != ACK:
                return f"reply {kind:#x}"
            try:
                connection.receive(1)
            except Closed:
                return None
            return "more bytes after the ACK of ABORT"
    report.check("ABORT", abort)

    def dribble():
        with Connection(target) as connection:
            data = open_data(export)
            for byte in struct.pack(">QII", OPTION_MAGIC, OPT["GO"], len(data)) + data[:-1]:
                connection.send(bytes([byte]))
            connection.send(data[-1:])
            magic = struct.unpack(">Q", connection.receive(8))[0]
            return None if magic == 0x3E889045565A9 else f"option reply magic {magic:#x}"
    report.check("GO byte by byte", dribble)


def open_export(target, export, structured, context):
    connection = Connection(target)
    if structured:
        if connection.option(OPT["STRUCTURED_REPLY"])[0] != ACK:
            raise Wrong("structured replies were refused")
        connection.structured = True
    if context:
        if connection.option(OPT["SET_META"], meta_data(export, b"base:allocation"))[0] != ACK:
            raise Wrong("SET_META_CONTEXT was refused")
    return connection.go(export)


def bad_requests(connection, context):
    """Rows: title, command, flags, offset, length, errors that are right (0 is success)."""
    size, flags, unit = connection.size, connection.flags, connection.unit
    structured = connection.structured
    rows = [
        ("READ past the end", READ, 0, size, unit, [EINVAL]),
        ("READ over the end", READ, 0, size - unit, 2 * unit, [EINVAL]),
        ("READ that wraps", READ, 0, U64 - unit + 1, 2 * unit, [EINVAL]),
        ("WRITE past the end", WRITE, 0, size, unit, [ENOSPC]),
        ("WRITE over the end", WRITE, 0, size - unit, 2 * unit, [ENOSPC]),
        ("WRITE that wraps", WRITE, 0, U64 - unit + 1, 2 * unit, [ENOSPC]),
        ("WRITE of 32 MiB past the end", WRITE, 0, size, 32 * MIB, [ENOSPC]),
        ("READ of nothing", READ, 0, 0, 0, [0]),
        ("WRITE of nothing", WRITE, 0, 0, 0, [0]),
        ("READ of 33 MiB", READ, 0, 0, 33 * MIB, [EINVAL, EOVERFLOW]),
        ("READ of 4 GiB - unit", READ, 0, 0, 2**32 - unit, [EINVAL, EOVERFLOW]),
        ("FLUSH with an offset", FLUSH, 0, unit, 0, [EINVAL]),
        ("FLUSH with a length", FLUSH, 0, 0, unit, [EINVAL]),
        ("FLUSH with FUA", FLUSH, FUA, 0, 0, [0]),
        ("READ with FUA", READ, FUA, 0, unit, [0]),
        ("RESIZE", RESIZE, 0, size, 0, [EINVAL]),
        ("unknown command", 4711, 0, 0, unit, [EINVAL]),
        ("unknown command 65535", 65535, 65535, U64, 2**32 - 1, [EINVAL]),
    ]
    for command, name in ((READ, "READ"), (WRITE, "WRITE"), (FLUSH, "FLUSH")):
        length = 0 if command == FLUSH else unit
        for bit in range(1, 16):
            if command == READ and bit == 2 and structured:
                continue
            rows.append((f"{name} with flag {1 << bit:#x}", command, 1 << bit, 0, length, [EINVAL]))
    if structured:
        rows.append(("READ with DF", READ, DF, 0, 65536, [0]))
    for feature, command, name, past in ((T_TRIM, TRIM, "TRIM", EINVAL),
                                         (T_ZEROES, ZEROES, "WRITE_ZEROES", ENOSPC),
                                         (T_CACHE, CACHE, "CACHE", EINVAL)):
        if not flags & feature:
            rows.append((f"{name}, not offered", command, 0, 0, unit, [EINVAL]))
            continue
        rows += [
            (f"{name} past the end", command, 0, size, unit, [past]),
            (f"{name} over the end", command, 0, size - unit, 2 * unit, [past]),
            (f"{name} that wraps", command, 0, U64 - unit + 1, 2 * unit, [past]),
            (f"{name} of nothing", command, 0, 0, 0, [0]),
            (f"{name} with DF", command, DF, 0, unit, [EINVAL]),
            (f"{name} with REQ_ONE", command, REQ_ONE, 0, unit, [EINVAL]),
            (f"{name} with flag 0x8000", command, 0x8000, 0, unit, [EINVAL]),
        ]
    if flags & T_CACHE:
        rows.append(("CACHE with FUA", CACHE, FUA, 0, unit, [EINVAL]))
    if flags & T_TRIM:
        rows.append(("TRIM with NO_HOLE", TRIM, NO_HOLE, 0, unit, [EINVAL]))
    if not flags & T_FAST_ZERO:
        rows.append(("FAST_ZERO, not offered", ZEROES, FAST_ZERO, 0, unit, [EINVAL]))
    if context:
        rows += [
            ("BLOCK_STATUS past the end", STATUS, 0, size, unit, [EINVAL]),
            ("BLOCK_STATUS over the end", STATUS, 0, size - unit, 2 * unit, [EINVAL]),
            ("BLOCK_STATUS that wraps", STATUS, 0, U64 - unit + 1, 2 * unit, [EINVAL]),
            ("BLOCK_STATUS of nothing", STATUS, 0, 0, 0, [EINVAL]),
            ("BLOCK_STATUS with NO_HOLE", STATUS, NO_HOLE, 0, unit, [EINVAL]),
            ("BLOCK_STATUS with REQ_ONE", STATUS, REQ_ONE, 0, unit, [0]),
        ]
    else:
        rows.append(("BLOCK_STATUS without a context", STATUS, 0, 0, unit, [EINVAL]))
    return rows


def probe_request(connection, row, edges):
    """Sends one bad request, then good ones."""
    _, command, flags, offset, length, wanted = row
    cookie = 0xBAD0000000000000 | length
    payload = b"\xbb" * length if command == WRITE else b""
    connection.request(command, flags, offset, length, cookie, payload)
    # A server that serves what it should refuse must not bring us out of step.
    size = length if command == READ and length <= 64 * MIB else 0
    error, _ = connection.replies({cookie: (command, offset, size)})[cookie]
    if connection.edges() != edges:
        return "the data of the export changed"
    if error not in wanted:
        return f"error {error}, wanted {' or '.join(map(str, wanted))}"
    return None


def probe_burst(connection, rows):
    """Sends all these requests at once: none may bring the stream out of step."""
    sent = {}
    burst = b""
    for number, (_, command, flags, offset, length, _) in enumerate(rows):
        burst += struct.pack(">IHHQQI", 0x25609513, flags, command, number, offset, length)
        burst += b"\xbb" * length if command == WRITE else b""
        sent[number] = (command, offset, length if command == READ else 0)
    connection.send(burst)
    for number, (error, _) in connection.replies(sent).items():
        if error not in rows[number][5]:
            return f"{rows[number][0]}: error {error}"
    return None


def transmission(target, report):
    for structured, context in ((False, False), (True, False), (True, True)):
        mode = "context" if context else "structured" if structured else "simple"

        def reopen(structured=structured, context=context):
            return open_export(target, target.export, structured, context)
        connection = reopen()
        if target.size is not None and connection.size != target.size:
            raise Wrong(f"the export has {connection.size} bytes, wanted {target.size}")
        if connection.flags & T_READ_ONLY:
            raise Wrong("--export is read-only; name it in --read-only")
        edges = connection.edges()
        rows = bad_requests(connection, context)
        for row in rows:
            def probe(row=row):
                nonlocal connection
                try:
                    return probe_request(connection, row, edges)
                except (Closed, Wrong, socket.timeout):
                    connection.socket.close()
                    try:
                        connection = reopen()
                    except (OSError, Closed) as error:
                        raise ServerGone(f"after {row[0]} ({mode}) it is gone") from error
                    raise
            report.check(f"{row[0]} ({mode})", probe)
        small = [row for row in rows if row[1] not in (READ, WRITE) or row[4] <= MIB]
        report.check(f"all in one burst ({mode})", lambda: probe_burst(connection, small))
        connection.socket.close()
        for title, header in fatal_requests():
            with reopen() as fresh:
                def fatal(fresh=fresh, header=header):
                    fresh.send(header)
                    return closes(fresh)
                report.check(f"{title} ({mode})", fatal)
        with reopen() as after:
            same = after.edges() == edges
            report.check(f"data unchanged ({mode})", lambda: None if same else "they changed")


def fatal_requests():
    request = ">IHHQQI"
    return [
        ("DISC", struct.pack(request, 0x25609513, 0, DISC, 1, 0, 0)),
        ("bad request magic", struct.pack(request, 0x25609514, 0, READ, 1, 0, 512)),
        ("option magic as a request", struct.pack(">QIIQI", OPTION_MAGIC, 3, 0, 0, 0)),
        ("WRITE of 4 GiB - 1", struct.pack(request, 0x25609513, 0, WRITE, 1, 0, 2**32 - 1)),
    ]


def closes(connection):
    try:
        got = connection.receive(1)
    except Closed:
        return None
    return f"the connection goes on with {got!r}"


def read_only(target, report):
    for structured in (False, True):
        with open_export(target, target.read_only, structured, False) as connection:
            if not connection.flags & T_READ_ONLY:
                raise Wrong("--read-only names an export that is writable")
            edges = connection.edges()
            for command, name in ((WRITE, "WRITE"), (TRIM, "TRIM"), (ZEROES, "WRITE_ZEROES")):
                row = (name, command, 0, 0, connection.unit, [EPERM])
                report.check(f"{name} on a read-only export",
                             lambda row=row: probe_request(connection, row, edges))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix", metavar="PATH")
    where.add_argument("--tcp", metavar="HOST:PORT")
    parser.add_argument("--export", required=True, metavar="NAME")
    parser.add_argument("--size", type=int, metavar="BYTES", help="the size it must have")
    parser.add_argument("--read-only", metavar="NAME", help="an export that must refuse writes")
    parser.add_argument("--refused", metavar="NAME", help="an export that must be refused by GO")
    target = parser.parse_args()
    report = Report()
    try:
        negotiation(target, report)
        transmission(target, report)
        if target.read_only:
            read_only(target, report)
    except (OSError, Closed, Wrong, ServerGone) as error:
        print(f"nbd_bad_input: cannot go on: {error or 'the server closed the connection'}")
        return 1 if report.bad or isinstance(error, ServerGone) else 2
    print(f"{report.good} right, {report.bad} wrong")
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
