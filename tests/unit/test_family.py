from __future__ import annotations

import asyncio
import errno

import pytest

from probe.errors import MeasurementFailedError
from probe.flows.echo.delays import Arrival
from probe.flows.echo.series import Series
from probe.flows.ipv6.dual_stack import Connected, Lookup, difference_s, paired_delays_s, together
from probe.flows.ipv6.family import Family, State, is_answered, raise_if_dead
from probe.flows.ipv6.path_mtu import PathMtu
from probe.links import IpVersion
from probe.messages import FailureKind, Operation

MS = 1_000_000
HOST, ROUTER = "2001:db8::1", "2001:db8:ffff::1"
FOUND = Lookup(address=HOST, took_s=0.01, known_s=0.01)
REFUSED = OSError(errno.ECONNREFUSED, "refused")
PROHIBITED = OSError(errno.EACCES, "prohibited")


def series(*arrivals: Arrival, error: OSError | None = None, refused_by: str | None = None) -> Series:
    """Echoes that came back, or what the network said, and who refused."""
    refusers = set() if refused_by is None else {refused_by}
    return Series(sent_sequences=[1, 2, 3], arrivals=list(arrivals), network_error=error, refused_by=refusers)


@pytest.mark.parametrize(
    ("echoes", "connected", "answered"),
    [
        (series(), Connected(kind=FailureKind.TIMED_OUT), False),
        (series(Arrival(1, MS)), Connected(kind=FailureKind.TIMED_OUT), True),
        (series(), Connected(took_s=0.01), True),
        (series(), Connected(kind=FailureKind.REFUSED), True),
        (series(error=REFUSED, refused_by=HOST), Connected(kind=FailureKind.TIMED_OUT), True),
        (series(error=REFUSED, refused_by=ROUTER), Connected(kind=FailureKind.TIMED_OUT), False),
        (series(error=PROHIBITED, refused_by=HOST), Connected(kind=FailureKind.TIMED_OUT), True),
        (series(), Connected(kind=FailureKind.REFUSED, reporter=HOST), True),
        (series(), Connected(kind=FailureKind.REFUSED, reporter=ROUTER), False),
        (series(error=REFUSED, refused_by=ROUTER), Connected(kind=FailureKind.REFUSED, reporter=ROUTER), False),
        (series(error=PROHIBITED), Connected(kind=FailureKind.PERMISSION_DENIED), False),
    ],
)
def test_anything_from_the_host_is_an_answer(echoes: Series, connected: Connected, answered: bool) -> None:
    """An echo, a connection, a refusal; what a router says on the way is none."""
    assert is_answered(HOST, echoes, connected) is answered
    family = Family(FOUND)
    family.take(echoes, connected)
    assert family.state == (None if answered else "unreachable")


def test_an_address_is_one_however_it_is_written() -> None:
    """What a person wrote and what the kernel says of who refused."""
    assert is_answered("2001:DB8:0::1", series(error=REFUSED, refused_by=HOST), Connected())


@pytest.mark.parametrize(
    ("echoes", "connected", "error"),
    [
        (series(error=REFUSED, refused_by=HOST), Connected(kind=FailureKind.TIMED_OUT), FailureKind.REFUSED),
        (series(), Connected(kind=FailureKind.REFUSED), FailureKind.REFUSED),
        (series(error=REFUSED, refused_by=ROUTER), Connected(kind=FailureKind.REFUSED, reporter=ROUTER), "refused"),
        (series(Arrival(1, MS)), Connected(kind=FailureKind.REFUSED), None),
        (series(error=REFUSED, refused_by=HOST), Connected(took_s=0.01), None),
    ],
)
def test_refusals_and_nothing_else_are_told(echoes: Series, connected: Connected, error: FailureKind | None) -> None:
    """Whoever gave them: a family that works without an echo and without a connection says why it has neither."""
    family = Family(FOUND)
    family.take(echoes, connected)
    assert family.error() == error


async def test_steps_taken_together_end_together() -> None:
    """One fails: the other is ended, and has cleaned up, before the very same failure goes on."""
    ended: list[str] = []

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise MeasurementFailedError(Operation.SEND, FailureKind.LINK_LOST)

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    with pytest.raises(MeasurementFailedError) as caught:
        await together(waits(), fails())
    assert (caught.value.failure.kind, ended) == (FailureKind.LINK_LOST, ["cleaned up"])


def of_state(state: State | None, kind: FailureKind | None = None) -> Family:
    """A family that got so far."""
    return Family(Lookup(kind=kind), state)


@pytest.mark.parametrize(
    ("ipv6", "ipv4", "expected"),
    [
        (of_state("unreachable"), of_state(None), None),
        (of_state(None), of_state("unreachable"), None),
        (of_state("no_address"), of_state(None), None),
        (of_state("unreachable"), of_state("unreachable"), (Operation.RECEIVE, FailureKind.TIMED_OUT)),
        (of_state("no_address"), of_state("unreachable"), (Operation.RECEIVE, FailureKind.TIMED_OUT)),
        (of_state("no_route"), of_state("no_address"), (Operation.SEND, FailureKind.NETWORK_UNREACHABLE)),
        (of_state("no_address"), of_state("no_record"), (Operation.SEND, FailureKind.ADDRESS_UNAVAILABLE)),
        (of_state("no_record"), of_state("no_record"), (Operation.RESOLVE, FailureKind.NO_ANSWER)),
        (
            of_state("no_dns", FailureKind.TIMED_OUT),
            of_state("no_dns", FailureKind.SERVER_FAILURE),
            (Operation.RESOLVE, FailureKind.SERVER_FAILURE),
        ),
    ],
)
def test_broken_ipv6_is_told_from_a_dead_line(
    ipv6: Family, ipv4: Family, expected: tuple[Operation, FailureKind] | None
) -> None:
    """A failure only when neither works, in the words of IPv4 unless the line has none."""
    families: dict[IpVersion, Family] = {6: ipv6, 4: ipv4}
    if expected is None:
        raise_if_dead(families, lambda: True)
        return
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_dead(families, lambda: True)
    assert (caught.value.failure.operation, caught.value.failure.kind) == expected


def test_a_family_that_only_routers_refuse_is_not_alive() -> None:
    """Firewalls on the way refuse both: neither family brought an answer."""
    families: dict[IpVersion, Family] = {6: Family(FOUND), 4: Family(FOUND)}
    for family in families.values():
        family.take(series(error=REFUSED, refused_by=ROUTER), Connected(kind=FailureKind.REFUSED, reporter=ROUTER))
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_dead(families, lambda: True)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.RECEIVE, FailureKind.REFUSED)


def test_a_link_that_went_away_is_lost_whatever_was_seen() -> None:
    """What was half measured over it is not a fact about IPv6."""
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_dead({6: of_state("unreachable"), 4: of_state(None)}, lambda: False)
    assert caught.value.failure.kind == FailureKind.LINK_LOST


def test_a_black_hole_is_the_last_step() -> None:
    """Only when it is one: an unknown MTU changes nothing."""
    family = of_state(None)
    family.take_mtu(None)
    family.take_mtu(PathMtu(1400, is_black_hole=False, reported_bytes=1400, sizes_asked=3))
    assert family.state is None
    family.take_mtu(PathMtu(1400, is_black_hole=True, reported_bytes=None, sizes_asked=12))
    assert family.state == "mtu_black_hole"


def test_pairs_are_of_neighbours_that_both_came_back() -> None:
    """Losses break a pair; a repeat counts once; a delay without a clock counts not at all."""
    ipv6 = series(Arrival(1, 5 * MS), Arrival(2, 7 * MS), Arrival(2, 9 * MS), Arrival(3, None))
    ipv4 = series(Arrival(2, 4 * MS), Arrival(3, 4 * MS))
    assert paired_delays_s(ipv6, ipv4) == [(0.007, 0.004)]


def test_the_difference_is_that_of_the_medians() -> None:
    """Above zero, IPv6 is slower; without a pair there is none."""
    assert difference_s([(0.007, 0.004), (0.009, 0.005), (0.100, 0.006)]) == pytest.approx(0.004)
    assert difference_s([]) is None


def test_the_wait_for_a_size_is_bounded() -> None:
    """Three delays, never under 0.3 s nor over 1.5 s."""
    family = Family(FOUND)
    for delay_ms, wait_s in ((1, 0.3), (200, 0.6), (2000, 1.5)):
        family.series = series(Arrival(1, delay_ms * MS))
        assert family.mtu_wait_s() == pytest.approx(wait_s)


def test_a_gateway_that_is_gone_is_how_the_family_failed() -> None:
    """Our own kernel's word goes before what the time-outs say, which is only that they were over."""
    family = Family(FOUND)
    family.take(series(), Connected(kind=FailureKind.TIMED_OUT))
    assert family.error() == FailureKind.TIMED_OUT
    family.own_error = OSError(errno.EHOSTUNREACH, "does not answer for its address")
    assert family.error() == FailureKind.HOST_UNREACHABLE
