"""The HTTP source and sink that probes measure against: a thread per connection, bounded in number.

Threads and blocking waits suit it: the kernel moves the bytes and Python's lock is free meanwhile, so a few streams
fill 10 Gbit/s; an event loop would have to be woken for every buffer of every stream.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import ipaddress
import logging
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final

from probe.flows.bulk.random_source import random_source
from probe.flows.bulk.tls_wire import TlsWire
from probe.flows.bulk.wire import PlainWire
from probe.peer.http_connection import Connection, Limits, busy_head
from probe.peer.server_tls import ServerTls

_LOG = logging.getLogger(__name__)

_SOURCE_BYTES: Final = 8 << 20
_BACKLOG: Final = 128
_NOTSENT_BYTES: Final = 512 * 1024  # keeps the memory of a slow client's connection small
_TCP_NOTSENT_LOWAT: Final = 25  # linux/tcp.h
_STOP_S: Final = 1.0
# What accept() fails with at once while the host lacks something, and would spin (accept(2)).
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_NO_DESCRIPTORS_PAUSE_S: Final = 0.2
# Each connection that ends frees what the next one takes: only without a shortage for as long is it over.
_CALM_S: Final = 10.0
_V6_CLIENT_PREFIX: Final = 64  # one IPv6 client owns a whole /64


@dataclass(slots=True)
class PeerCounters:
    """What became of the connections."""

    accepted: int = 0
    refused: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class HttpPeer:
    """Serves `GET /download`, `POST /upload` and `GET /info`.

    Attributes:
        port: where it listens, once started.
        counters: what it did so far; the bytes are those of finished connections.
    """

    def __init__(self, limits: Limits | None = None, version: str = "", tls: ServerTls | None = None) -> None:
        self.port = 0
        self.counters = PeerCounters()
        self._limits, self._version, self._tls = limits or Limits(), version, tls
        self._listeners: list[socket.socket] = []
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._per_address: collections.Counter[str] = collections.Counter()
        self._full = self._is_short = False
        self._short_at_s = 0.0
        self._stopping = threading.Event()
        self._wake: int | None = None
        self._source: int | None = None
        self._acceptor: threading.Thread | None = None

    def start(self, host: str, port: int) -> None:
        """Listen on `host`; empty means every address of IPv4 and, where there is one, IPv6. Port 0: any free one.

        Raises:
            OSError: the address is not ours, or in use.
        """
        self._listeners = open_listeners(host, port)
        self.port = self._listeners[0].getsockname()[1]
        self._source = random_source(_SOURCE_BYTES)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping.clear()
        self._acceptor = threading.Thread(target=self._accept_all, name="http-peer", daemon=True)
        self._acceptor.start()
        _LOG.info("HTTP peer started on %s port %d", host or "every address", self.port)

    def stop(self) -> None:
        """Close everything within a second. Stopping twice, or before a start, does nothing."""
        if self._acceptor is None or self._wake is None or self._source is None:
            return
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        self._acceptor.join(_STOP_S)
        self._end_connections()
        for listener in self._listeners:
            listener.close()
        os.close(self._wake)
        os.close(self._source)
        self._acceptor = self._wake = self._source = None
        _LOG.info("HTTP peer stopped: %s", self.counters)

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._connections)

    def _end_connections(self) -> None:
        with self._lock:
            threads = list(self._connections.values())
            for connection in self._connections:
                with contextlib.suppress(OSError):  # gone already
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes its thread
        deadline_s = time.monotonic() + _STOP_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _accept_all(self) -> None:
        waiting = select.poll()
        for listener in self._listeners:
            waiting.register(listener, select.POLLIN)
        waiting.register(self._wake or 0, select.POLLIN)
        by_number = {listener.fileno(): listener for listener in self._listeners}
        while not self._stopping.is_set():
            for number, _ in waiting.poll():
                if number in by_number:
                    self._accept_one(by_number[number])

    def _accept_one(self, listener: socket.socket) -> None:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _SHORTAGES:
                self._note_shortage(error)
                self._stopping.wait(_NO_DESCRIPTORS_PAUSE_S)
            return  # else the client left meanwhile
        client = client_of(address[0])
        if not self._admit(client):
            _send_away(sock, says_why=self._tls is None)
            return
        self._begin(sock, client)

    def _admit(self, client: str) -> bool:
        """Count the client in, unless the peer or the client's share is full."""
        with self._lock:
            total = self._per_address.total()
            full = total >= self._limits.connections
            if full != self._full:
                self._full = full
                _LOG.log(logging.WARNING if full else logging.INFO, "peer %s", "became full" if full else "has room")
            if full or self._per_address[client] >= self._limits.connections_per_address:
                self.counters.refused += 1
                return False
            self._per_address[client] += 1
            self.counters.accepted += 1
            return True

    def _begin(self, sock: socket.socket, client: str) -> None:
        wire = PlainWire(sock) if self._tls is None else TlsWire(sock, self._tls)
        connection = Connection(sock, self._limits, self._version, (self._source or 0, _SOURCE_BYTES), wire)
        thread = threading.Thread(target=self._serve, args=(connection, client), name="http-peer", daemon=True)
        with self._lock:
            self._connections[connection] = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads on this host
            self._note_shortage(error)
            self._end(connection, client)
            return
        self._note_shortage(None)

    def _note_shortage(self, error: Exception | None) -> None:
        """Log once that this host has no means to serve a connection, and once that it has had them for a while."""
        now_s = time.monotonic()
        if error is not None:
            if not self._is_short:
                _LOG.warning("connections cannot be served, for want of descriptors, memory or threads: %s", error)
            self._is_short, self._short_at_s = True, now_s
        elif self._is_short and now_s - self._short_at_s >= _CALM_S:
            _LOG.info("connections are served again")
            self._is_short = False

    def _serve(self, connection: Connection, client: str) -> None:
        try:
            connection.serve()
        finally:
            self._end(connection, client)

    def _end(self, connection: Connection, client: str) -> None:
        with self._lock:
            del self._connections[connection]
            self._per_address[client] -= 1
            if not self._per_address[client]:
                del self._per_address[client]
            self.counters.sent_bytes += connection.sent_bytes
            self.counters.received_bytes += connection.received_bytes
            connection.wire.close()
            connection.sock.close()


def open_listeners(host: str, port: int) -> list[socket.socket]:
    """Listening sockets: one for an address, one for each family of this host for none.

    Raises:
        OSError: the address is not ours, or in use.
    """
    if host:
        version = ipaddress.ip_address(host).version
        return [_listen(socket.AF_INET6 if version == 6 else socket.AF_INET, host, port)]  # noqa: PLR2004 - IPv6
    listeners = [_listen(socket.AF_INET, "0.0.0.0", port)]  # noqa: S104 - a peer is there for everybody
    try:
        listeners.append(_listen(socket.AF_INET6, "::", listeners[0].getsockname()[1]))
    except OSError as error:
        if not is_without_ipv6(error):
            listeners[0].close()
            raise
    return listeners


def is_without_ipv6(error: OSError) -> bool:
    """Whether an IPv6 address could not be opened because the host has no IPv6, or has it switched off."""
    return error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the end of a part waits for no acknowledgement
        with contextlib.suppress(OSError):  # accepted sockets inherit it; BBR would hide the line's buffers
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def client_of(address: str) -> str:
    """Whose share a connection counts against: an IPv4 address, or an IPv6 /64."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 4:  # noqa: PLR2004 - IPv4
        return str(parsed)
    return str(ipaddress.ip_network((parsed, _V6_CLIENT_PREFIX), strict=False))


def _send_away(sock: socket.socket, *, says_why: bool) -> None:
    """Answer 503 without a thread, where a handshake need not come first; what the client sends is not waited for."""
    with contextlib.closing(sock), contextlib.suppress(OSError):
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        if says_why:
            sock.send(busy_head())
        sock.shutdown(socket.SHUT_WR)
        sock.recv(_BACKLOG)
