"""Servers that go wrong in one way each, at a port of its own: real sockets, so that the kernel's part is real too.

    python faulty_servers.py ADDRESS CERTIFICATES

Says "ready" once all of them listen. Each connection is a thread, and each wait of a thread has an end.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

_LINGER_RESET = struct.pack("ii", 1, 0)
# Enough for a transfer to be under way, too little to fill a line's buffer for long.
_PART_BYTES = 300_000
_BODY_BYTES = 1 << 30
_HELD_S = 30.0
_HEAD = f"HTTP/1.1 200 OK\r\nContent-Length: {_BODY_BYTES}\r\n\r\n".encode()


class Tcp(IntEnum):
    """What goes wrong at which TCP port. Nobody listens at `NOBODY`."""

    NOBODY = 9000
    SILENT = 9001
    STALLS = 9002
    RESETS = 9003
    ENDS_EARLY = 9004
    REDIRECTS = 9005
    NO_HTTP = 9006
    BUSY = 9007
    NOT_FOUND = 9008
    CLOSES = 9009
    RESETS_AT_ONCE = 9010
    LOGIN_PAGE = 9011
    TLS_EXPIRED = 9443
    TLS_WRONG_NAME = 9444
    TLS_SELF_SIGNED = 9445
    TLS_SILENT = 9446
    TLS_PLAIN = 9447
    TLS_CLOSES = 9448
    TLS_GOOD = 9449
    TLS_STALLS = 9450
    TLS_DNS = 9451


class Udp(IntEnum):
    """What goes wrong at which UDP port. Nobody listens at `NOBODY`."""

    NOBODY = 9100
    SILENT = 9101
    RUBBISH = 9102
    DNS_NO_SUCH_NAME = 9103
    DNS_FAILURE = 9104
    DNS_REFUSED = 9105
    DNS_LIES = 9106


def _read_head(sock: socket.socket) -> bytes:
    """The request's head, and what came of the body with it."""
    received = b""
    while b"\r\n\r\n" not in received:
        part = sock.recv(65_536)
        if not part:
            break
        received += part
    return received


def _begin(sock: socket.socket) -> bool:
    """Answer, and move a part: towards a GET, or from a POST. Gives whether it was a POST."""
    head = _read_head(sock)
    if not head.startswith(b"POST"):
        sock.sendall(_HEAD + bytes(_PART_BYTES))
        return False
    moved_bytes = 0
    while moved_bytes < _PART_BYTES and (part := sock.recv(65_536)):
        moved_bytes += len(part)
    return True


def _hold(sock: socket.socket) -> None:
    """Until the other side goes; what it sends is taken only as far as the socket's buffer does it."""
    with contextlib.suppress(OSError):
        sock.settimeout(_HELD_S)
        while sock.recv(1, socket.MSG_PEEK):
            threading.Event().wait(0.05)
            if _is_over(sock):
                return


def _is_over(sock: socket.socket) -> bool:
    """Whether TCP has left ESTABLISHED (the first byte of TCP_INFO is 1)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) != b"\x01"


def _reset(sock: socket.socket) -> None:
    """Close with RST, and before the server's own end, which would say FIN first."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def silent(sock: socket.socket) -> None:
    """Accept, and no more."""
    _hold(sock)


def stalls(sock: socket.socket) -> None:
    """Stop in the middle of the body."""
    _begin(sock)
    _hold(sock)


def resets(sock: socket.socket) -> None:
    """Reset in the middle of the body."""
    _begin(sock)
    threading.Event().wait(0.3)  # what was sent arrives first: a reset throws away what is still queued
    _reset(sock)


def ends_early(sock: socket.socket) -> None:
    """Close in the middle of the body, as if that were all."""
    _begin(sock)


def closes(sock: socket.socket) -> None:
    """Take the request, and close without an answer."""
    _read_head(sock)


def resets_at_once(sock: socket.socket) -> None:
    """Reset instead of an answer."""
    _read_head(sock)
    _reset(sock)


def says(*lines: str, body: str = "") -> Callable[[socket.socket], None]:
    """Answer every request with this."""
    answer = "\r\n".join([*lines, f"Content-Length: {len(body)}", "Connection: close", "", body]).encode()

    def answering(sock: socket.socket) -> None:
        _read_head(sock)
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        _hold_short(sock)

    return answering


def _hold_short(sock: socket.socket) -> None:
    """Read away what still comes, so that closing does not reset the answer."""
    with contextlib.suppress(OSError):
        sock.settimeout(1.0)
        while sock.recv(65_536):
            pass


def no_http(sock: socket.socket) -> None:
    """Another protocol speaks first."""
    sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    _hold_short(sock)


def plain(sock: socket.socket) -> None:
    """Take whatever comes for a bad request of HTTP, as a server does that was never told of TLS."""
    sock.recv(65_536)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    sock.shutdown(socket.SHUT_WR)
    _hold_short(sock)


def resolves(sock: socket.socket) -> None:
    """Answer one question over a stream (RFC 7858) with nothing but that the name exists."""
    question = sock.recv(65_536)
    answer = dns_answer(question[2:], 0)
    sock.sendall(struct.pack("!H", len(answer)) + answer)
    _hold_short(sock)


LOGIN = "<html><form action='http://login.portal.test/'>Log in to use this network</form></html>"
PLAIN: dict[Tcp, Callable[[socket.socket], None]] = {
    Tcp.SILENT: silent,
    Tcp.STALLS: stalls,
    Tcp.RESETS: resets,
    Tcp.ENDS_EARLY: ends_early,
    # A captive portal, in both of its manners.
    Tcp.REDIRECTS: says("HTTP/1.1 302 Found", "Location: http://login.portal.test/?from=probe"),
    Tcp.LOGIN_PAGE: says("HTTP/1.1 200 OK", "Content-Type: text/html", body=LOGIN),
    Tcp.NO_HTTP: no_http,
    Tcp.BUSY: says("HTTP/1.1 503 Service Unavailable"),
    Tcp.NOT_FOUND: says("HTTP/1.1 404 Not Found"),
    Tcp.CLOSES: closes,
    Tcp.RESETS_AT_ONCE: resets_at_once,
    Tcp.TLS_SILENT: silent,
    Tcp.TLS_PLAIN: plain,
    Tcp.TLS_CLOSES: lambda _: None,
}
SECURE: dict[Tcp, tuple[str, Callable[[socket.socket], None]]] = {
    Tcp.TLS_EXPIRED: ("expired", stalls),
    Tcp.TLS_WRONG_NAME: ("wrong-name", stalls),
    Tcp.TLS_SELF_SIGNED: ("self", stalls),
    Tcp.TLS_GOOD: ("good", says("HTTP/1.1 200 OK", "Content-Type: text/plain", body="the page")),
    Tcp.TLS_STALLS: ("good", stalls),
    Tcp.TLS_DNS: ("good", resolves),
}


def dns_answer(question: bytes, rcode: int) -> bytes:
    """The question's header and question section, answered with an error (RFC 1035 section 4.1.1)."""
    flags = 0x8180 | rcode
    # Of what may follow the question (EDNS) nothing is repeated: one question, nothing else.
    end = question.index(b"\0", 12) + 5
    return question[:2] + struct.pack("!HHHHH", flags, 1, 0, 0, 0) + question[12:end]


DATAGRAMS: dict[Udp, Callable[[bytes], bytes | None]] = {
    Udp.SILENT: lambda _: None,
    Udp.RUBBISH: lambda datagram: bytes(255 - byte for byte in datagram),
    Udp.DNS_NO_SUCH_NAME: lambda question: dns_answer(question, 3),
    Udp.DNS_FAILURE: lambda question: dns_answer(question, 2),
    Udp.DNS_REFUSED: lambda question: dns_answer(question, 5),
    # Its identifier and its question are right, and what follows is cut off.
    Udp.DNS_LIES: lambda question: question[:2] + struct.pack("!HHHHH", 0x8180, 1, 9, 0, 0) + question[12:],
}


class _Connections(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


class _Datagrams(socketserver.ThreadingUDPServer):
    allow_reuse_address = True
    daemon_threads = True


def _handler(
    serve: Callable[[socket.socket], None], context: ssl.SSLContext | None
) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        served: ClassVar[Any] = staticmethod(serve)

        def handle(self) -> None:
            sock: socket.socket = self.request
            with contextlib.suppress(OSError):  # the client goes when it has seen enough
                sock.settimeout(_HELD_S)
                if context is None:
                    self.served(sock)
                    return
                with context.wrap_socket(sock, server_side=True) as secure:
                    self.served(secure)

    return Handler


def _datagram_handler(answer: Callable[[bytes], bytes | None]) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            datagram, sock = self.request
            reply = answer(datagram)
            if reply is not None:
                sock.sendto(reply, self.client_address)

    return Handler


def _context(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


def main(address: str, folder: Path) -> None:
    """Serve until killed."""
    servers: list[socketserver.BaseServer] = [
        *(_Connections((address, port), _handler(serve, None)) for port, serve in PLAIN.items()),
        *(
            _Connections((address, port), _handler(serve, _context(folder, name)))
            for port, (name, serve) in SECURE.items()
        ),
        *(_Datagrams((address, port), _datagram_handler(answer)) for port, answer in DATAGRAMS.items()),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)  # noqa: T201 - the test waits for it
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
