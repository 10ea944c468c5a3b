"""The bulk transfer against real servers: our own peer, nginx, and servers that fail on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bulk_rig
import msgspec
import pytest
from bulk_rig import BOTH, MIB, Scripted, failure_of, run, says

from fleet_controller.lab.nginx import Nginx
from fleet_controller.lab.services import free_port
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import NotRunError
from probe.flows.bulk.estimate import StopReason
from probe.flows.bulk.stream import Direction, Order
from probe.flows.bulk.transfer import transfer
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.peer.http_connection import Limits
from probe.peer.http_peer import HttpPeer
from probe.tasks.base import Context
from probe.tasks.capacity import TASK, CapacityParameters

LINK = Link(LinkConfig(name="wan", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"


def order(port: int, direction: Direction = "download", **changes: Any) -> Order:
    """A short transfer of four streams, with less patience still."""
    hasty = {"max_duration_s": 0.3, "streams_max": 4}
    hasty |= dict.fromkeys(("connect_time_out_s", "request_time_out_s", "stall_time_out_s"), 0.4)
    return bulk_rig.order(port, direction, **{**hasty, **changes})


def open_socket(version: IpVersion = 4) -> socket.socket:
    """A socket bound to loopback."""
    return LINK.socket(version, socket.SOCK_STREAM)


def ends(sock: socket.socket, how: str) -> None:
    """Reset, or close with everything sent."""
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    else:
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    """Our own peer."""
    server = HttpPeer()
    server.start("", 0)
    yield server
    server.stop()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[int]:
    """The nginx of production: a random file, here of 8 MiB, and a sink that answers 204 at once. Gives its port."""
    (tmp_path / "download").write_bytes(os.urandom(8 * MIB))
    with Nginx(tmp_path / "nginx", tmp_path, hosts=["127.0.0.1"], port=free_port()) as server:
        yield server.port


@pytest.mark.parametrize("direction", BOTH)
async def test_the_task_measures_our_own_peer(peer: HttpPeer, direction: Direction) -> None:
    """Every field is filled, the curve covers the transfer, and the usage is what was transferred."""
    context = Context(
        clock=SystemClock(), time_out_s=20, link=LINK, peer=Peer(name="p", host="127.0.0.1", http_port=peer.port)
    )
    values = await TASK.measure(context, CapacityParameters(direction=direction, max_duration_s=1, streams_max=2))
    assert values.capacity_bps > 1e8
    assert values.transferred_bytes == pytest.approx(values.whole_transfer_bps * values.transfer_s / 8)
    assert values.stopped_by in set(StopReason)
    assert (values.streams, values.streams_failed, values.congestion_control) == (2, 0, "cubic")
    assert values.delay_min_s is not None
    assert (values.retransmitted_bytes is None) is (direction == "download")
    assert len(values.curve) == pytest.approx(values.transfer_s / 0.1, abs=1)
    moved, other = context.usage.received_bytes, context.usage.sent_bytes
    assert (moved, other) == (values.transferred_bytes, 0) if direction == "download" else (other, moved)
    assert msgspec.convert(msgspec.to_builtins(values), TASK.values) == values


@pytest.mark.parametrize("direction", BOTH)
async def test_over_ipv6(peer: HttpPeer, direction: Direction) -> None:
    """The same, to ::1."""
    wanted = order(peer.port, direction, address="::1", host="::1")
    done = await transfer(wanted, lambda: open_socket(6))
    assert done.transferred_bytes > MIB


@pytest.mark.parametrize("direction", BOTH)
async def test_nginx_is_a_peer_too(nginx: int, direction: Direction) -> None:
    """The file runs out and is asked for again; the early 204 does not end the upload."""
    done = await run(order(nginx, direction, max_duration_s=1, streams_max=1))
    assert done.transferred_bytes > 2 * 8 * MIB
    assert (done.streams, done.streams_failed) == (1, 0)


@pytest.mark.parametrize("server", ["peer", "nginx"])
async def test_a_finished_post_is_followed_by_another(request: pytest.FixtureRequest, server: str) -> None:
    """With POSTs of 1 MiB an upload goes on all the same."""
    fixture = request.getfixturevalue(server)
    port = fixture.port if isinstance(fixture, HttpPeer) else fixture
    done = await run(order(port, "upload", post_bytes=MIB, streams_max=2, max_duration_s=1))
    assert done.transferred_bytes > 4 * MIB
    assert (done.streams, done.streams_failed) == (2, 0)


async def test_a_peer_that_ends_its_connections_is_asked_again() -> None:
    """Each connection gives 2 MiB: streams are replaced, none counts as failed."""
    server = HttpPeer(Limits(bytes_per_connection=2 * MIB))
    server.start("127.0.0.1", 0)
    try:
        done = await run(order(server.port, max_duration_s=0.6))
    finally:
        server.stop()
    assert done.streams_failed == 0
    assert server.counters.accepted > 4


async def test_a_stream_between_two_connections_is_not_missing() -> None:
    """Each connection gives 32 MiB, a few looks' worth: whenever the transfer ends, two streams have carried it."""
    server = HttpPeer(Limits(bytes_per_connection=32 * MIB))
    server.start("127.0.0.1", 0)
    try:
        ends = [await run(order(server.port, streams_max=2, max_duration_s=0.2)) for _ in range(8)]
    finally:
        server.stop()
    assert [(done.streams, done.streams_failed) for done in ends] == [(2, 0)] * 8
    assert server.counters.accepted > 16 + 8


async def test_a_closed_port_is_refused() -> None:
    """(connect, refused)."""
    assert await failure_of(order(free_port())) == (Operation.CONNECT, FailureKind.REFUSED)


async def test_a_port_that_swallows_connections_times_out() -> None:
    """A full backlog drops every SYN: (connect, timed_out)."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            sock.connect_ex(full.getsockname())
        wanted = order(full.getsockname()[1])
        assert await failure_of(wanted) == (Operation.CONNECT, FailureKind.TIMED_OUT)


async def test_a_silent_server_times_out() -> None:
    """It accepts, and says nothing: (request, timed_out)."""
    with Scripted(says()) as server:
        assert await failure_of(order(server.port)) == (Operation.REQUEST, FailureKind.TIMED_OUT)


async def test_a_server_that_reads_nothing_stalls_the_upload() -> None:
    """Its buffers fill, then nothing is acknowledged any more: (transfer, stalled)."""
    gate = threading.Event()

    def script(_sock: socket.socket, _number: int) -> None:
        gate.wait(20)

    with Scripted(script) as server:
        wanted = order(server.port, "upload", max_duration_s=10)
        outcome = await failure_of(wanted)
        gate.set()
    assert outcome == (Operation.TRANSFER, FailureKind.STALLED)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\nContent-Length: 0\r\n\r\n", FailureKind.REDIRECTED),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", FailureKind.PEER_BUSY),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", FailureKind.HTTP_STATUS),
        (b"SSH-2.0-OpenSSH_9.2\r\n", FailureKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000, FailureKind.MALFORMED),
    ],
)
@pytest.mark.parametrize("direction", BOTH)
async def test_a_wrong_answer_has_its_kind(said: bytes, kind: FailureKind, direction: Direction) -> None:
    """Redirected, busy, another status, not HTTP: each by its name, whichever the direction."""
    with Scripted(says(said)) as server:
        wanted = order(server.port, direction, max_duration_s=5, stall_time_out_s=3)
        assert await failure_of(wanted) == (Operation.REQUEST, kind)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000000\r\n\r\n", FailureKind.INTERCEPTED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", FailureKind.MALFORMED),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", FailureKind.MALFORMED),
        (b"HTTP/1.1 204 No Content\r\n\r\n", FailureKind.HTTP_STATUS),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\n\r\n", FailureKind.HTTP_STATUS),
    ],
)
async def test_a_body_that_is_no_bulk_object_is_not_measured(said: bytes, kind: FailureKind) -> None:
    """A portal's page, a short or encoded body, no body."""
    with Scripted(says(said)) as server:
        assert await failure_of(order(server.port)) == (Operation.REQUEST, kind)


async def test_a_download_that_stops_is_stalled() -> None:
    """A megabyte on each stream, then silence: (transfer, stalled)."""
    with Scripted(says(OK, bytes(MIB))) as server:
        outcome = await failure_of(order(server.port, max_duration_s=10))
    assert outcome == (Operation.TRANSFER, FailureKind.STALLED)


@pytest.mark.parametrize(("how", "kind"), [("reset", FailureKind.RESET), ("close", FailureKind.CLOSED)])
async def test_a_download_that_is_cut_is_a_failure(how: str, kind: FailureKind) -> None:
    """Reset or closed on every stream in the middle of the body."""

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        sock.sendall(OK + bytes(100))
        ends(sock, how)

    with Scripted(script) as server:
        outcome = await failure_of(order(server.port, max_duration_s=5))
    assert outcome == (Operation.TRANSFER, kind)


async def test_an_upload_that_is_cut_is_a_failure() -> None:
    """The server reads a little and resets every stream."""

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        ends(sock, "reset")

    with Scripted(script) as server:
        operation, kind = await failure_of(order(server.port, "upload", max_duration_s=5))
    assert operation in {Operation.TRANSFER, Operation.REQUEST}
    assert kind in {FailureKind.RESET, FailureKind.CLOSED}


def paced(sock: socket.socket, number: int) -> None:
    """The first connection is reset; the others give 1 MiB every 20 ms."""
    sock.recv(65536)
    if number == 0:
        ends(sock, "reset")
        return
    sock.sendall(OK)
    while True:
        sock.sendall(bytes(MIB))
        time.sleep(0.02)


async def test_one_failed_stream_of_several_is_no_failure() -> None:
    """It is counted, and the others go on."""
    with Scripted(paced) as server:
        done = await run(order(server.port))
    assert (done.streams, done.streams_failed) == (3, 1)
    assert done.transferred_bytes > MIB


async def test_a_cap_before_the_plateau_gives_a_lower_bound() -> None:
    """About 10 MiB of a 50 MiB/s stream: stopped by bytes, marked, and not much more was spent."""
    with Scripted(lambda sock, number: paced(sock, number + 1)) as server:
        done = await run(order(server.port, max_duration_s=10, max_bytes=10 * MIB, streams_max=1))
    assert done.stopped_by is StopReason.MAX_BYTES
    assert done.estimate.is_lower_bound
    assert done.transferred_bytes < 14 * MIB


async def test_no_time_for_a_byte_is_a_failure() -> None:
    """Heads come, bodies do not, and the time is over before a stall is called: (transfer, timed_out)."""
    with Scripted(says(OK)) as server:
        outcome = await failure_of(order(server.port, stall_time_out_s=5))
    assert outcome == (Operation.TRANSFER, FailureKind.TIMED_OUT)


async def test_a_link_that_is_down_is_not_run() -> None:
    """No socket, no measurement, no failure of the line."""
    absent = Link(LinkConfig(name="wan", interface="absent0"))
    with pytest.raises(NotRunError) as caught:
        await transfer(order(1), lambda: absent.socket(4, socket.SOCK_STREAM))
    assert caught.value.not_run.reason is NotRunReason.LINK_DOWN


def sockets() -> int:
    """How many sockets, pipes and memory files this process has."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(entry.readlink()).startswith(("socket:", "pipe:", "/memfd:"))
    return count


@pytest.mark.parametrize("direction", BOTH)
async def test_a_cancelled_transfer_leaves_nothing_behind(peer: HttpPeer, direction: Direction) -> None:
    """At once: no thread, no socket, no pipe, no memory file, and the peer sees its connections end."""
    before, loop, moving = sockets(), asyncio.get_running_loop(), asyncio.Event()

    def on_bytes(_total_bytes: int) -> None:
        loop.call_soon_threadsafe(moving.set)

    running = asyncio.create_task(transfer(order(peer.port, direction, max_duration_s=60), open_socket, on_bytes))
    await moving.wait()
    running.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bulk")]
    peer.stop()  # the peer's own ends of the connections are gone after this
    assert sockets() <= before


async def test_a_fault_of_the_transfer_itself_is_not_hidden() -> None:
    """An error that nobody foresaw comes out as it is, and the thread is gone."""

    def broken() -> socket.socket:
        raise RuntimeError("no sockets today")

    with pytest.raises(RuntimeError, match="no sockets today"):
        await transfer(order(1), broken)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("bulk")]


@pytest.mark.parametrize(
    "parameters", [{"mode": "capped"}, {"max_bytes": 5_000_000}, {"streams_max": 17}, {"max_duration_s": 0}]
)
def test_bad_parameters_are_refused(parameters: dict[str, Any]) -> None:
    """A cap without a size, a size without a cap, and what is out of range."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(parameters, CapacityParameters)
