"""A real HTTP server on the loopback address, with faults on demand."""

import contextlib
import gzip
import hashlib
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY = bytes(range(256)) * 4000
HASH = hashlib.sha256(BODY).hexdigest()


class Site(ThreadingHTTPServer):
    """Serves `body` under every path; each request takes the next fault, if one is left.

    A fault is a status code, a redirect's address, "cut" (half of the declared bytes), "no range"
    (all bytes, whatever the range), "wait" (a second first), "stall" (half, then nothing), "reset"
    (half, then a reset connection), "long" and "short" (10 bytes more or fewer declared than sent),
    "chunks" (half, chunked, without a length), "other range" (not the requested one), "gzip"
    (compressed, although identity was requested), "other etag" and "other length" (of the complete
    file), "noise" (not HTTP), "many headers", "long header" (of 70 000 bytes), "trickle" (a byte
    in 10 ms), "slow headers" (a line in 50 ms), "trailers" (all bytes, then trailers without end),
    "long redirect" (whose body has no end) or "few" (10 bytes of the rest). `asked` holds the Range
    of each request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.body, self.etag = BODY, '"one"'
        self.faults: list[int | str] = []
        self.asked: list[str | None] = []
        self.endless = 0  # bytes sent of what has no end
        self.url = f"http://127.0.0.1:{self.server_port}/models/net.pkl"
        self.released = threading.Event()  # lets stalled replies continue

    def handle_error(self, *_): ...  # clients that disconnect


class Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        """As the hub does: the commit, the hash and the length of a file."""
        self.send_response(200)
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{HASH}"')
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()

    def do_GET(self):
        site = self.server
        asked = self.headers["Range"]
        site.asked.append(asked)
        fault = site.faults.pop(0) if site.faults else None
        if isinstance(fault, int):
            return self.send_error(fault)
        if fault == "wait":
            threading.Event().wait(1.0)
        if fault == "noise":
            return self.wfile.write(b"220 this is mail\r\n")
        if fault == "slow headers":
            return self.send_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", pause=0.05)
        if fault == "trailers":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n"
            return self.send_for_ever(head % (len(site.body), site.body), b"X: 1\r\n", pause=0.05)
        if fault == "long redirect":
            head = f"HTTP/1.1 302 Found\r\nLocation: {site.url}\r\n\r\n"
            return self.send_for_ever(head.encode(), bytes(1 << 16))
        if isinstance(fault, str) and "/" in fault:
            self.send_response(302)
            self.send_header("Location", fault)
            return self.end_headers()
        start = 0
        if asked and self.headers["If-Range"] == site.etag and fault != "no range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if fault == "other range":
            start = 7
        rest, size = site.body[start:], len(site.body)
        if fault == "gzip":
            rest = gzip.compress(rest)
        self.send_response(416 if start and not rest else 206 if start else 200)
        if start:
            sent = f"{start}-{size - 1}" if rest else "*"
            full = size - 5 if fault == "other length" else size
            self.send_header("Content-Range", f"bytes {sent}/{full}")
        if fault == "many headers":
            for number in range(1000):
                self.send_header(f"X-{number}", "1")
        if fault == "long header":
            self.send_header("X-Long", "1" * 70_000)
        self.send_header("ETag", '"other"' if fault == "other etag" else site.etag)
        if fault == "gzip":
            self.send_header("Content-Encoding", "gzip")
        if fault == "chunks":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            declared = len(rest) + {"long": 10, "short": -10}.get(fault, 0)
            self.send_header("Content-Length", str(declared))
        self.end_headers()
        half = rest[: len(rest) // 2]
        if fault == "few":
            half = rest[:10]
        if fault == "chunks":
            half = b"%x\r\n%b\r\n" % (len(half), half)
        for number in range(len(rest) if fault == "trickle" else 0):
            self.wfile.write(rest[number : number + 1])
            if site.released.wait(0.01):
                return
        self.wfile.write(half if fault in ("cut", "stall", "reset", "chunks", "few") else rest)
        if fault == "stall":
            site.released.wait(60)
        if fault == "reset":
            linger = struct.pack("ii", 1, 0)  # close at once: the client receives RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def send_for_ever(self, start, piece, pause=0.0):
        self.wfile.write(start)
        self.close_connection = True
        with contextlib.suppress(OSError):
            while not self.server.released.wait(pause):
                self.wfile.write(piece)
                self.server.endless += len(piece)

    def log_message(self, *_): ...
