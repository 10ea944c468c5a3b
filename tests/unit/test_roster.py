"""Which streams there are, which ones there should be, and what became of the others."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.bulk.allowance import Allowance
from probe.flows.bulk.roster import Roster
from probe.flows.bulk.stream import Order, Stream
from probe.messages import FailureKind, NotRunReason, Operation

FILE_BYTES = 2_400_000
RESET = MeasurementFailedError(Operation.TRANSFER, FailureKind.RESET, "cut")


@pytest.fixture
def order() -> Iterator[Order]:
    """Of a file, from somebody who accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Order(
            direction="download", address="127.0.0.1", port=listener.getsockname()[1], host="p", path="/",
            max_duration_s=1.0, max_bytes=None, streams_max=4, file_bytes=FILE_BYTES,
        )  # fmt: skip


def open_socket() -> socket.socket:
    """As a link does."""
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
    return sock


@pytest.fixture
def allowance() -> Allowance:
    """All of the file, soft."""
    return Allowance(FILE_BYTES, is_hard=False)


@pytest.fixture
def roster(order: Order, allowance: Allowance) -> Iterator[Roster]:
    """With four streams that run."""
    one = Roster(order, open_socket, allowance)
    one.wanted = 4
    for _ in range(4):
        one.open(has_begun=True)
    yield one
    one.close()


def running(roster: Roster) -> list[Stream]:
    """Those that run."""
    return list(roster.running.values())


def test_what_has_nothing_more_to_do_is_not_missing(roster: Roster, allowance: Allowance) -> None:
    """Three have done their part of a file; what the fourth gives back is one stream's work."""
    allowance.take(FILE_BYTES)
    *done, last = running(roster)
    for stream in done:
        stream.is_spent = True
        roster.drop(stream)
    assert (roster.missing, roster.carrying, roster.is_spent) == (0, 4, True)
    allowance.give_back(100_000)
    roster.drop(last)
    assert (roster.missing, roster.carrying) == (1, 4)
    roster.open(has_begun=True)
    assert (roster.missing, roster.carrying, roster.failed) == (0, 4, 0)


def test_a_stream_that_the_peer_has_ended_carries_until_the_next_one_follows(roster: Roster) -> None:
    """Between the two it is missing, and counted all the same."""
    roster.drop(running(roster)[0])
    assert (len(roster.running), roster.missing, roster.carrying) == (3, 1, 4)
    roster.open(has_begun=True)
    assert (len(roster.running), roster.missing, roster.carrying) == (4, 0, 4)


def test_a_stream_that_failed_before_its_first_byte_is_not_replaced(roster: Roster) -> None:
    """It failed, and there is one less; the first problem is kept."""
    first, second, *_ = running(roster)
    roster.drop(first, RESET)
    roster.drop(second, MeasurementFailedError(Operation.CONNECT, FailureKind.REFUSED, "later"))
    assert (roster.missing, roster.carrying, roster.failed, roster.first_problem) == (0, 2, 2, RESET)


def test_eight_streams_that_were_cut_are_replaced(roster: Roster) -> None:
    """After they had moved bytes; the ninth is lost for good."""
    for cut in range(1, 10):
        stream = running(roster)[0]
        stream.counted_bytes = 1
        roster.drop(stream, RESET)
        assert (roster.missing, roster.failed) == ((1, cut) if cut <= 8 else (0, 9))
        if roster.missing:
            roster.open(has_begun=True)
    assert len(roster.running) == 3


def test_a_peer_that_ends_every_stream_is_given_up_on(roster: Roster) -> None:
    """After 256 connections each one more is a failure, until none is missing."""
    for _ in range(252):
        roster.drop(running(roster)[0])
        roster.open(has_begun=True)
    assert (roster.failed, roster.missing) == (0, 0)
    roster.drop(running(roster)[0])
    roster.open(has_begun=True)
    assert (roster.failed, roster.missing) == (1, 0)
    assert roster.first_problem is not None
    assert roster.first_problem.failure.kind is FailureKind.CLOSED


def test_a_link_that_is_down_at_first_is_not_run_and_later_lost(order: Order, allowance: Allowance) -> None:
    """Before anything began, the link's own word; afterwards a stream that failed."""

    def no_socket() -> socket.socket:
        raise NotRunError(NotRunReason.LINK_DOWN, "down")

    roster = Roster(order, no_socket, allowance)
    with pytest.raises(NotRunError):
        roster.open(has_begun=False)
    roster.open(has_begun=True)
    assert roster.first_problem is not None
    assert (roster.failed, roster.first_problem.failure.kind) == (1, FailureKind.LINK_LOST)
    roster.close()


def test_streams_are_opened_one_after_the_other(order: Order, allowance: Allowance) -> None:
    """The next one's turn is 10 ms later; none is due when none is missing."""
    roster = Roster(order, open_socket, allowance)
    roster.wanted = 2
    assert roster.open_due(has_begun=False) == roster.open_due(has_begun=False) == pytest.approx(0.01)
    assert len(roster.running) == 1
    roster.wanted = 1
    assert roster.open_due(has_begun=True) is None
    roster.close()
