from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import msgspec
import pytest

from fleet_controller.lab.services import Service, answers, free_port
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.echo import engine as echo
from probe.flows.echo.engine import Echo, Plan, prepare
from probe.flows.echo.icmp import IcmpProtocol, open_echo
from probe.flows.echo.series import raise_if_failed
from probe.flows.echo.stamp import StampProtocol
from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket, ntp_of
from probe.flows.moments import Moment, now
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.peer.reflector import Reflector
from probe.tasks import TASKS
from probe.tasks.base import Context, Usage
from probe.tasks.round_trip import TASK, RoundTripParameters, RoundTripValues, measure

LO = Link(LinkConfig(name="lo", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
HOST = {4: "127.0.0.1", 6: "::1"}
PING_GROUP_RANGE = "/proc/sys/net/ipv4/ping_group_range"

Fate = Callable[[int], list[tuple[int, int]]]


def quick(packets: int = 10, payload_bytes: int = 44) -> RoundTripParameters:
    """Fast enough for a test, slow enough that loopback answers each packet before the next one leaves."""
    return RoundTripParameters(packets=packets, payload_bytes=payload_bytes, interval_s=0.01, time_out_s=1.0)


def context_for(port: int, host: str = "127.0.0.1", link: Link = LO) -> Context:
    """What the scheduler would give the task."""
    peer = Peer(name="peer", host=host, stamp_port=port)
    return Context(clock=SystemClock(), time_out_s=30, link=link, peer=peer)


@contextlib.asynccontextmanager
async def reflector(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The port of a real reflector."""
    server = Reflector()
    await server.start(host, 0)
    try:
        yield server.port
    finally:
        await server.stop()


class FaultyPeer:
    """A peer whose way there and back is as bad as `fate` says.

    `fate` takes the number of the packet (1, 2, …) and gives the answers to send: for each, which packet it answers
    and the reflector's count. `said_ns` is added to the time that the peer says it kept the packet.
    """

    def __init__(self, fate: Fate, said_ns: int = 0) -> None:
        self._fate = fate
        self._said_ns = said_ns
        self._packets: dict[int, tuple[SenderPacket, int]] = {}
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        self.sock.bind(("127.0.0.1", 0))
        self.port: int = self.sock.getsockname()[1]

    def __enter__(self) -> Self:
        """Start to answer."""
        asyncio.get_running_loop().add_reader(self.sock, self._on_readable)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()

    def _on_readable(self) -> None:
        data, source = self.sock.recvfrom(2048)
        packet = SenderPacket.decode(data)
        assert packet is not None
        self._packets[packet.sequence] = (packet, time.time_ns())
        self.answer(packet.sequence, data, source)

    def answer(self, number: int, data: bytes, source: tuple[str, int]) -> None:
        """Answer packet `number` as fate says."""
        del data
        for answered, count in self._fate(number):
            self.sock.sendto(self.packet(answered, count), source)

    def packet(self, number: int, count: int) -> bytes:
        """A well-formed answer."""
        asked, received_ns = self._packets[number]
        return ReflectorPacket(
            sequence=count,
            timestamp=ntp_of(time.time_ns() + self._said_ns),
            error_estimate=1,
            session=asked.session,
            receive_timestamp=ntp_of(received_ns),
            sender_sequence=asked.sequence,
            sender_timestamp=asked.timestamp,
            sender_error_estimate=asked.error_estimate,
            sender_ttl=64,
        ).encode()


async def through(fate: Fate, packets: int) -> RoundTripValues:
    """Measure against a faulty peer."""
    with FaultyPeer(fate) as peer:
        return await measure(context_for(peer.port), quick(packets=packets))


async def until(reached: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(10):
        while not reached():  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("method", ["stamp", "icmp"])
async def test_a_clean_path(method: str, version: IpVersion) -> None:
    """All ten come back, in order, once; every delay is there and the figures are in their order."""
    async with reflector(HOST[version]) as port:
        context = context_for(port, HOST[version])
        values = await measure(context, msgspec.structs.replace(quick(), method=method, ip_version=version))
    assert (values.packets_sent, values.packets_received) == (10, 10)
    assert (values.packets_duplicated, values.packets_reordered, values.delays_rejected) == (0, 0, 0)
    figures = [values.delay_min_s, values.delay_median_s, values.delay_p95_s, values.delay_max_s]
    present = [figure for figure in figures if figure is not None]
    assert len(present) == 4
    assert present == sorted(present)
    assert 0 <= present[0] <= present[-1] < 1
    assert values.pdv_s == present[2] - present[0]
    assert (values.packets_lost_forward, values.packets_lost_backward) == (
        (0, 0) if method == "stamp" else (None, None)
    )


async def test_the_cost_is_told() -> None:
    """Ten packets of 44 bytes each way; of ICMP, the ICMP header counts too."""
    async with reflector() as port:
        context = context_for(port)
        await measure(context, quick())
        assert (context.usage.sent_bytes, context.usage.received_bytes) == (440, 440)
        context = context_for(port)
        await measure(context, quick(payload_bytes=160, packets=2))
        assert (context.usage.sent_bytes, context.usage.received_bytes) == (320, 320)


async def test_exact_loss_by_way() -> None:
    """Of twenty, 3 and 4 are lost on the way there, 7 on the way back: known exactly, and so is the rest."""

    def fate(number: int) -> list[tuple[int, int]]:
        count = number - 1 - (2 if number > 4 else 0)
        return [] if number in {3, 4, 7} else [(number, count)]

    values = await through(fate, packets=20)
    assert (values.packets_sent, values.packets_received) == (20, 17)
    assert (values.packets_lost_forward, values.packets_lost_backward) == (2, 1)
    assert (values.packets_duplicated, values.packets_reordered) == (0, 0)


async def test_a_stateless_reflector_gives_no_split() -> None:
    """Its numbers are ours: the loss is counted, the way stays unknown."""
    values = await through(lambda number: [] if number == 3 else [(number, number)], packets=10)
    assert (values.packets_received, values.packets_lost_forward, values.packets_lost_backward) == (9, None, None)


async def test_exact_duplicates() -> None:
    """Packet 2 comes back three times and packet 5 twice: three duplicates, no loss, no reordering."""
    values = await through(lambda n: [(n, n - 1)] * {2: 3, 5: 2}.get(n, 1), packets=10)
    assert (values.packets_received, values.packets_duplicated, values.packets_reordered) == (10, 3, 0)


async def test_exact_reordering() -> None:
    """Packets 3 and 6 come back after their successors: two reordered, all received once."""

    def fate(number: int) -> list[tuple[int, int]]:
        held = {4: 3, 7: 6}
        if number in held.values():
            return []
        return [(number, number - 1)] + ([(held[number], held[number] - 1)] if number in held else [])

    values = await through(fate, packets=10)
    assert (values.packets_received, values.packets_reordered, values.packets_duplicated) == (10, 2, 0)


async def test_nothing_comes_back() -> None:
    """A dead peer that refuses nothing: ten sent, none received, every delay absent. It is a value, not a failure."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        values = await measure(context_for(deaf.getsockname()[1]), quick())
    assert values == RoundTripValues(
        packets_sent=10,
        packets_received=0,
        packets_duplicated=0,
        packets_reordered=0,
        delays_rejected=0,
        loss_bursts=1,
        loss_burst_max_packets=10,
        loss_distance_median_packets=1.0,
    )


@pytest.mark.parametrize("version", [4, 6])
async def test_a_closed_port_is_a_failure(version: IpVersion) -> None:
    """Nothing but "port unreachable" came back: the peer is there and does not answer STAMP."""
    with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST[version], 0))
        port = sock.getsockname()[1]
    started_s = time.monotonic()
    parameters = RoundTripParameters(ip_version=version, interval_s=0.01, time_out_s=30)
    with pytest.raises(MeasurementFailedError) as caught:
        await measure(context_for(port, HOST[version]), parameters)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.RECEIVE, FailureKind.REFUSED)
    # The refusals settle the packets: nobody waits 30 s for them.
    assert time.monotonic() - started_s < 20


async def test_a_peer_that_dies_midway_is_loss() -> None:
    """Three answers and then refusals: that is a loss of seven, not a failure."""
    server = Reflector()
    await server.start("127.0.0.1", 0)
    parameters = RoundTripParameters(interval_s=0.05, time_out_s=0.3)
    measuring = asyncio.create_task(measure(context_for(server.port), parameters))
    await until(lambda: server.counters.reflected >= 3)
    await server.stop()
    values = await measuring
    assert values.packets_sent == 10
    assert 3 <= values.packets_received < 10


async def test_a_peer_that_is_killed_and_started_again_has_no_count(tmp_path: Path) -> None:
    """A real peer, restarted in mid-series: the answers of both are counted, and no loss is laid to either way."""
    http_port, stamp_port = free_port(), free_port(kind=socket.SOCK_DGRAM)
    ports = ["--http-port", str(http_port), "--stamp-port", str(stamp_port)]
    command = [sys.executable, "-m", "probe.cli", "peer", "--host", "127.0.0.1", *ports]
    service = Service(tmp_path, command, lambda: answers("127.0.0.1", http_port)).start()
    try:
        parameters = RoundTripParameters(packets=150, interval_s=0.02, time_out_s=0.3)
        measuring = asyncio.create_task(measure(context_for(stamp_port), parameters))
        await asyncio.sleep(0.8)
        service.kill()
        await asyncio.to_thread(service.start)
        values = await measuring
    finally:
        service.kill()
    assert 50 <= values.packets_received < values.packets_sent == 150
    assert (values.packets_lost_forward, values.packets_lost_backward, values.packets_lost_unattributed) == (None,) * 3


async def test_the_reflectors_time_is_taken_out() -> None:
    """A peer that keeps every packet for 30 ms, and says so, is not 30 ms further away."""

    class Slow(FaultyPeer):
        def answer(self, number: int, data: bytes, source: tuple[str, int]) -> None:
            asyncio.get_running_loop().call_later(0.03, super().answer, number, data, source)

    with Slow(lambda n: [(n, n - 1)]) as peer:
        values = await measure(context_for(peer.port), quick(packets=5))
    assert (values.packets_received, values.delays_rejected) == (5, 0)
    assert values.delay_min_s is not None
    assert 0 < values.delay_min_s < 0.03


async def test_a_reflector_whose_clock_is_stepped_gives_no_delay() -> None:
    """It says that it kept each packet for a second more than the packet was away: received, without a delay."""
    with FaultyPeer(lambda n: [(n, n - 1)], said_ns=10**9) as peer:
        values = await measure(context_for(peer.port), quick(packets=5))
    assert (values.packets_received, values.delays_rejected, values.delay_min_s) == (5, 5, None)


async def test_forged_answers_are_not_counted() -> None:
    """Garbage and our own packets, from the peer's own port, change nothing."""

    class Forger(FaultyPeer):
        def answer(self, number: int, data: bytes, source: tuple[str, int]) -> None:
            self.sock.sendto(b"\xff" * 44, source)
            self.sock.sendto(data, source)
            super().answer(number, data, source)

    with Forger(lambda n: [(n, n - 1)]) as peer:
        values = await measure(context_for(peer.port), quick(packets=5))
    assert (values.packets_received, values.packets_duplicated) == (5, 0)


async def test_what_comes_after_tmax_is_lost() -> None:
    """Packet 1 is answered when packet 8 arrives, later than Tmax after it left: lost, although it came."""

    def fate(number: int) -> list[tuple[int, int]]:
        return [] if number == 1 else [(number, number - 1)] + ([(1, 0)] if number == 8 else [])

    with FaultyPeer(fate) as peer:
        parameters = RoundTripParameters(packets=8, interval_s=0.2, time_out_s=1.0)
        values = await measure(context_for(peer.port), parameters)
    assert values.packets_received == 7


async def test_a_clock_step_in_the_series_is_never_a_delay() -> None:
    """The wall clock jumps an hour between packets' sending and their return: received, without a delay."""
    stepped_ns = 0

    def clocks() -> Moment:
        moment = now()
        return Moment(moment.wall_ns + stepped_ns, moment.monotonic_ns)

    class SteppingStamp(StampProtocol):
        def reply(self, datagram: bytes) -> echo.Reply | None:
            nonlocal stepped_ns
            stepped_ns += 3600 * 10**9
            return super().reply(datagram)

    async with reflector() as port:
        with LO.socket(4, socket.SOCK_DGRAM) as sock:
            prepare(sock)
            sock.connect(("127.0.0.1", port))
            protocol = SteppingStamp(SystemClock().reading())
            series = await Echo(sock, protocol, Plan(5, 0.01, 0.3), Usage(), clocks).run()
    assert [arrival.delay_ns for arrival in series.arrivals] == [None] * 5


async def test_a_cancelled_series_leaves_nothing_behind() -> None:
    """The scheduler's time-out ends it: the loop watches no socket and has no timer of it any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        context = context_for(deaf.getsockname()[1])
        measuring = asyncio.create_task(measure(context, RoundTripParameters(interval_s=0.01, packets=1000)))
        await until(lambda: context.usage.sent_bytes >= 3 * 44)
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        sent = context.usage.sent_bytes
        await asyncio.sleep(0.05)  # five packets would have left meanwhile
    assert context.usage.sent_bytes == sent


async def test_an_absent_link_is_not_run() -> None:
    """No interface, no measurement: that says nothing about the line."""
    link = Link(LinkConfig(name="gone", interface="gone0"))
    with pytest.raises(NotRunError) as caught:
        await measure(context_for(862, link=link), RoundTripParameters())
    assert caught.value.not_run.reason is NotRunReason.LINK_DOWN


async def test_a_packet_too_long_for_the_socket_is_a_failure() -> None:
    """When the kernel takes none of the packets, the failure is in sending, with the kernel's reason."""

    class Endless(IcmpProtocol):
        def request(self, sequence: int, sent: Moment) -> bytes:
            return super().request(sequence, sent) + bytes(70_000)

    sock, _ = open_echo(LO, 4, 56)
    with sock:
        prepare(sock)
        sock.connect(("127.0.0.1", 0))
        series = await Echo(sock, Endless(4, 56, raw=True), Plan(3, 0.01, 0.2), Usage()).run()
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_failed(series, LO.is_up)
    failure = caught.value.failure
    assert (series.sent, failure.operation, failure.kind) == (0, Operation.SEND, FailureKind.MESSAGE_TOO_LONG)


def test_the_task_is_registered() -> None:
    """Light, and its time-out covers its own longest series."""
    assert TASKS["round_trip"] is TASK
    assert TASK.time_out_s(RoundTripParameters()) > 10 * 0.11 + 3
    assert set(TASK.baseline_fields) <= set(RoundTripValues.__struct_fields__)
