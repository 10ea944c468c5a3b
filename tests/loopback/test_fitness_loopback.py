"""What heavy tasks tell of their transfers, so that the host can be judged by the time in which it had to work."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from fleet_controller.lab.services import free_port
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.messages import Peer
from probe.peer.http_peer import HttpPeer
from probe.tasks import capacity, responsiveness
from probe.tasks.base import Context

HOST = "127.0.0.1"


@pytest.fixture
def context() -> Iterator[Context]:
    """Of a peer that answers no STAMP: the idle line is looked at for as long as it may be."""
    server = HttpPeer()
    server.start(HOST, 0)
    peer = Peer(name="near", host=HOST, http_port=server.port, stamp_port=free_port(kind=socket.SOCK_DGRAM))
    yield Context(SystemClock(), 60, Link(LinkConfig(name="wan", interface="lo", source_address=HOST)), peer)
    server.stop()


async def test_capacity_tells_of_its_transfer(context: Context) -> None:
    """The share of a core that it used, and how long it took, whatever came before and after it."""
    parameters = capacity.CapacityParameters(max_duration_s=1, loaded_delay=True)
    values = await asyncio.wait_for(capacity.TASK.measure(context, parameters), 30)
    assert isinstance(values, capacity.CapacityValues)
    assert (context.usage.cpu_ratio, context.usage.transfer_s) == (values.cpu_ratio, values.transfer_s)


async def test_responsiveness_tells_of_its_load(context: Context) -> None:
    """The same of the load."""
    parameters = responsiveness.ResponsivenessParameters(interval_s=0.2, max_duration_s=2)
    values = await asyncio.wait_for(responsiveness.TASK.measure(context, parameters), 30)
    assert isinstance(values, responsiveness.ResponsivenessValues)
    assert context.usage.transfer_s == values.transfer_s
    assert context.usage.cpu_ratio is not None
    assert context.usage.cpu_ratio > 0
