"""Streams that only pass bytes on are looked at by time: nothing may wait for a look that never comes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bulk_rig import BOTH, MIB, Scripted, order, terms
from certificates import make_certificates

from probe.flows.bulk.estimate import StopReason
from probe.flows.bulk.stream import Direction
from probe.flows.bulk.tls_wire import TlsWire
from probe.flows.bulk.transfer import transfer
from probe.flows.bulk.wire import TlsTerms
from probe.peer.http_peer import HttpPeer
from probe.peer.server_tls import ServerTls

LOWAT_WAITING, LOWAT_FLOWING_MIN = 1, 32 * 1024


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    """Our own."""
    server = HttpPeer()
    server.start("127.0.0.1", 0)
    yield server
    server.stop()


class Opened:
    """The sockets that a transfer opened, with what may wait in each (`SO_RCVLOWAT`) as it was seen meanwhile."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self.lowats: set[int] = set()

    def open(self) -> socket.socket:
        """One more."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        self._sockets.append(sock)
        return sock

    def look(self, _total_bytes: int) -> None:
        """In the transfer's own thread, where it counts."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # closed since
                self.lowats.add(sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT))


async def test_while_a_download_flows_much_may_wait(peer: HttpPeer) -> None:
    """More than a wake-up's worth, and the kernel confirms it all the same; an upload's sockets stay as they are."""
    seen: dict[str, Opened] = {}
    for direction in BOTH:
        seen[direction] = Opened()
        await transfer(order(peer.port, direction), seen[direction].open, seen[direction].look)
    assert max(seen["download"].lowats) >= LOWAT_FLOWING_MIN
    assert seen["upload"].lowats == {LOWAT_WAITING}


async def test_a_head_that_comes_alone_is_read_at_once() -> None:
    """After a whole body the next head comes, and half a second later its body: the head is read before that.

    Nothing would wake one that still lets 32 KiB wait.
    """
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MIB}\r\n\r\n".encode()

    def one_body_after_the_other(sock: socket.socket, _number: int) -> None:
        for pause_s in itertools.chain([0.0], itertools.repeat(0.5)):
            if not sock.recv(65536):
                return
            sock.sendall(head)
            time.sleep(pause_s)
            sock.sendall(bytes(MIB))

    opened = Opened()
    with Scripted(one_body_after_the_other) as server:
        asked = order(server.port, max_duration_s=1.3, streams_max=1, request_time_out_s=0.3, stall_time_out_s=2.0)
        done = await transfer(asked, opened.open, opened.look)
    assert done.stopped_by is StopReason.MAX_DURATION
    assert (done.streams, done.streams_failed) == (1, 0)
    assert done.transferred_bytes == pytest.approx(3 * MIB, abs=len(head))


async def test_a_trickle_is_counted_though_it_would_wake_nobody() -> None:
    """100 bytes every 10 ms, far below what may wait: the kernel's count is taken by time, and nothing stalls."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"

    def trickles(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        sock.sendall(head)
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(bytes(100))
                time.sleep(0.01)

    opened = Opened()
    with Scripted(trickles) as server:
        asked = order(server.port, max_duration_s=0.9, streams_max=1, stall_time_out_s=0.3)
        done = await transfer(asked, opened.open, opened.look)
    assert done.stopped_by is StopReason.MAX_DURATION
    assert 2_000 < done.transferred_bytes < 20_000


@pytest.mark.parametrize("direction", BOTH)
async def test_a_reset_in_mid_flow_replaces_the_stream(direction: Direction) -> None:
    """Seen at the next look, with epoll waiting for nothing of a download: what moved counts, one failed."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
    first_reset = threading.Event()

    def resets_the_first(sock: socket.socket, number: int) -> None:
        sock.recv(65536)
        if direction == "download":
            sock.sendall(head)
        began_s = time.monotonic()
        with contextlib.suppress(OSError):
            while number != 0 or time.monotonic() < began_s + 0.3:
                if direction == "download":
                    sock.sendall(bytes(65536))
                elif not sock.recv(1 << 20):
                    return
        if number == 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            first_reset.set()

    opened = Opened()
    with Scripted(resets_the_first) as server:
        # The script answers no POST, and loopback carries a gibibyte in half a second: none may end.
        asked = order(server.port, direction, max_duration_s=0.9, post_bytes=1 << 40)
        done = await transfer(asked, opened.open, opened.look)
    assert first_reset.is_set()
    assert done.streams_failed == 1
    assert done.streams == 2
    assert done.transferred_bytes > MIB


async def test_a_reset_costs_a_cap_nothing_of_what_never_came() -> None:
    """Of a peer that serves no parts: what the stream had taken for its next look is there for the others."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"

    def resets_the_first(sock: socket.socket, number: int) -> None:
        sock.recv(65536)
        sock.sendall(head)
        with contextlib.suppress(OSError):
            for _ in range(6) if number == 0 else itertools.count():
                sock.sendall(bytes(65536))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()

    opened = Opened()
    with Scripted(resets_the_first) as server:
        asked = order(server.port, max_bytes=20 * MIB, max_duration_s=5, streams_max=8)
        done = await transfer(asked, opened.open, opened.look)
    assert done.stopped_by is StopReason.MAX_BYTES
    assert done.streams_failed == 1
    assert 12 * MIB < done.transferred_bytes <= 20 * MIB


@pytest.fixture
def slow_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each TLS record costs 0.1 ms of CPU more, as on a small computer."""
    note = TlsWire._note_received

    def burn_and_note(wire: TlsWire, *what: Any) -> None:
        until_s = time.thread_time() + 0.0001
        while time.thread_time() < until_s:
            pass
        note(wire, *what)

    monkeypatch.setattr(TlsWire, "_note_received", burn_and_note)


@pytest.fixture
def tls_peer(tmp_path: Path) -> Iterator[tuple[int, TlsTerms]]:
    """Our own, within TLS: its port, and what to demand of it."""
    certificates = make_certificates(tmp_path)
    server = HttpPeer(tls=ServerTls(certificates.good.certificate, certificates.good.key))
    server.start("127.0.0.1", 0)
    yield server.port, terms(certificates.ca)
    server.stop()


@pytest.mark.usefixtures("slow_records")
async def test_who_decrypts_more_slowly_than_the_line_serves_every_stream(tls_peer: tuple[int, TlsTerms]) -> None:
    """There is always more to decrypt on the first stream: none is given up on, and the end is in time."""
    port, tls = tls_peer
    opened = Opened()
    asked = order(port, max_duration_s=1.5, streams_max=4, tls=tls, stall_time_out_s=3.0)
    done = await transfer(asked, opened.open, opened.look)
    assert (done.streams, done.streams_failed) == (4, 0)
    assert done.transfer_s < 2.5


@pytest.mark.usefixtures("slow_records")
async def test_a_transfer_that_decrypts_slowly_can_be_cancelled(tls_peer: tuple[int, TlsTerms]) -> None:
    """At the next stream, not when its body has ended."""
    port, tls = tls_peer
    opened = Opened()
    task = asyncio.create_task(transfer(order(port, max_duration_s=9, streams_max=4, tls=tls), opened.open))
    await asyncio.sleep(0.7)
    cancelled_s = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - cancelled_s < 1.5
