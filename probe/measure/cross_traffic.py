"""What others moved over a link: during a measurement, and shortly before it.

The interface counts headers, a task counts payload. Bytes and packets of an interface grow by the same packets, however
large these are (a super-packet of a virtual interface counts once, with its headers once), so packets times headers is
what the headers were. Those of other people's packets are taken for ours too: cross traffic is about payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from probe.clock import NS_PER_S
from probe.measure.host_readings import Traffic, interface_figure

_BITS: Final = 8
_ETHERNET_BYTES: Final = 14
_ARPHRD_ETHER: Final = 1  # linux/if_arp.h
_IP_BYTES: Final = {4: 20, 6: 40}
# TCP with the time stamps that Linux always sends. UDP has 24 less: a train of 100 packets hides 2.4 kB each way.
_TRANSPORT_BYTES: Final = 32
HEADER_BYTES_MAX: Final = _ETHERNET_BYTES + _IP_BYTES[6] + _TRANSPORT_BYTES
# Neighbour discovery, name resolution, the first packets of a connection.
_CHATTER_BYTES: Final = 2048
# Sent again, in selective acknowledgements, or on its way when the transfer was ended: own bytes that no task counts.
_UNCOUNTED_RATIO: Final = 0.02

# The rate before is of at least this time, so that one packet is not a rate, and of one that was "shortly before".
_BEFORE_NS_MIN: Final = NS_PER_S
_BEFORE_NS_MAX: Final = 300 * NS_PER_S
# What the buffers of the line still hold when a bulk transfer has been ended comes within this time.
_SETTLING_NS: Final = 3 * NS_PER_S


@dataclass(frozen=True, slots=True)
class _Mark:
    """An earlier moment: all that the interface, and all that this probe, had moved until then."""

    at_ns: int
    moved_bytes: int
    own_bytes: int


@dataclass(slots=True)
class LinkHistory:
    """What one interface had moved at two earlier moments. It costs nothing at rest: measurements read it anyway."""

    _marks: tuple[_Mark, ...] = ()
    _own_bytes: int = 0
    _settled_ns: int = 0

    def rate_before_bps(self, at_ns: int, traffic: Traffic) -> float | None:
        """The rate of others, both ways, since the last mark that is old enough to give one."""
        mark = next((one for one in reversed(self._marks) if at_ns - one.at_ns >= _BEFORE_NS_MIN), None)
        if mark is None or at_ns - mark.at_ns > _BEFORE_NS_MAX:
            return None
        moved_bytes = bytes_of(traffic) - mark.moved_bytes
        if moved_bytes < 0:
            return None  # the interface came back with its counters at zero
        own_bytes = self._own_bytes - mark.own_bytes
        return max(moved_bytes - own_bytes, 0) * _BITS * NS_PER_S / (at_ns - mark.at_ns)

    def remember(self, at_ns: int, traffic: Traffic) -> None:
        """Make a mark, unless the last one is that young. The one before is kept for who comes right after."""
        if at_ns < self._settled_ns or (self._marks and at_ns - self._marks[-1].at_ns < _BEFORE_NS_MIN):
            return
        self._marks = (*self._marks[-1:], _Mark(at_ns, bytes_of(traffic), self._own_bytes))

    def add_own(self, own_bytes: int) -> None:
        """A measurement of this probe moved so much."""
        self._own_bytes += own_bytes

    def forget(self, at_ns: int) -> None:
        """A bulk transfer ended now: what the line still holds of it is nobody else's traffic."""
        self._marks, self._settled_ns = (), at_ns + _SETTLING_NS


def moved_between(before: Traffic | None, after: Traffic | None) -> Traffic | None:
    """Absent when the interface was, or came back with its counters at zero."""
    if before is None or after is None:
        return None
    moved = Traffic(
        received_bytes=after.received_bytes - before.received_bytes,
        received_packets=after.received_packets - before.received_packets,
        sent_bytes=after.sent_bytes - before.sent_bytes,
        sent_packets=after.sent_packets - before.sent_packets,
    )
    parts = (moved.received_bytes, moved.received_packets, moved.sent_bytes, moved.sent_packets)
    return moved if min(parts) >= 0 else None


def bytes_of(moved: Traffic) -> int:
    """Both ways together."""
    return moved.received_bytes + moved.sent_bytes


def own_bytes(moved: Traffic, payload_bytes: int, header_bytes: int) -> int:
    """What of the traffic was the measurement's own, at most: payload, headers, and a little that no task counts."""
    headers_bytes = (moved.received_packets + moved.sent_packets) * header_bytes
    uncounted_bytes = int(payload_bytes * _UNCOUNTED_RATIO) + _CHATTER_BYTES
    return min(payload_bytes + headers_bytes + uncounted_bytes, bytes_of(moved))


def header_bytes_of(interface: str, ip_version: int) -> int:
    """Headers of one packet on this interface, at most: a modem without Ethernet has none of the link layer."""
    kind = interface_figure(interface, "type")
    link_bytes = _ETHERNET_BYTES if kind in {None, _ARPHRD_ETHER} else 0
    return link_bytes + _IP_BYTES.get(ip_version, _IP_BYTES[6]) + _TRANSPORT_BYTES
