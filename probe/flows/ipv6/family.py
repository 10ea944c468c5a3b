"""One version of IP on its way through the steps that make it work: address, route, name, answers, path MTU.

The first step that fails is its state. Broken IPv6 beside working IPv4 is a fact about the line; when neither brings an
answer, it is the peer or the whole line that is dead, and nothing was learned about IPv6.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from probe.errors import MeasurementFailedError
from probe.flows.echo.delays import summarise
from probe.flows.echo.series import Series
from probe.flows.faults import kind_of
from probe.flows.ipv6.dual_stack import Connected, Lookup, has_route
from probe.flows.ipv6.happy_eyeballs import Attempt
from probe.flows.ipv6.path_mtu import PathMtu
from probe.links import IpVersion, Link
from probe.messages import FailureKind, Operation

State = Literal["works", "no_address", "no_route", "no_dns", "no_record", "unreachable", "mtu_black_hole"]

# An address that no host has (RFC 3849): only a default route leads there.
ANYWHERE: Final = "2001:db8:ffff:ffff::1"
# Each size may take this many delays, within bounds: a router that must say "too big" answers late.
_MTU_WAIT_DELAYS: Final = 3.0
_MTU_WAIT_S: Final = (0.3, 1.5)


@dataclass(slots=True)
class Family:
    """What is known of one family. `state` is absent as long as no step has failed.

    `own_error` is our own kernel's word of why nothing came back: the next hop does not answer for its address.
    """

    lookup: Lookup
    state: State | None = None
    series: Series | None = None
    connected: Connected | None = None
    own_error: OSError | None = None
    mtu: PathMtu | None = None

    def address(self) -> str:
        """The host's address, of a family that has come past the name."""
        assert self.lookup.address is not None  # noqa: S101 - without one its state says so
        return self.lookup.address

    def take(self, series: Series, connected: Connected) -> None:
        """What came of the echoes and of the connection."""
        self.series, self.connected = series, connected
        self.state = None if is_answered(self.address(), series, connected) else "unreachable"

    def take_mtu(self, mtu: PathMtu | None) -> None:
        """What came of the search for the path MTU; absent when its time was over."""
        self.mtu = mtu
        if mtu is not None and mtu.is_black_hole:
            self.state = "mtu_black_hole"

    def echoes(self) -> bool:
        """Whether echoes came back: where only TCP answers, there is nothing to tell sizes by."""
        return self.series is not None and bool(self.series.arrivals)

    def is_only_refused(self) -> bool:
        """Whether the host was asked, and brought neither an echo nor a connection."""
        return self.connected is not None and self.connected.took_s is None and not self.echoes()

    def mtu_wait_s(self) -> float:
        """How long a packet of any size may take."""
        delay_s = None if self.series is None else summarise(self.series.arrivals).max_s
        least_s, most_s = _MTU_WAIT_S
        return min(max(_MTU_WAIT_DELAYS * (delay_s or 0.0), least_s), most_s)

    def attempt(self) -> Attempt:
        """What a program that connects would have met."""
        connect_s = None if self.connected is None else self.connected.took_s
        return Attempt(self.lookup.known_s, connect_s)

    def error(self) -> FailureKind | None:
        """How it failed, as the network or the resolver put it; `refused` also when the host gave refusals alone."""
        if self.lookup.kind is not None:
            return self.lookup.kind
        if self.state is None and self.is_only_refused():
            return FailureKind.REFUSED
        if self.state != "unreachable":
            return None
        if self.own_error is not None:
            return kind_of(self.own_error)
        error = None if self.series is None else self.series.network_error or self.series.send_error
        if error is not None:
            return kind_of(error)
        return FailureKind.TIMED_OUT if self.connected is None else self.connected.kind


def is_answered(address: str, series: Series, connected: Connected) -> bool:
    """Whether anything came back from the host at this address: an echo, a connection, or its own refusal of either.

    A firewall on the way refuses with the same words (ICMP port unreachable), and then the packets never got there.
    """
    host = ipaddress.ip_address(address)
    refusers = {ipaddress.ip_address(reporter) for reporter in series.refused_by}
    if connected.kind == FailureKind.REFUSED:
        refusers.add(host if connected.reporter is None else ipaddress.ip_address(connected.reporter))
    return bool(series.arrivals) or connected.took_s is not None or host in refusers


def local_state(link: Link, version: IpVersion, has_address: bool, lookup: Lookup) -> State | None:
    """What is wrong before the first packet of this family. The line comes before the name."""
    if not has_address:
        return "no_address"
    if version == 6 and lookup.address is None and not has_route(link, 6, ANYWHERE):  # noqa: PLR2004 - an IP version
        return "no_route"
    if lookup.address is None:
        return lookup.problem
    return None if has_route(link, version, lookup.address) else "no_route"


def raise_if_lost(is_up: Callable[[], bool]) -> None:
    """What was half measured over a link that is no longer there says nothing of IPv6.

    Raises:
        MeasurementFailedError: the link went away (`link_lost`).
    """
    if not is_up():
        raise MeasurementFailedError(Operation.RECEIVE, FailureKind.LINK_LOST, "the link went down meanwhile")


def raise_if_dead(families: Mapping[IpVersion, Family], is_up: Callable[[], bool]) -> None:
    """Tell broken IPv6 from a line or a peer that is dead altogether.

    Raises:
        MeasurementFailedError: neither family brought an answer, in the words of IPv4, or of IPv6 where there is
            nothing else; or the link went away (`link_lost`).
    """
    raise_if_lost(is_up)
    if any(family.state is None for family in families.values()):
        return
    speaker = families[6] if families[4].state in {"no_address", "no_record"} else families[4]
    operation, kind = _FAILURES.get(speaker.state or "", (Operation.RECEIVE, FailureKind.TIMED_OUT))
    detail = f"IPv6: {families[6].state}, IPv4: {families[4].state}"
    raise MeasurementFailedError(operation, speaker.error() or kind, detail)


_FAILURES: Final = {
    "no_address": (Operation.SEND, FailureKind.ADDRESS_UNAVAILABLE),
    "no_route": (Operation.SEND, FailureKind.NETWORK_UNREACHABLE),
    "no_dns": (Operation.RESOLVE, FailureKind.TIMED_OUT),
    "no_record": (Operation.RESOLVE, FailureKind.NO_ANSWER),
}
