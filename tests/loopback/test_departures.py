"""The kernel's stamps of what leaves: at the sender, and at the reflector that tells when its answer leaves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.flows.echo import engine as echo
from probe.flows.echo.engine import Echo, Plan, prepare
from probe.flows.echo.icmp import IcmpProtocol, open_echo
from probe.flows.echo.series import Series
from probe.flows.echo.stamp import StampProtocol
from probe.flows.moments import Moment, Stamped
from probe.links import IpVersion, Link
from probe.messages import Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import Context, Usage
from probe.tasks.round_trip import RoundTripParameters, RoundTripValues, measure

LO = Link(LinkConfig(name="lo", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
HOST = {4: "127.0.0.1", 6: "::1"}


@contextlib.asynccontextmanager
async def reflector(host: str = "127.0.0.1") -> AsyncIterator[Reflector]:
    """A real reflector."""
    server = Reflector()
    await server.start(host, 0)
    try:
        yield server
    finally:
        await server.stop()


async def measured(port: int, method: str = "stamp", version: IpVersion = 4) -> RoundTripValues:
    """Ten packets over loopback, whose driver stamps."""
    peer = Peer(name="peer", host=HOST[version], stamp_port=port)
    parameters = RoundTripParameters(
        method=method,  # type: ignore[arg-type]  # one of them
        ip_version=version,
        interval_s=0.01,
        time_out_s=1.0,
    )
    return await measure(Context(clock=SystemClock(), time_out_s=30, link=LO, peer=peer), parameters)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("method", ["stamp", "icmp"])
async def test_both_ends_of_a_delay_are_the_kernels(method: str, version: IpVersion) -> None:
    """Sockets of every kind tell when a packet left and when it came."""
    async with reflector(HOST[version]) as server:
        values = await measured(server.port, method, version)
    assert (values.packets_received, values.delays_rejected, values.stamped) == (10, 0, "kernel_both")


async def test_a_device_without_stamps_of_what_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some drivers have none: the delay is from the stamp of what comes, and the result says so."""
    monkeypatch.setattr(echo, "ask_for_departures", lambda _: None)
    async with reflector() as server:
        values = await measured(server.port)
    assert (values.packets_received, values.delays_rejected, values.stamped) == (10, 0, "kernel_receive")


async def test_a_kernel_without_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 5.1: the delay is from the program's own clock, and the result says so."""
    monkeypatch.setattr(echo, "ask_for_departures", lambda _: None)
    monkeypatch.setattr(echo, "ask_for_stamps", lambda _: None)
    async with reflector() as server:
        values = await measured(server.port)
    assert (values.packets_received, values.delays_rejected, values.stamped) == (10, 0, "user")


async def run_echo(protocol: IcmpProtocol, packets: int) -> Series:
    """A series over a raw socket of loopback."""
    sock, _ = open_echo(LO, 4, 56)
    with sock:
        prepare(sock)
        sock.connect(("127.0.0.1", 0))
        return await Echo(sock, protocol, Plan(packets, 0.01, 0.5), Usage()).run()


async def test_a_refused_packet_does_not_mix_up_the_stamps() -> None:
    """Packets 3 and 6 are too long and never leave: the others keep their own stamps, and these two are not lost."""
    sock, made = open_echo(LO, 4, 56)
    sock.close()

    class SometimesTooLong(IcmpProtocol):
        def request(self, sequence: int, sent: Moment) -> bytes:
            return super().request(sequence, sent) + bytes(70_000 if sequence in {3, 6} else 0)

    series = await run_echo(SometimesTooLong(4, 56, raw=made._raw), 8)
    assert series.sent_sequences == [1, 2, 4, 5, 7, 8]
    assert [arrival.sequence for arrival in series.arrivals] == [1, 2, 4, 5, 7, 8]
    assert series.stamped is Stamped.KERNEL_BOTH
    assert series.send_error is not None


async def test_a_stamp_of_another_packet_is_not_taken() -> None:
    """A stamp from before the packet was sent, and one of a packet that was never sent: neither is used."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        protocol = StampProtocol(SystemClock().reading())
        engine = Echo(sock, protocol, Plan(2, 0.01, 0.1), Usage())
        engine._series.sent_sequences += [1, 2]
        engine._sent |= {1: Moment(1000, 0), 2: Moment(2000, 0)}
        engine._note_departure(0, 1005)
        engine._note_departure(1, 1999)
        engine._note_departure(2, 3000)
    assert engine._departed_ns == {1: 1005}


async def test_the_reflector_learns_when_its_answers_leave() -> None:
    """It writes the time at which it expects the answer to leave; what it learns is less than a millisecond."""
    async with reflector() as server:
        assert server._lag.lag_ns == 0
        for _ in range(3):
            values = await measured(server.port)
            await asyncio.sleep(0.06)
        assert 0 < server._lag.lag_ns < 1_000_000
    assert values.delays_rejected == 0


async def test_a_reflector_whose_kernel_does_not_stamp_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernel's word it writes the time of its clock, as ever."""
    server = Reflector()
    monkeypatch.setattr(server._lag, "prepare", lambda _: None)  # a kernel that refuses
    await server.start("127.0.0.1", 0)
    values = await measured(server.port)
    await server.stop()
    assert (values.packets_received, server._lag.lag_ns) == (10, 0)
