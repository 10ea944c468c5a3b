"""A server of ndt7, written from M-Lab's specification (v0.11) on an independent WebSocket implementation.

The reference server is a Go program that no registry here has. Message sizes, measurements, the end of a test and the
refusal of other subprotocols are as the specification says; `tests/loopback/test_bulk_ndt7.py` checks the rest.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Self

from certificates import Pair
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

SUBPROTOCOL = Subprotocol("net.measurementlab.ndt.v7")
_MESSAGE_BYTES_MIN = 1 << 13
_MESSAGE_BYTES_MAX = 1 << 20
_SCALING_FRACTION = 16
_MEASUREMENT_PERIOD_S = 0.25
_READ_LIMIT_BYTES = 1 << 24
_MIN_RTT_OFFSET = 148  # linux/tcp.h: tcpi_min_rtt


class Ndt7Server:
    """Serves `/ndt/v7/download` and `/ndt/v7/upload` on a free port of 127.0.0.1.

    Attributes:
        bulk_bytes: payload of binary messages so far, sent or received.
        pongs: how many answers there were to its pings.
        tests: how many connections were upgraded.
    """

    def __init__(
        self,
        *,
        tls: Pair | None = None,
        test_s: float = 10.0,
        subprotocol: Subprotocol = SUBPROTOCOL,
        min_rtt_us: int | None = None,
    ) -> None:
        self.bulk_bytes = self.pongs = self.tests = 0
        self._test_s, self._subprotocol, self._min_rtt_us = test_s, subprotocol, min_rtt_us
        self._random = os.urandom(_MESSAGE_BYTES_MAX)
        self._lock = threading.Lock()
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
        self._server: Server = serve(
            self._serve,
            "127.0.0.1",
            0,
            ssl=context,
            compression=None,
            max_size=_READ_LIMIT_BYTES,
            select_subprotocol=self._select,
            process_request=_refuse_other_paths,
            ping_interval=None,
            close_timeout=1,
        )
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection."""
        self._server.shutdown()
        self._thread.join()

    def _select(self, _connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """The specification's MUST: without the subprotocol there is no test (answered with 400)."""
        from websockets.exceptions import NegotiationError  # noqa: PLC0415 - the library's own word for a 400

        if SUBPROTOCOL not in offered:
            raise NegotiationError("missing subprotocol")
        return self._subprotocol

    def _serve(self, connection: ServerConnection) -> None:
        with self._lock:
            self.tests += 1
        path = connection.request.path.partition("?")[0] if connection.request else ""
        try:
            if path.endswith("download"):
                self._download(connection)
            else:
                self._upload(connection)
        except (ConnectionClosed, OSError):
            return

    def _download(self, connection: ServerConnection) -> None:
        began_s = said_s = time.monotonic()
        size_bytes, sent_bytes = _MESSAGE_BYTES_MIN, 0
        while (now_s := time.monotonic()) < began_s + self._test_s:
            if now_s - said_s >= _MEASUREMENT_PERIOD_S:
                said_s = now_s
                connection.send(json.dumps(self._measurement(connection, "download", sent_bytes, now_s - began_s)))
                self._ping(connection)
            connection.send(self._random[:size_bytes])
            sent_bytes += size_bytes
            with self._lock:
                self.bulk_bytes += size_bytes
            if size_bytes < _MESSAGE_BYTES_MAX and size_bytes <= sent_bytes // _SCALING_FRACTION:
                size_bytes *= 2
        connection.close()

    def _upload(self, connection: ServerConnection) -> None:
        began_s = said_s = time.monotonic()
        received_bytes = 0
        while (now_s := time.monotonic()) < began_s + self._test_s:
            if now_s - said_s >= _MEASUREMENT_PERIOD_S:
                said_s = now_s
                connection.send(json.dumps(self._measurement(connection, "upload", received_bytes, now_s - began_s)))
                self._ping(connection)
            message = connection.recv(timeout=self._test_s)
            if isinstance(message, bytes):
                received_bytes += len(message)
                with self._lock:
                    self.bulk_bytes += len(message)
        connection.close()

    def _ping(self, connection: ServerConnection) -> None:
        answered = connection.ping()
        threading.Thread(target=self._count_pong, args=(answered,), daemon=True).start()

    def _count_pong(self, answered: threading.Event) -> None:
        if answered.wait(2.0):
            with self._lock:
                self.pongs += 1

    def _measurement(self, connection: ServerConnection, test: str, count: int, elapsed_s: float) -> dict[str, Any]:
        raw = connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        elapsed_us = int(elapsed_s * 1e6)
        min_rtt_us = self._min_rtt_us or struct.unpack_from("=I", raw, _MIN_RTT_OFFSET)[0]
        return {
            "AppInfo": {"NumBytes": count, "ElapsedTime": elapsed_us},
            "ConnectionInfo": {"Client": "127.0.0.1:1", "Server": "127.0.0.1:2", "UUID": "x"},
            "Origin": "server",
            "Test": test,
            "TCPInfo": {"MinRTT": min_rtt_us, "ElapsedTime": elapsed_us},
        }


def _refuse_other_paths(connection: ServerConnection, request: Any) -> Any:
    if request.path.partition("?")[0] not in {"/ndt/v7/download", "/ndt/v7/upload"}:
        return connection.respond(HTTPStatus.NOT_FOUND, "no such test\n")
    return None
