"""`round_trip` by TCP connect over loopback: what is a delay, what a loss, what a refusal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.echo.series import Plan
from probe.flows.echo.tcp_connect import Connect
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason, Operation, Peer
from probe.tasks.base import Context
from probe.tasks.round_trip import RoundTripParameters, RoundTripValues, measure

LO = Link(LinkConfig(name="lo", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
HOST = {4: "127.0.0.1", 6: "::1"}
TIME_OUT_S = 10.0


@contextlib.contextmanager
def listener(version: int = 4, backlog: int = 64) -> Iterator[socket.socket]:
    """A socket that listens: the kernel completes connections by itself."""
    with socket.socket(FAMILY[version], socket.SOCK_STREAM) as sock:
        sock.bind((HOST[version], 0))
        sock.listen(backlog)
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        yield sock


@contextlib.contextmanager
def deaf_listener() -> Iterator[socket.socket]:
    """One with a full queue: it drops SYNs until somebody accepts."""
    with listener(backlog=0) as sock, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as first:
        first.connect(sock.getsockname())
        yield sock


def descriptors() -> int:
    """How many this process holds."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def measured(
    sock: socket.socket, version: IpVersion = 4, packets: int = 10, time_out_s: float = 2.0
) -> RoundTripValues:
    """Measure to who listens at the socket's address."""
    peer = Peer(name="peer", host=HOST[version], http_port=sock.getsockname()[1])
    context = Context(clock=SystemClock(), time_out_s=30, link=LO, peer=peer)
    parameters = RoundTripParameters(
        method="tcp", ip_version=version, packets=packets, interval_s=0.02, time_out_s=time_out_s
    )
    values = await measure(context, parameters)
    assert (context.usage.sent_bytes, context.usage.received_bytes) == (0, 0)  # a SYN has no payload
    return values


@pytest.mark.parametrize("version", [4, 6])
async def test_a_clean_path(version: IpVersion) -> None:
    """Ten SYNs, ten delays by the kernel's clock; each connection is reset, so that the peer keeps nothing of it."""
    with listener(version) as sock:
        values = await measured(sock, version)
        for _ in range(10):
            connection, _ = sock.accept()
            with connection, pytest.raises(ConnectionResetError):
                connection.recv(1)
        with pytest.raises(BlockingIOError):
            sock.accept()
    assert (values.packets_sent, values.packets_received, values.packets_refused) == (10, 10, 0)
    assert (values.packets_duplicated, values.packets_reordered, values.loss_bursts) == (None, 0, 0)
    assert values.stamped == "kernel_tcp"
    assert values.delay_min_s is not None
    assert values.delay_max_s is not None
    assert 0 < values.delay_min_s <= values.delay_max_s < 0.1


async def test_a_refusal_is_a_failure_to_connect() -> None:
    """Nobody listens: something on the path said no, and no delay of the peer can be made of that."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(MeasurementFailedError) as caught:
            await measured(unused)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.CONNECT, FailureKind.REFUSED)


async def test_a_refusal_among_answers_is_neither_delay_nor_loss() -> None:
    """The peer stops listening in mid-series: what it refuses from then on is counted as that."""
    with listener() as sock:
        measuring = asyncio.create_task(measured(sock, packets=20))
        async with asyncio.timeout(TIME_OUT_S):
            for _ in range(5):
                connection, _ = await asyncio.get_running_loop().sock_accept(sock)
                connection.close()
        sock.close()
        # `measured` asked for the address before the first packet left.
        values = await measuring
    assert values.packets_refused is not None
    assert values.packets_received >= 5
    assert values.packets_refused > 0
    assert values.packets_received + values.packets_refused == values.packets_sent == 20
    assert (values.loss_bursts, values.loss_burst_max_packets) == (0, 0)


async def test_silence_is_a_loss() -> None:
    """No SYN is answered: three sent, none received, no delay, and no failure."""
    with deaf_listener() as sock:
        values = await measured(sock, packets=3, time_out_s=0.3)
    assert (values.packets_sent, values.packets_received, values.packets_refused) == (3, 0, 0)
    assert (values.delay_min_s, values.stamped, values.loss_burst_max_packets) == (None, None, 3)


async def test_the_kernels_second_try_does_not_hide_a_loss() -> None:
    """The first SYN is dropped, the one that the kernel sends a second later is answered: the packet was lost."""
    with deaf_listener() as sock:
        measuring = asyncio.create_task(measured(sock, packets=1, time_out_s=3.0))
        await asyncio.sleep(0.3)
        sock.accept()[0].close()
        async with asyncio.timeout(TIME_OUT_S):
            values = await measuring
        sock.accept()[0].close()  # the connection stood in the end
    assert (values.packets_sent, values.packets_received, values.delay_min_s) == (1, 0, None)


async def test_a_cancelled_series_leaves_no_socket() -> None:
    """The scheduler's time-out ends it while connections wait: all their descriptors are closed."""
    with deaf_listener() as sock:
        before = descriptors()
        measuring = asyncio.create_task(measured(sock, packets=30, time_out_s=1.0))
        async with asyncio.timeout(TIME_OUT_S):
            while descriptors() < before + 5:  # noqa: ASYNC110 - descriptors have no event
                await asyncio.sleep(0.01)
        measuring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        assert descriptors() == before


async def test_a_link_that_goes_down_stops_the_series() -> None:
    """Down before the first packet it is not run; down later, the series says that the kernel refused."""
    left = 2

    def open_socket() -> socket.socket:
        nonlocal left
        if not left:
            raise NotRunError(NotRunReason.LINK_DOWN, "interface lo is absent or down")
        left -= 1
        return LO.socket(4, socket.SOCK_STREAM)

    with listener() as sock:
        series = await Connect(open_socket, sock.getsockname(), Plan(5, 0.01, 0.5)).run()
        assert (series.sent, len(series.arrivals), series.lost_link()) == (2, 2, True)
        with pytest.raises(NotRunError):
            await Connect(open_socket, sock.getsockname(), Plan(5, 0.01, 0.5)).run()
