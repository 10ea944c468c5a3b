from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.echo.delays import Arrival
from probe.flows.echo.series import Plan, Series, raise_if_failed
from probe.flows.moments import Moment, Stamped, delay_ns, departure_of, now, stamp_of
from probe.messages import FailureKind, Operation
from probe.tasks.round_trip import RoundTripParameters

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


def test_a_packet_that_seems_back_before_it_left_was_away_for_no_time() -> None:
    """Within one host the stamps' own error is larger than the delay: 0 then; beyond it, a clock was stepped."""
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS), 10 * MS + 50_000) == 0
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS), 10 * MS + 50_001) is None


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


def test_a_departure_is_told_apart_from_an_error() -> None:
    """The error queue has both: the kernel's stamp of a packet that left, with its number, and what ICMP reported."""
    stamps = (socket.SOL_SOCKET, 65, struct.pack("=6q", 1_704_067_200, 7, 0, 0, 0, 0))
    for level, kind in ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)):
        left = (level, kind, struct.pack("=IBBBBII", errno.ENOMSG, 4, 0, 0, 0, 0, 41))
        queued = (level, kind, struct.pack("=IBBBBII", errno.ENOMSG, 4, 0, 0, 0, 1, 41))
        refused = (level, kind, struct.pack("=IBBBBII", errno.ECONNREFUSED, 2, 3, 3, 0, 0, 0))
        assert departure_of([stamps, left]) == (41, WALL + 7)
        assert departure_of([left]) is None
        assert departure_of([stamps, queued]) is None
        assert departure_of([stamps, refused]) is None
    assert departure_of([stamps]) is None
    assert departure_of([(socket.SOL_SOCKET, 65, b"short")]) is None


def test_delay_is_from_the_stamp_of_sending_where_there_is_one() -> None:
    """The kernel had the packet leave 3 ms after the program sent it: these are not the line's."""
    assert delay_ns(SENT, WALL + 10 * MS, later(14 * MS), 1 * MS, WALL + 3 * MS) == 6 * MS


@pytest.mark.parametrize("step_ns", [-(10**9), -MS, MS, 10**9])
def test_a_clock_step_leaves_no_delay_with_both_stamps_either(step_ns: int) -> None:
    """Stepped before the packet left, or while it was away."""
    left_ns, came_ns = WALL + 1 * MS, WALL + 10 * MS
    assert delay_ns(SENT, came_ns + step_ns, later(14 * MS, step_ns), 0, left_ns + step_ns) is None
    assert delay_ns(SENT, came_ns + step_ns, later(14 * MS, step_ns), 0, left_ns) is None


def test_a_series_is_as_well_stamped_as_its_worst_delay() -> None:
    """One delay of another clock and the figures are of both."""
    series = Series()
    assert series.stamped is None
    for stamped in (Stamped.KERNEL_BOTH, Stamped.KERNEL_RECEIVE, Stamped.KERNEL_BOTH):
        series.note_stamped(stamped)
    assert series.stamped is Stamped.KERNEL_RECEIVE


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


def series_of(
    sent: int = 0,
    arrivals: Sequence[Arrival] = (),
    send_error: OSError | None = None,
    network_error: OSError | None = None,
) -> Series:
    """A series with this outcome."""
    return Series(list(range(1, sent + 1)), list(arrivals), send_error=send_error, network_error=network_error)


@pytest.mark.parametrize(
    ("series", "up", "expected"),
    [
        (series_of(sent=10), True, None),
        (series_of(sent=10), False, (Operation.RECEIVE, FailureKind.LINK_LOST)),
        (series_of(sent=1, arrivals=ANSWERED), False, None),
        (series_of(sent=2, arrivals=ANSWERED), False, (Operation.RECEIVE, FailureKind.LINK_LOST)),
        (series_of(sent=10, network_error=REFUSED), True, (Operation.RECEIVE, FailureKind.REFUSED)),
        (series_of(sent=10, network_error=REFUSED, arrivals=ANSWERED), True, None),
        (series_of(send_error=NO_ROUTE), True, (Operation.SEND, FailureKind.NETWORK_UNREACHABLE)),
        (series_of(send_error=NO_ROUTE), False, (Operation.SEND, FailureKind.LINK_LOST)),
        (series_of(sent=9, send_error=NO_ROUTE, arrivals=ANSWERED), True, None),
        (series_of(sent=9, send_error=NO_DEVICE, arrivals=ANSWERED), True, (Operation.SEND, FailureKind.LINK_LOST)),
    ],
)
def test_what_is_a_failure_and_what_is_not(
    series: Series, up: bool, expected: tuple[Operation, FailureKind] | None
) -> None:
    """Silence is a value; a link that went away, a send that was never taken and a bare refusal are failures."""
    assert failure_of(series, up=up) == expected


def test_a_failure_names_the_operation_of_its_method() -> None:
    """What is connected to, and not sent to, fails to connect."""
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_failed(series_of(3, network_error=REFUSED), lambda: True, Operation.CONNECT, Operation.CONNECT)
    assert caught.value.failure.operation is Operation.CONNECT


def test_a_series_is_bounded_to_an_hour() -> None:
    """Ten thousand packets a minute apart would be a week in one row: refused, with what to lower."""
    for good in ({"packets": 10_000}, {"packets": 10_000, "interval_s": 0.32}, {"packets": 50, "interval_s": 60}):
        assert msgspec.convert(good, RoundTripParameters).plan().duration_s_max() <= 3600
    with pytest.raises(
        msgspec.ValidationError, match=r"3600 s at most, and this one could last 3963 s \(lower packets"
    ):
        msgspec.convert({"packets": 60, "interval_s": 60}, RoundTripParameters)
    with pytest.raises(msgspec.ValidationError, match="660003 s"):
        msgspec.convert({"packets": 10_000, "interval_s": 60}, RoundTripParameters)
