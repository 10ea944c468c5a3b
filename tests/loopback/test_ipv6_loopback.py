"""`ipv6` to this host itself, 127.0.0.1 against ::1."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from worded_resolver import serving

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
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


@contextlib.asynccontextmanager
async def web_ports(*hosts: str) -> AsyncIterator[int]:
    """One TCP port of these addresses, which closes what it accepts."""
    port = 0
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts:
            server = await asyncio.start_server(lambda _, writer: writer.close(), host, port)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            port = server.sockets[0].getsockname()[1]
        yield port


@contextlib.asynccontextmanager
async def silent_resolver() -> AsyncIterator[str]:
    """One that takes questions by IPv6 and answers none."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(V6, 0))
    try:
        yield f"[{V6}]:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()


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
    assert (values.error_v6, values.error_v4) == ("refused", None)


async def test_the_time_of_a_lost_question_counts_for_who_wins() -> None:
    """The first question for IPv6 is lost, the second answered at once: a program has connected by IPv4 long before.

    What the resolver needed for its answer is told as it was.
    """
    words: dict[str, list[str | None]] = {"both.test": [V4], "AAAA both.test": [None, V6]}
    async with reflectors(V4, V6) as port, serving(words) as where, web_ports(V4, V6) as http_port:
        link = Link(LinkConfig(name="l", interface="lo", source_address_v6=V6, resolvers=(where,)))
        peer = Peer(name="p", host="both.test", stamp_port=port, http_port=http_port)
        context = Context(clock=SystemClock(), time_out_s=20, link=link, peer=peer)
        values = await measure(context, Ipv6Parameters(packets=2, interval_s=0.02, time_out_s=0.3, mtu=False))
    assert values.connect_v6_s is not None
    assert (values.state, values.state_v4, values.winner) == ("works", "works", "ipv4")
    assert values.dns_v6_s is not None
    assert values.dns_v6_s < 0.5


async def test_a_step_that_fails_ends_the_other_one() -> None:
    """No echo can be sent, while the resolver is silent by IPv6: nobody goes on waiting for its answer."""
    words: dict[str, list[str | None]] = {"both.test": [V4], "AAAA both.test": [V6]}
    async with serving(words) as where, silent_resolver() as silent:
        link = Link(LinkConfig(name="l", interface="lo", source_address_v6=V6, resolvers=(where, silent)))
        peer = Peer(name="p", host="both.test", stamp_key="fleet")
        context = Context(clock=SystemClock(), time_out_s=20, link=link, peer=peer)
        with pytest.raises(NotRunError) as caught:
            await measure(context, Ipv6Parameters())
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert caught.value.not_run.reason == NotRunReason.TOOL_MISSING


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
