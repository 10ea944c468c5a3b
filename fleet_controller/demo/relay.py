"""A way from this host's loopback into the demo's namespace: so that a browser or a client can look at what runs.

Each connection to the local port becomes one in the namespace. A process of its own is not needed: a thread serves
them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Coroutine
from typing import Any, Self

from fleet_controller.lab.namespaces import entered

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 64 * 1024
_CONNECT_TIME_OUT_S = 5.0
_STOP_TIME_OUT_S = 5.0
# A person and a dashboard need a handful; more is a mistake, and must not use up the demo's descriptors.
_CONNECTIONS_MAX = 64


class Relay:
    """Listens on a free port of 127.0.0.1 and connects on to an address inside a namespace."""

    def __init__(self, namespace: str | None, host: str, port: int) -> None:
        self._namespace, self._target = namespace, (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=f"relay-{port}", daemon=True)
        self._stopping = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where to connect, as host:port."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def start(self) -> Self:
        """Serve, in a thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close everything."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_STOP_TIME_OUT_S)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener)
        async with server:
            await self._stopping.wait()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        if len(self._connections) >= _CONNECTIONS_MAX:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._join(reader, writer)
        except (OSError, TimeoutError) as error:
            _LOG.debug("relayed connection ended: %s", error)
        except asyncio.CancelledError:
            pass  # we are being stopped, and asyncio's server would log the cancellation as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await self._open()
        try:
            await _both(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            there_writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with entered(self._namespace):
            sock = socket.socket()
        try:
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            async with asyncio.timeout(_CONNECT_TIME_OUT_S):
                await self._loop.sock_connect(sock, self._target)
                return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise


async def _both(*ways: Coroutine[Any, Any, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for way in ways:
            group.create_task(way)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Copy to the end of the source, then close that half."""
    # Not only ConnectionError: to close the half of a connection that is gone is ENOTCONN.
    with contextlib.suppress(OSError):
        while chunk := await source.read(_CHUNK_BYTES):
            sink.write(chunk)
            await sink.drain()
        sink.write_eof()
