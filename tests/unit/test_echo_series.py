from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.delays import Arrival
from probe.flows.echo import Plan, Series, error_of, raise_if_failed
from probe.flows.moments import Moment, delay_ns, now, stamp_of
from probe.messages import FailureKind, Operation

MS = 1_000_000
WALL = 1_704_067_200_000_000_000
SENT = Moment(WALL, 50_000)


def later(elapsed_ns: int, stepped_ns: int = 0) -> Moment:
    """A moment after SENT, on a wall clock that was stepped meanwhile."""
    return Moment(SENT.wall_ns + elapsed_ns + stepped_ns, SENT.monotonic_ns + elapsed_ns)


def test_delay_is_from_the_kernels_stamp_less_the_residence() -> None:
    """Sent at 0, stamped at 10 ms, read by the program at 14 ms, kept by the reflector for 1 ms: 9 ms."""
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS), 1 * MS) == 9 * MS


def test_delay_without_a_stamp_is_from_the_monotonic_clock() -> None:
    """Where the kernel stamps nothing, a step of the wall clock does not matter either."""
    assert delay_ns(SENT, None, later(14 * MS, stepped_ns=10**12), 1 * MS) == 13 * MS


@pytest.mark.parametrize("step_ns", [-(10**18), -(10**9), -MS, MS, 10**9, 10**18])
def test_a_clock_step_leaves_no_delay(step_ns: int) -> None:
    """Stepped between sending and receiving, before or after the stamp: absent, never wrong."""
    assert delay_ns(SENT, WALL + 10 * MS + step_ns, later(14 * MS, step_ns)) is None
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS, step_ns)) is None


@pytest.mark.parametrize("residence_ns", [-1, 11 * MS, 10**15])
def test_a_residence_that_cannot_be_leaves_no_delay(residence_ns: int) -> None:
    """The reflector's clock was stepped: it says that it kept the packet longer than it was away, or less than 0."""
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS), residence_ns) is None


@given(
    st.integers(min_value=0, max_value=3 * 10**9),
    st.integers(min_value=0, max_value=10**9),
    st.integers(min_value=-(10**12), max_value=10**12),
    st.booleans(),
)
def test_no_delay_is_ever_wrong_by_more_than_the_guard(
    away_ns: int, read_late_ns: int, step_ns: int, stepped_before_stamp: bool
) -> None:
    """Whatever step happens at whatever time, the delay is right to 0.5 ms or absent."""
    stamp = WALL + away_ns + (step_ns if stepped_before_stamp else 0)
    delay = delay_ns(SENT, stamp, later(away_ns + read_late_ns, step_ns))
    assert delay is None or abs(delay - away_ns) <= 500_000


def test_the_two_clocks_are_read_together() -> None:
    """The pair moves alike: without a step, the difference of the clocks is the same twice within the guard."""
    first, second = now(), now()
    drift = (second.wall_ns - first.wall_ns) - (second.monotonic_ns - first.monotonic_ns)
    assert delay_ns(first, second.wall_ns, second) is not None, f"the clocks drifted by {drift} ns"


def test_stamps_are_found_among_other_messages() -> None:
    """The kernel's own layout: two 64-bit numbers; anything else is not a stamp."""
    ttl = (socket.IPPROTO_IP, socket.IP_TTL, struct.pack("=i", 64))
    stamp = (socket.SOL_SOCKET, 64, struct.pack("=qq", 1_704_067_200, 5))
    assert stamp_of([ttl, stamp]) == WALL + 5
    assert stamp_of([ttl]) is None
    assert stamp_of([(socket.SOL_SOCKET, 64, b"short")]) is None


def test_network_errors_are_read_from_the_error_queue() -> None:
    """The errno comes first in struct sock_extended_err."""
    content = struct.pack("=IBBBBII", errno.EHOSTUNREACH, 2, 3, 1, 0, 0, 0)
    for level, kind in ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)):
        error = error_of([(level, kind, content)])
        assert error is not None
        assert error.errno == errno.EHOSTUNREACH
    assert error_of([(socket.SOL_SOCKET, 64, content)]) is None


def test_the_longest_series_is_known_beforehand() -> None:
    """Every gap a tenth longer than asked for, and Tmax for the last packet."""
    assert Plan(packets=10, interval_s=0.1, time_out_s=3.0).duration_s_max() == pytest.approx(4.1)


def failure_of(series: Series, *, up: bool = True) -> tuple[Operation, FailureKind] | None:
    """What the series is judged to be."""
    try:
        raise_if_failed(series, lambda: up)
    except MeasurementFailedError as error:
        return error.failure.operation, error.failure.kind
    return None


ANSWERED = [Arrival(1, MS)]
REFUSED = OSError(errno.ECONNREFUSED, "refused")
NO_ROUTE = OSError(errno.ENETUNREACH, "no route")
NO_DEVICE = OSError(errno.ENODEV, "no such device")


@pytest.mark.parametrize(
    ("series", "up", "expected"),
    [
        (Series(sent=10), True, None),
        (Series(sent=10), False, (Operation.RECEIVE, FailureKind.LINK_LOST)),
        (Series(sent=1, arrivals=ANSWERED), False, None),
        (Series(sent=2, arrivals=ANSWERED), False, (Operation.RECEIVE, FailureKind.LINK_LOST)),
        (Series(sent=10, network_error=REFUSED), True, (Operation.RECEIVE, FailureKind.REFUSED)),
        (Series(sent=10, network_error=REFUSED, arrivals=ANSWERED), True, None),
        (Series(send_error=NO_ROUTE), True, (Operation.SEND, FailureKind.NETWORK_UNREACHABLE)),
        (Series(send_error=NO_ROUTE), False, (Operation.SEND, FailureKind.LINK_LOST)),
        (Series(sent=9, send_error=NO_ROUTE, arrivals=ANSWERED), True, None),
        (Series(sent=9, send_error=NO_DEVICE, arrivals=ANSWERED), True, (Operation.SEND, FailureKind.LINK_LOST)),
    ],
)
def test_what_is_a_failure_and_what_is_not(
    series: Series, up: bool, expected: tuple[Operation, FailureKind] | None
) -> None:
    """Silence is a value; a link that went away, a send that was never taken and a bare refusal are failures."""
    assert failure_of(series, up=up) == expected
