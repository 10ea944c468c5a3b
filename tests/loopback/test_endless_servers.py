"""Servers that never stop talking: the measurement ends within its time, and the agent's loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.links import Link
from probe.messages import FailureKind, Operation, Peer
from probe.tasks import capacity, web
from probe.tasks.base import Context

LINK = Link(LinkConfig(name="wan", interface="lo"))
TALKS_S = 8.0  # longer than any measurement below may take
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def ndt7_head(request: bytes) -> bytes:
    """The answer that opens a WebSocket of ndt7 (RFC 6455 section 4.2.2)."""
    key = next(line for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key")).split(b": ")[1]
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())  # noqa: S324 - what RFC 6455 asks for
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Protocol: net.measurementlab.ndt.v7\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


@contextmanager
def talking(head: Callable[[bytes], bytes], words: bytes) -> Iterator[int]:
    """A server that answers with a head and then repeats some words as fast as it can; gives its port."""
    over = threading.Event()

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                sock.sendall(head(sock.recv(4096)))
                until_s = time.monotonic() + TALKS_S
                while not over.is_set() and time.monotonic() < until_s:
                    sock.sendall(words)
            except OSError:
                return

    def accept(listener: socket.socket) -> None:
        while not over.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TALKS_S)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()


@pytest.mark.parametrize(
    ("head", "words", "failure"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, (Operation.REQUEST, FailureKind.TIMED_OUT)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1\r\nx\r\n" * 10_000,
            (Operation.TRANSFER, FailureKind.STALLED),
        ),
    ],
)
async def test_a_page_without_end_does_not_hold_the_agent(
    head: bytes, words: bytes, failure: tuple[Operation, FailureKind]
) -> None:
    """Interim answers or tiny chunks for ever: a failure within the step's second, and other work had its turns."""
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    counting = asyncio.create_task(count_turns())
    with talking(lambda _: head, words) as port:
        parameters = web.WebParameters(
            url=f"http://127.0.0.1:{port}/", time_out_s=1.0, http_version="1.1", max_bytes=10_000_000
        )
        began_s = time.monotonic()
        with pytest.raises(MeasurementFailedError) as caught:
            await web.TASK.measure(Context(SystemClock(), 30, LINK), parameters)
        took_s = time.monotonic() - began_s
    counting.cancel()
    assert (caught.value.failure.operation, caught.value.failure.kind) == failure
    assert took_s < TALKS_S / 2
    assert turns >= 2


async def test_frames_without_bulk_do_not_hold_the_thread() -> None:
    """A server of ndt7 that sends empty Pongs for ever: the measurement ends by its own clock, without a figure."""
    with talking(ndt7_head, b"\x8a\x00" * 50_000) as port:
        peer = Peer(name="p", host="127.0.0.1", http_port=port, protocol="ndt7", download_path="/ndt/v7/download")
        began_s = time.monotonic()
        with pytest.raises(MeasurementFailedError) as caught:
            await capacity.TASK.measure(
                Context(SystemClock(), 30, LINK, peer), capacity.CapacityParameters(max_duration_s=1.0, streams_max=1)
            )
        took_s = time.monotonic() - began_s
    assert caught.value.failure.operation is Operation.TRANSFER
    assert took_s < TALKS_S / 2
