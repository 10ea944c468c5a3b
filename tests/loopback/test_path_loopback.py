"""`path` to this host itself: what needs no router to go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows import moments
from probe.flows.moments import Moment
from probe.flows.path.trace import Trace, prepare
from probe.flows.path.trace_probes import StampProbes
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import Context, Usage
from probe.tasks.path import PathParameters, PathValues, measure, source_port_of

HOST = "127.0.0.1"
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
QUICK = PathParameters(time_out_s=0.3, interval_s=0.005, silent_hops_max=2)


def context(port: int, host: str = HOST, interface: str = "lo", key_file: str = "") -> Context:
    """A context of the loopback; with the file of a key, of a peer that wants it."""
    link = Link(LinkConfig(name="l", interface=interface, source_address_v6="::1"))
    peer = Peer(name="p", host=host, stamp_port=port, stamp_key="fleet" if key_file else "")
    return Context(clock=SystemClock(), time_out_s=20, link=link, peer=peer, stamp_keys={"fleet": key_file})


async def traced(port: int, host: str = HOST, parameters: PathParameters = QUICK) -> PathValues:
    """Trace once."""
    return await measure(context(port, host), parameters)


@contextlib.asynccontextmanager
async def reflector(host: str = HOST, *keys: bytes) -> AsyncIterator[int]:
    """A STAMP reflector; gives its port."""
    one = Reflector(keys=keys)
    await one.start(host, 0)
    try:
        yield one.port
    finally:
        await one.stop()


@contextlib.contextmanager
def bound(port: int = 0) -> Iterator[int]:
    """A UDP port that somebody else has and never reads."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, port))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("host", [HOST, "::1"])
async def test_the_host_itself_is_one_hop_away(host: str) -> None:
    """The shortest path there is, by a reflector's answer."""
    async with reflector(host) as port:
        values = await traced(port, host, PathParameters(ip_version=6 if ":" in host else 4, interval_s=0.005))
    assert (values.path, values.hop_count, values.packets_answered, values.ended_by) == (host, 1, 3, "destination")
    assert values.source_port == source_port_of("l", host, 0)


async def test_a_peer_that_wants_a_key_is_reached_with_it(tmp_path: Path) -> None:
    """By the right key only: with another one, or none, the same peer says nothing."""
    files = {key: tmp_path / f"{key[0]}.key" for key in (KEY, OTHER_KEY)}
    for key, file in files.items():
        file.write_text(key.hex())
        file.chmod(0o600)
    async with reflector(HOST, KEY) as port:
        right = await measure(context(port, key_file=str(files[KEY])), QUICK)
        wrong = await measure(context(port, key_file=str(files[OTHER_KEY])), QUICK)
        without = await traced(port)
    assert (right.reached, right.hop_count, right.ended_by) == (True, 1, "destination")
    assert right.packets_answered == right.packets_sent
    assert (wrong.reached, without.reached) == (False, False)


async def test_a_key_that_is_missing_is_not_run() -> None:
    """As of every task that speaks STAMP: what the peer would not answer is not asked."""
    with pytest.raises(NotRunError) as caught:
        await measure(context(862, key_file="/nowhere/stamp.key"), QUICK)
    assert caught.value.not_run.reason == NotRunReason.TOOL_MISSING


async def test_a_port_where_nobody_reads_is_silence() -> None:
    """The host is there and says nothing: no hop, no failure."""
    with bound() as port:
        values = await traced(port)
    assert (values.path, values.reached, values.ended_by) == ("", False, "silence")


async def test_garbage_is_no_answer() -> None:
    """A server that answers every packet with rubbish has not been reached by STAMP."""

    class Rubbish(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
            assert isinstance(self.transport, asyncio.DatagramTransport)
            self.transport.sendto(b"\xff" * len(data), address)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Rubbish, local_addr=(HOST, 0))
    try:
        values = await traced(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
    assert (values.path, values.packets_answered) == ("", 0)


async def test_a_port_that_is_taken_makes_another_flow_and_says_so() -> None:
    """Another program has the flow's port: the next one is used, and the result names it."""
    wanted = source_port_of("l", HOST, 0)
    async with reflector() as port:
        with bound(wanted):
            values = await traced(port)
    assert values.source_port == wanted + 1
    assert values.hop_count == 1


async def test_when_all_ports_are_taken_nothing_is_pretended() -> None:
    """Eight ports in a row are somebody else's."""
    wanted = source_port_of("l", HOST, 0)
    with contextlib.ExitStack() as stack:
        for port in range(wanted, wanted + 8):
            stack.enter_context(bound(port))
        with pytest.raises(MeasurementFailedError) as caught:
            await traced(9)
    assert caught.value.failure.operation == Operation.SEND
    assert caught.value.failure.kind == FailureKind.ADDRESS_UNAVAILABLE


async def test_a_clock_step_leaves_no_delay_and_every_hop() -> None:
    """The wall clock jumps between sending and receiving: the path is known, the delay is absent, never wrong."""
    reads = 0

    def stepping() -> Moment:
        nonlocal reads
        reads += 1
        moment = moments.now()
        return Moment(moment.wall_ns + reads * 10**9, moment.monotonic_ns)

    async with reflector() as port:
        with Link(LinkConfig(name="l", interface="lo")).socket(4, socket.SOCK_DGRAM) as sock:
            prepare(sock)
            sock.connect((HOST, port))
            probes = StampProbes(SystemClock().reading())
            found = await Trace(sock, probes, HOST, QUICK.plan(), Usage(), stepping).run()
    assert found.destination_ttl() == 1
    assert len(found.hops[0].replies) == 3
    assert found.hops[0].delay_min_ns() is None


async def test_a_trace_that_is_ended_leaves_nothing_behind() -> None:
    """Cancelled in the middle: the socket is closed, and the loop knows its descriptor no more."""
    with bound() as port:
        tracing = asyncio.ensure_future(traced(port, HOST, PathParameters(time_out_s=5.0)))
        await asyncio.sleep(0.1)
        tracing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tracing
        values = await traced(port)
    assert values.source_port == source_port_of("l", HOST, 0)


async def test_a_link_that_is_absent_is_not_run() -> None:
    """A modem that fell off the bus."""
    with pytest.raises(NotRunError) as caught:
        await measure(context(862, interface="wwan7"), QUICK)
    assert caught.value.not_run.reason == NotRunReason.LINK_DOWN


async def test_what_it_costs_is_counted() -> None:
    """Three probes of 44 bytes there and back."""
    async with reflector() as port:
        asked = context(port)
        await measure(asked, PathParameters(interval_s=0.02, silent_hops_max=1))
    assert asked.usage.sent_bytes == asked.usage.received_bytes == 3 * 44
