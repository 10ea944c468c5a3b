"""A server of LibreSpeed's protocol, in the manners of its backends: no registry here has the project's own.

What was read of each: what `garbage` and `empty` answer, with which framing, and when they close.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import urllib.parse
from typing import Literal, Self

from bulk_rig import Scripted, server_context
from certificates import Pair

MIB = 1 << 20
_CHUNKS_DEFAULT = 4
_CHUNKS_MAX = 1024
_RANDOM = os.urandom(MIB)

# php: nginx before PHP-FPM, HTTP/1.1 bodies in chunks, the answer to a POST too, its end in a segment of its own;
# go: `net/http`, chunks of what was written for HTTP/1.1 and none for 1.0, an empty answer with a length;
# rust: chunks of 1 MiB whatever the version of HTTP, and the connection stays open.
Manner = Literal["php", "go", "rust"]


class LibreSpeedServer:
    """Serves `/backend/garbage.php`, `/backend/empty.php` and `/backend/getIP.php` on a free port of 127.0.0.1.

    Attributes:
        requests: the request lines so far.
        garbage_bytes: of the bodies sent, without their framing.
        posted_bytes: of the bodies received.
    """

    def __init__(self, manner: Manner = "php", tls: Pair | None = None, *, post_bytes_max: int = 20 * MIB) -> None:
        self.requests: list[str] = []
        self.garbage_bytes = self.posted_bytes = 0
        self._manner, self._post_bytes_max = manner, post_bytes_max
        self._lock = threading.Lock()
        self._scripted = Scripted(self._serve, None if tls is None else server_context(tls))
        self.port = self._scripted.port

    @property
    def accepted(self) -> int:
        """How many connections there were."""
        return self._scripted.accepted

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._scripted.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection."""
        self._scripted.__exit__()

    def _serve(self, sock: socket.socket, _number: int) -> None:
        received = b""
        with contextlib.suppress(ssl.SSLError):
            while True:
                while b"\r\n\r\n" not in received:
                    part = sock.recv(65536)
                    if not part:
                        return
                    received += part
                head, _, received = received.partition(b"\r\n\r\n")
                lines = head.decode("ascii").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:])
                with self._lock:
                    self.requests.append(lines[0])
                method, target, version = lines[0].split(" ")
                path, _, query = target.partition("?")
                if method == "GET" and path == "/backend/garbage.php":
                    self._garbage(sock, query, version)
                elif method == "POST" and path == "/backend/empty.php":
                    received = self._empty(sock, int(headers["content-length"]), received)
                elif method == "GET" and path == "/backend/getIP.php":
                    _answer(sock, "200 OK", b'{"processedString":"127.0.0.1 - localhost IPv4 access"}')
                else:
                    _answer(sock, "404 Not Found", b"")
                    return
                if version == "HTTP/1.0" and self._manner != "rust":
                    return

    def _garbage(self, sock: socket.socket, query: str, version: str) -> None:
        wanted = urllib.parse.parse_qs(query).get("ckSize", [""])[0]
        chunks = min(int(wanted), _CHUNKS_MAX) if wanted.isdigit() and int(wanted) else _CHUNKS_DEFAULT
        is_chunked = version == "HTTP/1.1" or self._manner == "rust"
        framing = "Transfer-Encoding: chunked" if is_chunked else "Connection: close"
        sock.sendall(
            "HTTP/1.1 200 OK\r\nContent-Description: File Transfer\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Disposition: attachment; filename=random.dat\r\n{framing}\r\n\r\n".encode()
        )
        for _ in range(chunks):
            sock.sendall(b"%x\r\n%b\r\n" % (MIB, _RANDOM) if is_chunked else _RANDOM)
            with self._lock:
                self.garbage_bytes += MIB
        if is_chunked:
            sock.sendall(b"0\r\n\r\n")

    def _empty(self, sock: socket.socket, length_bytes: int, received: bytes) -> bytes:
        if length_bytes > self._post_bytes_max:
            _answer(sock, "413 Request Entity Too Large", b"<html>")
            raise ConnectionAbortedError
        rest_bytes = length_bytes - len(received)
        while rest_bytes > 0:
            part = sock.recv(min(rest_bytes, 1 << 18))
            if not part:
                raise ConnectionAbortedError
            rest_bytes -= len(part)
        with self._lock:
            self.posted_bytes += length_bytes
        if self._manner == "php":
            sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n")
            threading.Event().wait(0.01)
            sock.sendall(b"0\r\n\r\n")
        else:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n")
        return received[length_bytes:]


def _answer(sock: socket.socket, status: str, body: bytes) -> None:
    sock.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
