"""Responsiveness over loopback: our own peer, one without STAMP, one without the small object, and none at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from bulk_rig import MIB, Scripted, stays
from certificates import make_certificates

from fleet_controller.lab.services import free_port
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.load.foreign_probe import Target, probe_once
from probe.links import Link
from probe.measure.outcome import outcome_of
from probe.messages import FailureKind, Operation, Peer
from probe.peer.http_peer import HttpPeer
from probe.peer.reflector import Reflector
from probe.peer.server_tls import ServerTls
from probe.tasks.base import Context, Usage
from probe.tasks.responsiveness import TASK, ResponsivenessParameters, ResponsivenessValues

LINK = Link(LinkConfig(name="wan", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
SHORT = ResponsivenessParameters(interval_s=0.2, max_duration_s=2.0, probes_per_s=50)


@asynccontextmanager
async def peer_of(*, stamp: bool = True, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    """A real peer; without `stamp` nobody answers its STAMP port."""
    http, reflector = HttpPeer(), Reflector()
    http.start(host, 0)
    stamp_port = free_port(kind=socket.SOCK_DGRAM)
    if stamp:
        await reflector.start(host, 0)
        stamp_port = reflector.port
    try:
        yield Peer(name="near", host=host, http_port=http.port, stamp_port=stamp_port)
    finally:
        if stamp:
            await reflector.stop()
        await asyncio.to_thread(http.stop)


def context_of(peer: Peer) -> Context:
    """A measurement's surroundings."""
    return Context(SystemClock(), 60, LINK, peer)


async def measured(peer: Peer, parameters: ResponsivenessParameters = SHORT) -> ResponsivenessValues:
    """One measurement."""
    values = await TASK.measure(context_of(peer), parameters)
    assert isinstance(values, ResponsivenessValues)
    return values


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_both_directions_are_loaded_and_probed(direction: str) -> None:
    """Requests, load-bearing round trips and STAMP packets all have their figures, and the cost is counted."""
    parameters = ResponsivenessParameters(
        direction="download" if direction == "download" else "upload",
        interval_s=0.2,
        max_duration_s=3.0,
        probes_per_s=50,
        streams_max=2,
    )
    async with peer_of() as peer:
        context = context_of(peer)
        values = await TASK.measure(context, parameters)
    assert isinstance(values, ResponsivenessValues)
    assert values.probes > 5
    assert values.rpm is not None
    assert values.foreign_rpm is not None
    assert values.self_rpm is not None
    assert values.tls_s is None
    assert values.delay_idle_median_s is not None
    assert values.loaded_packets_sent is not None
    assert values.loaded_packets_received is not None
    assert values.loaded_packets_received <= values.loaded_packets_sent
    assert values.load_bps is not None
    assert values.load_bps > 0
    assert len(values.goodput) == values.intervals
    moved = context.usage.received_bytes if direction == "download" else context.usage.sent_bytes
    least_bytes = 80 * values.probes  # a request and its answer are that long at least, whichever way
    assert moved >= values.transferred_bytes + least_bytes > 0


async def test_without_stamp_the_requests_still_count() -> None:
    """A peer that answers no STAMP leaves the plain delays absent; responsiveness needs only HTTP."""
    async with peer_of(stamp=False) as peer:
        values = await measured(peer)
    assert values.rpm is not None
    assert values.delay_idle_median_s is None
    assert values.delay_loaded_median_s is None


async def test_a_byte_cap_ends_the_load_with_low_confidence() -> None:
    """What could not settle says so; it is no failure. Before an interval has ended nothing is known of the load."""
    async with peer_of() as peer:
        values = await measured(peer, ResponsivenessParameters(max_bytes=200_000, interval_s=0.2))
    assert values.confidence == "low"
    assert (values.intervals, values.load_bps, values.loaded_packets_sent) == (0, None, None)


async def test_a_peer_without_the_small_object_is_a_failure() -> None:
    """Not one request was answered as asked: (request, http_status), not a figure out of half the facts."""
    async with peer_of() as peer:
        lacking = Peer(name="p", host=peer.host, http_port=peer.http_port, small_path="/nowhere")
        with pytest.raises(MeasurementFailedError) as caught:
            await measured(lacking)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.REQUEST,
        FailureKind.HTTP_STATUS,
    )


async def test_nobody_there_is_a_refusal() -> None:
    """Without the load there is nothing to measure: (connect, refused)."""
    with pytest.raises(MeasurementFailedError) as caught:
        await measured(Peer(name="p", host="127.0.0.1", http_port=free_port()))
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.CONNECT, FailureKind.REFUSED)


async def test_a_cancelled_measurement_leaves_nothing_running() -> None:
    """The scheduler's time-out ends the load, the requests and the packets with it."""
    async with peer_of() as peer:
        running = asyncio.create_task(measured(peer, ResponsivenessParameters(max_duration_s=30)))
        await asyncio.sleep(1.5)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left


class Pulled(Link):
    """Its plug can be pulled; what is on its way arrives all the same, as out of buffers behind it."""

    is_pulled = False

    def is_up(self) -> bool:
        """As the interface says, until then."""
        return not self.is_pulled and super().is_up()


async def test_a_link_that_goes_away_shortly_before_the_end_is_lost() -> None:
    """Too late for a stream to notice: (transfer, link_lost), not the figures of a slow line."""
    link = Pulled(LINK.config)
    async with peer_of(stamp=False) as peer:
        context = Context(SystemClock(), 60, link, peer)
        measuring = asyncio.ensure_future(TASK.measure(context, ResponsivenessParameters(max_duration_s=2.0)))
        await spent(context.usage, MIB)
        await asyncio.sleep(0.7)
        link.is_pulled = True
        with pytest.raises(MeasurementFailedError) as caught:
            await measuring
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.TRANSFER, FailureKind.LINK_LOST)


async def spent(usage: Usage, least_bytes: int) -> None:
    """Wait until a measurement says that it has received so much."""
    async with asyncio.timeout(10):
        while usage.received_bytes < least_bytes:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)


def sends_and_stalls(sock: socket.socket, _number: int) -> None:
    """A small object, or 4 MiB of a large one and then nothing more."""
    if b"/small" in sock.recv(65536):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
    else:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(4 * MIB))
    stays(sock)


LONG_INTERVAL = ResponsivenessParameters(interval_s=5, max_duration_s=10, probes_per_s=1, streams_max=1)


async def test_a_time_out_knows_what_the_load_has_cost() -> None:
    """In the middle of the first interval: its bytes are known while they come, and when the time is over."""
    with Scripted(sends_and_stalls) as server:
        near = Peer(name="near", host="127.0.0.1", http_port=server.port, stamp_port=free_port(kind=socket.SOCK_DGRAM))
        context = Context(SystemClock(), 3.5, LINK, near)
        measuring = asyncio.create_task(outcome_of(TASK, context, LONG_INTERVAL))
        await spent(context.usage, 4 * MIB)
        assert not measuring.done()
        said = await measuring
    assert said["not_run"].reason == "task_timed_out"
    assert 4 * MIB <= context.usage.received_bytes < 4 * MIB + 10_000


async def test_a_load_that_fails_has_its_cost() -> None:
    """Every stream is reset within the first interval, after the last byte of it has come."""
    sent: list[int] = []

    def script(sock: socket.socket, _number: int) -> None:
        if b"/small" in sock.recv(65536):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
            stays(sock)
            return
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n" + bytes(MIB))
        sent.append(MIB)
        time.sleep(0.3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    with Scripted(script) as server:
        near = Peer(name="near", host="127.0.0.1", http_port=server.port, stamp_port=free_port(kind=socket.SOCK_DGRAM))
        context = Context(SystemClock(), 60, LINK, near)
        with pytest.raises(MeasurementFailedError) as caught:
            await TASK.measure(context, LONG_INTERVAL)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.TRANSFER, FailureKind.RESET)
    assert sum(sent) <= context.usage.received_bytes < sum(sent) + 10_000


async def test_one_request_has_the_kernels_times() -> None:
    """The handshake and the answer on loopback take well below 50 ms each, and more than nothing."""
    async with peer_of() as peer:
        target = Target(peer.host, peer.http_port, peer.host, peer.small_path)
        probe = await probe_once(target, lambda: LINK.socket(4, socket.SOCK_STREAM), 2.0, Usage())
    assert 0 < probe.tcp_s < 0.05
    assert 0 < probe.http_s < 0.05
    assert probe.tls_s is None


async def test_a_request_that_nobody_answers_ends_in_time() -> None:
    """The listener accepts and stays silent: (request, timed_out)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = Target("127.0.0.1", listener.getsockname()[1], "127.0.0.1", "/small")
        with pytest.raises(MeasurementFailedError) as caught:
            await probe_once(target, lambda: LINK.socket(4, socket.SOCK_STREAM), 0.3, Usage())
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.REQUEST,
        FailureKind.TIMED_OUT,
    )


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n", FailureKind.REDIRECTED),
        (b"SSH-2.0-OpenSSH_9.2\r\n", FailureKind.MALFORMED),
        (b"", FailureKind.CLOSED),
    ],
)
async def test_a_wrong_answer_is_told(answer: bytes, kind: FailureKind) -> None:
    """A portal's redirect, something that is no HTTP, and a closed door each have their word."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        target = Target("127.0.0.1", server.sockets[0].getsockname()[1], "127.0.0.1", "/small")
        with pytest.raises(MeasurementFailedError) as caught:
            await probe_once(target, lambda: LINK.socket(4, socket.SOCK_STREAM), 2.0, Usage())
    assert caught.value.failure.kind is kind


async def test_a_peer_of_tls_is_probed_over_tls(tmp_path: Path) -> None:
    """The handshake has its share of the figure, divided by its round trips; a stranger is refused."""
    certificates = make_certificates(tmp_path)
    http = HttpPeer(tls=ServerTls(certificates.good.certificate, certificates.good.key))
    http.start("127.0.0.1", 0)
    peer = Peer(name="near", host="127.0.0.1", http_port=http.port, tls=True, stamp_port=1)
    trusting = Context(SystemClock(), 60, LINK, peer, peer_ca_file=str(certificates.ca))
    try:
        values = await TASK.measure(trusting, ResponsivenessParameters(interval_s=0.2, max_duration_s=2, streams_max=2))
        with pytest.raises(MeasurementFailedError) as caught:
            await measured(peer)
    finally:
        await asyncio.to_thread(http.stop)
    assert isinstance(values, ResponsivenessValues)
    assert values.tls_s is not None
    assert values.rpm is not None
    assert (caught.value.failure.operation, caught.value.failure.kind) == (
        Operation.TLS,
        FailureKind.CERTIFICATE_INVALID,
    )


async def test_ipv6_is_probed_as_well() -> None:
    """The same over ::1."""
    async with peer_of(host="::1") as peer:
        parameters = ResponsivenessParameters(ip_version=6, interval_s=0.2, max_duration_s=2.0, streams_max=2)
        values = await measured(peer, parameters)
    assert values.probes > 0
