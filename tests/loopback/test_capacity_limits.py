"""A transfer with a limit: not one byte of payload more than allowed, whatever the speed and whatever the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bulk_rig import BOTH, HOST, MIB, Scripted, order, run

from fleet_controller.lab.nginx import Nginx
from fleet_controller.lab.services import free_port
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.estimate import StopReason
from probe.flows.bulk.stream import Direction
from probe.flows.tcp_info import read_tcp_info
from probe.messages import FailureKind, NotRunReason
from probe.peer.http_connection import Limits
from probe.peer.http_peer import HttpPeer

CAPS = (100_000, 3_000_000, 40_000_000)
RESET = struct.pack("ii", 1, 0)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n"


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    """Our own peer."""
    server = HttpPeer()
    server.start(HOST, 0)
    yield server
    server.stop()


def moved(peer: HttpPeer) -> int:
    """The payload that went over the line, by the peer's own count, once it has seen every connection end."""
    peer.stop()
    return peer.counters.sent_bytes + peer.counters.received_bytes


@pytest.mark.parametrize("max_bytes", CAPS)
@pytest.mark.parametrize("direction", BOTH)
async def test_a_cap_is_kept_at_loopback_speed(peer: HttpPeer, direction: Direction, max_bytes: int) -> None:
    """At tens of Gbit/s, where nothing can be stopped in time: the peer itself never moved more."""
    done = await run(order(peer.port, direction, max_bytes=max_bytes, max_duration_s=5, streams_max=16))
    assert done.stopped_by is StopReason.MAX_BYTES
    assert done.transferred_bytes <= moved(peer) <= max_bytes
    assert done.transferred_bytes > max_bytes / 3
    assert done.streams_failed == 0


@pytest.mark.parametrize("direction", BOTH)
async def test_a_file_is_transferred_to_the_last_byte(peer: HttpPeer, direction: Direction) -> None:
    """All bytes, no more, and no earlier end because the figure is known."""
    done = await run(order(peer.port, direction, file_bytes=50_000_001, max_duration_s=10, streams_max=16))
    assert done.stopped_by is StopReason.WHOLE_FILE
    assert done.transferred_bytes == moved(peer) == 50_000_001
    assert done.streams_failed == 0


@pytest.mark.parametrize("direction", BOTH)
async def test_a_file_that_takes_too_long_ends_by_time(peer: HttpPeer, direction: Direction) -> None:
    """What came until then, over that time, and said to be no whole file."""
    done = await run(order(peer.port, direction, file_bytes=10**10, max_duration_s=0.3))
    assert done.stopped_by is StopReason.MAX_DURATION
    assert done.whole_transfer_bps == pytest.approx(done.transferred_bytes * 8 / done.transfer_s)


@pytest.mark.parametrize("size", [{"max_bytes": 30_000_000}, {"file_bytes": 30_000_000}])
@pytest.mark.parametrize("direction", BOTH)
async def test_nginx_serves_parts(tmp_path: Path, direction: Direction, size: dict[str, int]) -> None:
    """Production's server: parts of its file, and an upload that is answered before it is read."""
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "download").write_bytes(os.urandom(2 * MIB))
    port = free_port()
    with Nginx(tmp_path / "nginx", tmp_path / "www", hosts=[HOST], port=port):
        done = await run(order(port, direction, max_duration_s=10, streams_max=8, **size))
    assert done.streams_failed == 0
    assert 10_000_000 < done.transferred_bytes <= 30_000_000
    if "file_bytes" in size:
        assert done.transferred_bytes == 30_000_000


class Whole:
    """A server that knows no parts and sends as fast as it can; it keeps its sockets, to ask the kernel afterwards."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __call__(self, sock: socket.socket, _number: int) -> None:
        """Serve one connection."""
        kept = sock.dup()
        self.sockets.append(kept)
        sock.recv(65536)
        sock.sendall(WHOLE)
        while True:
            sock.sendall(bytes(MIB))

    def sent_bytes(self) -> int:
        """All that left the server's kernel, heads left out."""
        infos = [read_tcp_info(sock) for sock in self.sockets]
        for sock in self.sockets:
            sock.close()
        carried = [(info.sent_bytes or 0) - (info.retransmitted_bytes or 0) for info in infos]
        # A connection that came too late to be asked anything has not even sent its head.
        return sum(max(sent_bytes - len(WHOLE), 0) for sent_bytes in carried)


@pytest.mark.parametrize("max_bytes", [3_000_000, 40_000_000])
async def test_a_server_without_parts_cannot_break_the_cap(max_bytes: int) -> None:
    """It sends without end; the receive windows that are open are all that it can send."""
    server = Whole()
    with Scripted(server) as listening:
        done = await run(order(listening.port, max_bytes=max_bytes, max_duration_s=5, streams_max=8))
        await asyncio.sleep(0.1)  # what was under way has arrived, or was refused
        sent_bytes = server.sent_bytes()
    assert done.stopped_by is StopReason.MAX_BYTES
    assert max_bytes / 3 < done.transferred_bytes <= sent_bytes <= max_bytes


async def test_a_server_without_parts_and_a_tiny_cap_is_not_tried() -> None:
    """100 kB is less than the first receive window: not_run(budget), and next to nothing was spent."""
    server = Whole()
    with Scripted(server) as listening, pytest.raises(NotRunError) as caught:
        await run(order(listening.port, max_bytes=100_000, max_duration_s=5))
    server.sent_bytes()
    assert caught.value.not_run.reason is NotRunReason.BUDGET


async def test_a_part_that_is_longer_than_asked_for_is_refused() -> None:
    """A server whose 206 is not what was asked for would break the cap."""

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 900000000\r\n\r\n")
        while sock.recv(65536):
            pass

    with Scripted(script) as listening, pytest.raises(MeasurementFailedError) as caught:
        await run(order(listening.port, max_bytes=3_000_000))
    assert caught.value.failure.kind is FailureKind.MALFORMED


async def test_a_peer_that_ends_its_connections_is_asked_for_the_rest() -> None:
    """Each connection gives 4 MiB of parts: the file is whole all the same, over more connections."""
    server = HttpPeer(Limits(bytes_per_connection=4 * MIB))
    server.start(HOST, 0)
    done = await run(order(server.port, file_bytes=40_000_000, max_duration_s=10, streams_max=4))
    assert done.stopped_by is StopReason.WHOLE_FILE
    assert done.transferred_bytes == moved(server) == 40_000_000
    assert server.counters.accepted >= 10


def answer(sock: socket.socket, requests: bytes, *, closes: bool = False) -> None:
    """The part that the first of these requests asks for; `closes` says that no other will follow."""
    asked = re.search(rb"Range: bytes=0-(\d+)", requests)
    assert asked is not None
    body = bytes(int(asked[1]) + 1)
    last = "Connection: close\r\n" if closes else ""
    sock.sendall(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n{last}\r\n".encode() + body)


async def test_the_last_stream_s_parts_are_asked_for_again() -> None:
    """It is ended when all others have nothing more to do: what it gives back is of the file all the same."""
    second_has_asked, first_has_ended = threading.Event(), threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        received = b""
        while part := sock.recv(65536):
            received += part
            if number == 1:
                second_has_asked.set()
                assert first_has_ended.wait(5)
                answer(sock, received, closes=True)
                sock.shutdown(socket.SHUT_WR)
                return
            while b"\r\n\r\n" in received:
                request, _, received = received.partition(b"\r\n\r\n")
                answer(sock, request)
                assert number or second_has_asked.wait(5)

    def watched(sock: socket.socket, number: int) -> None:
        try:
            script(sock, number)
        finally:
            if number == 0:
                first_has_ended.set()

    with Scripted(watched) as listening:
        done = await run(order(listening.port, file_bytes=2_400_000, max_duration_s=10, request_time_out_s=5))
        assert listening.accepted == 3
    assert (done.stopped_by, done.transferred_bytes) == (StopReason.WHOLE_FILE, 2_400_000)
    assert (done.streams, done.streams_failed) == (2, 0)


async def test_a_stream_that_is_cut_in_the_middle_is_replaced() -> None:
    """One of four is reset after 0.3 s: counted as failed, replaced, and the rate is that of four."""
    number_of = threading.Lock()
    numbers: list[int] = []

    def script(sock: socket.socket, number: int) -> None:
        with number_of:
            numbers.append(number)
        sock.recv(65536)
        sock.sendall(WHOLE)
        began_s = time.monotonic()
        for turn in range(10_000):
            if number == 2 and turn * 0.01 > 0.3:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.close()
                return
            time.sleep(max(0.0, began_s + turn * 0.01 - time.monotonic()))
            sock.sendall(bytes(50_000))

    with Scripted(script) as listening:
        done = await run(order(listening.port, max_duration_s=6, streams_max=4, stall_time_out_s=3))
    assert (done.streams, done.streams_failed, len(numbers)) == (4, 1, 5)
    assert done.estimate.capacity_bps == pytest.approx(4 * 40e6, rel=0.05)


@pytest.mark.parametrize("direction", BOTH)
async def test_the_wall_clock_is_never_asked(
    peer: HttpPeer, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it may be stepped, in mid-measurement too: a transfer in whose time it cannot even be read goes well."""

    def no_clock() -> float:
        raise AssertionError("the wall clock was asked")

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(monkeypatch.context())
        for name in ("time", "time_ns", "localtime", "gmtime"):
            patch.setattr(time, name, no_clock)
        done = await run(order(peer.port, direction))
    assert done.transferred_bytes > MIB
