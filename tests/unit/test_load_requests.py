"""Requests beside a load: how often, and when it is no use."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from probe.errors import NotRunError
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.bulk.wire import TlsTerms
from probe.flows.http.channel import Tally
from probe.flows.load.foreign_probe import Target
from probe.flows.load.requests import Requests
from probe.flows.load.responsiveness import WorkingConditions
from probe.messages import FailureKind, NotRunReason, Operation

PLAIN = Target("127.0.0.1", 80, "peer.test", "/small")


def no_socket() -> socket.socket:
    """The link is down."""
    raise NotRunError(NotRunReason.LINK_DOWN, "interface wan0 is absent or down")


@pytest.mark.parametrize(
    ("goodput_bps", "gap_s"),
    [
        (0.0, 0.1),  # nothing is known yet: as asked for
        (1e9, 0.1),
        (1_600_000.0, 0.1),  # 5 % are 80 kbit/s: ten requests of 1,000 bytes a second, just so
        (400_000.0, 0.4),
        (64_000.0, 1.0),  # 2.5 s by the share; one a second is left
        (1.0, 1.0),
    ],
)
def test_requests_take_their_share_and_no_more(goodput_bps: float, gap_s: float) -> None:
    """As often as asked for on a fast line, 5 % of a slow one, and one a second on the slowest."""
    assert Requests(PLAIN, no_socket, 10.0, Tally())._gap_s(goodput_bps) == pytest.approx(gap_s)


def test_what_they_cost_is_learnt() -> None:
    """The first guess knows of certificates; then the mean of those that were answered counts."""
    over_tls = Target("127.0.0.1", 443, "peer.test", "/small", TlsContexts(TlsTerms("peer.test")))
    requests = Requests(over_tls, no_socket, 100.0, Tally())
    assert requests._gap_s(2_000_000.0) == pytest.approx(6400 * 8 / 100_000)
    requests.answered, requests._answered_bytes = 4, 4 * 1600
    assert requests._gap_s(1_000_000.0) == pytest.approx(2000 * 8 / 50_000)


async def test_a_line_that_is_gone_is_hopeless() -> None:
    """Five failures without one answer end the load; the first of them says why."""
    requests = Requests(PLAIN, no_socket, 100.0, Tally())
    asking = asyncio.create_task(requests.go_on(WorkingConditions(time.monotonic(), 0.5)))
    async with asyncio.timeout(5):
        while not requests.is_hopeless:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, *requests.give_up(), return_exceptions=True)
    problem = requests.first_problem
    assert problem is not None
    assert (problem.failure.operation, problem.failure.kind) == (Operation.CONNECT, FailureKind.LINK_LOST)
    requests.answered = 1
    assert not requests.is_hopeless
