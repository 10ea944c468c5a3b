"""`ipv6` to this host itself, 127.0.0.1 against ::1."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.links import Link
from probe.messages import FailureKind, Operation, Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import Context
from probe.tasks.ipv6 import TASK, Ipv6Parameters, Ipv6Values, measure

V4, V6 = "127.0.0.1", "::1"


@contextlib.asynccontextmanager
async def reflectors(*hosts: str) -> AsyncIterator[int]:
    """STAMP reflectors on one port of these addresses."""
    ones = [Reflector() for _ in hosts]
    port = 0
    try:
        for one, host in zip(ones, hosts, strict=True):
            await one.start(host, port)
            port = one.port
        yield port
    finally:
        for one in ones:
            await one.stop()


async def measured(stamp_port: int, http_port: int = 9) -> tuple[Ipv6Values, Context]:
    """Measure once."""
    link = Link(LinkConfig(name="l", interface="lo", source_address=V4, source_address_v6=V6))
    peer = Peer(name="p", host=V4, stamp_port=stamp_port, http_port=http_port)
    context = Context(clock=SystemClock(), time_out_s=20, link=link, peer=peer)
    parameters = Ipv6Parameters(host_v6=V6, packets=5, interval_s=0.02, time_out_s=0.3)
    return await measure(context, parameters), context


async def test_both_families_of_this_host() -> None:
    """Five pairs, both at 1500 bytes, a connection by IPv6, and no address that the Internet could answer."""
    async with reflectors(V4, V6) as port:
        server = await asyncio.start_server(lambda _, writer: writer.close(), V6, 0)
        http_port = server.sockets[0].getsockname()[1]
        values, context = await measured(port, http_port)
        server.close()
        await server.wait_closed()
    assert (values.state, values.state_v4, values.pairs) == ("works", "works", 5)
    assert (values.path_mtu_v6_bytes, values.path_mtu_v4_bytes) == (1500, 1500)
    assert (values.address_kind, values.nat64, values.resolver_v6_answers) == ("none", False, None)
    assert (values.winner, values.connect_v4_s) == ("ipv6", None)
    # Ten STAMP packets, and one of 1500 bytes less its headers for each family.
    assert context.usage.sent_bytes == context.usage.received_bytes == 10 * 44 + (1500 - 48) + (1500 - 28)


async def test_a_refusal_is_an_answer_too() -> None:
    """Nobody listens at the STAMP port by IPv6, and the host says so: IPv6 works, without a delay."""
    async with reflectors(V4) as port:
        values, _ = await measured(port)
    assert (values.state, values.state_v4) == ("works", "works")
    assert (values.packets_received_v6, values.delay_median_v6_s, values.delay_difference_s) == (0, None, None)
    assert (values.packets_received_v4, values.path_mtu_v6_bytes) == (5, None)


async def test_packets_that_the_kernel_refuses_are_a_failure() -> None:
    """Neither family of the host can be sent to: no word about IPv6."""
    link = Link(LinkConfig(name="l", interface="lo", source_address=V4, source_address_v6=V6))
    peer = Peer(name="p", host="240.0.0.1")
    context = Context(clock=SystemClock(), time_out_s=20, link=link, peer=peer)
    with pytest.raises(MeasurementFailedError) as caught:
        await measure(context, Ipv6Parameters(host_v6="2001:db8::1", packets=2, interval_s=0.02, time_out_s=0.2))
    assert caught.value.failure.operation in {Operation.SEND, Operation.RECEIVE}
    assert caught.value.failure.kind != FailureKind.OTHER


async def test_one_that_is_ended_leaves_nothing_behind() -> None:
    """Cancelled while it waits for echoes: every socket is closed (a warning would fail this test)."""
    measuring = asyncio.ensure_future(measured(9))
    await asyncio.sleep(0.05)
    measuring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await measuring


def test_it_says_whom_it_will_be_aimed_at() -> None:
    """Hosts given in the parameters are held against the device's own targets."""
    assert TASK.targets(Ipv6Parameters(host="a.example", host_v6="b.example")) == ("a.example", "b.example")
    assert TASK.targets(Ipv6Parameters()) == ()


def test_the_time_granted_is_what_its_steps_may_take() -> None:
    """Longer series, more time; no search, less."""
    usual = TASK.time_out_s(Ipv6Parameters())
    assert TASK.time_out_s(Ipv6Parameters(packets=100, interval_s=5.0)) > usual + 400
    assert TASK.time_out_s(Ipv6Parameters(mtu=False)) < usual
