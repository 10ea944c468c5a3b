"""What the tests of bulk transfer share: a short order over loopback, and servers that do as a script says."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest
from certificates import Pair

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.bulk.run import Transfer
from probe.flows.bulk.stream import Direction, Order
from probe.flows.bulk.transfer import transfer
from probe.flows.bulk.wire import TlsTerms
from probe.links import Link
from probe.messages import BULK_PATHS, BulkProtocol, FailureKind, Operation, Peer
from probe.tasks.base import Context
from probe.tasks.capacity import TASK, CapacityParameters, CapacityValues

BOTH: tuple[Direction, ...] = ("download", "upload")
MIB = 1 << 20
HOST = "127.0.0.1"

Script = Callable[[socket.socket, int], None]


def order(port: int, direction: Direction = "download", **changes: Any) -> Order:
    """A short transfer of two streams, with little patience."""
    defaults: dict[str, Any] = {
        "direction": direction,
        "address": HOST,
        "port": port,
        "host": HOST,
        "path": f"/{direction}",
        "max_duration_s": 0.4,
        "max_bytes": None,
        "streams_max": 2,
        "connect_time_out_s": 0.5,
        "request_time_out_s": 0.5,
        "stall_time_out_s": 0.5,
    }
    return Order(**{**defaults, **changes})


def order_of(protocol: BulkProtocol, port: int, direction: Direction = "download", **changes: Any) -> Order:
    """The same to a server of another protocol, with the paths that it has."""
    download_path, upload_path = BULK_PATHS[protocol]
    path = download_path if direction == "download" else upload_path
    return order(port, direction, path=path, protocol=protocol, **changes)


async def values_of(direction: Direction, port: int, ca_file: Path | None = None, **peer: Any) -> CapacityValues:
    """What the task says of a second with two streams; `peer` is more of the instruction's peer."""
    download_path, upload_path = BULK_PATHS[peer.get("protocol", "http")]
    whole = Peer(name="p", host=HOST, http_port=port, download_path=download_path, upload_path=upload_path, **peer)
    context = Context(
        clock=SystemClock(),
        time_out_s=20,
        link=Link(LinkConfig(name="wan", interface="lo", source_address=HOST)),
        peer=whole,
        peer_ca_file=None if ca_file is None else str(ca_file),
    )
    return await TASK.measure(context, CapacityParameters(direction=direction, max_duration_s=1, streams_max=2))


def terms(ca_file: Path, server_name: str = HOST) -> TlsTerms:
    """TLS with little patience."""
    return TlsTerms(server_name, str(ca_file), handshake_time_out_s=0.5)


async def run(wanted: Order) -> Transfer:
    """Carry it out over loopback."""
    return await transfer(wanted, _open_socket)


async def failure_of(wanted: Order) -> tuple[Operation, FailureKind]:
    """How it fails."""
    with pytest.raises(MeasurementFailedError) as caught:
        await run(wanted)
    return caught.value.failure.operation, caught.value.failure.kind


def _open_socket() -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
    return sock


def server_context(pair: Pair) -> ssl.SSLContext:
    """A server's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


class Scripted:
    """Does with its n-th connection what the script says, in a thread each; within TLS, where it has a context."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self._script, self._context = script, context
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self.accepted = 0
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._acceptor = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        """Begin to accept."""
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection and thread."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # not SSLSocket's own, after which it would read records as they are
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sockets.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock, self.accepted)))
                self.accepted += 1
                self._threads[-1].start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with contextlib.suppress(OSError):
            if self._context is None:
                self._script(sock, number)
                return
            with self._context.wrap_socket(sock, server_side=True) as secured:  # takes the socket over
                self._sockets.append(secured)
                self._script(secured, number)


def says(*parts: bytes) -> Script:
    """Read the request's head, send this, stay open."""

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        for part in parts:
            sock.sendall(part)
        stays(sock)

    return script


def stays(sock: socket.socket, _number: int = 0) -> None:
    """Say nothing, and read to the end."""
    while sock.recv(65536):
        pass
