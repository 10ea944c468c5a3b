"""Who answers along a line, each on a socket of their own: the peer, the gateway, a router of the operator.

Nothing wakes up for an answer: whoever keeps watch looks for them at the next round. What the kernel has queued
meanwhile, also while the host stood still, is in time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.echo import icmp
from probe.flows.echo.engine import ByteCount, EchoProtocol
from probe.flows.echo.routes import raise_if_no_way
from probe.flows.echo.stamp import StampProtocol
from probe.flows.error_queue import NetworkError, ask_for_errors, next_error
from probe.flows.moments import now
from probe.flows.path.hops import meaning
from probe.links import IpVersion, Link
from probe.messages import ClockReading, Operation

Opener = Callable[[], tuple[socket.socket, EchoProtocol]]

_DATAGRAM_BYTES_MAX: Final = 2048
# What one look takes from a socket: duplicates of a broken path must not hold up the next round.
_PER_LOOK: Final = 64
# Routers beyond this are nearer to the peer than to the line.
_TTL_MAX: Final = 5
# Above every number of a round, and within the 16 bits of an ICMP sequence.
_SEARCH_SEQUENCE: Final = 65_000
_SYS_NET: Final = Path("/sys/class/net")
_ICMP_HEADER_SEQUENCE: Final = slice(6, 8)


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer to the packet of this number; `refused` is the peer's word that it is there but nobody listens."""

    sequence: int
    refused: bool = False


class Voice:
    """One that answers echo requests.

    Args:
        open_socket: gives a connected, non-blocking socket and its packets.
        usage: where the cost is kept.
    """

    def __init__(self, open_socket: Opener, usage: ByteCount) -> None:
        self._open = open_socket
        self._usage = usage
        self._sock: socket.socket | None = None
        self._protocol: EchoProtocol | None = None
        self._last = 0

    def send(self, sequence: int) -> None:
        """Ask once.

        Raises:
            OSError: the kernel did not take it.
            NotRunError: there is no link to ask over, or no such socket is allowed here.
        """
        if self._sock is None:
            self._sock, self._protocol = self._open()
        assert self._protocol is not None  # noqa: S101 - opened together
        self._last = sequence
        packet = self._protocol.request(sequence, now())
        try:
            self._sock.send(packet)
        except OSError:
            # Perhaps told of what an earlier packet met, instead of sending this one (ip(7), IP_RECVERR).
            self._sock.send(packet)
        self._usage.sent_bytes += len(packet)

    def heard(self) -> Iterator[Heard]:
        """What came since the last look. Once the last question is answered, the rest can wait for the next look."""
        if self._sock is None or self._protocol is None:
            return
        for _ in range(_PER_LOOK):
            try:
                datagram = self._sock.recv(_DATAGRAM_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError:
                continue  # news of an error, which stands in the queue below
            self._usage.received_bytes += len(datagram)
            reply = self._protocol.reply(datagram)
            if reply is not None:
                yield Heard(reply.sequence)
                if reply.sequence == self._last:
                    return
        for _ in range(_PER_LOOK):
            error = next_error(self._sock)
            if error is None:
                return
            yield from self._said(error, self._protocol)

    def _said(self, error: NetworkError, protocol: EchoProtocol) -> Iterator[Heard]:
        """An error that the peer itself reports (ICMP port unreachable) says that everything on the way works."""
        assert self._sock is not None  # noqa: S101 - it has just given the error
        sequence = protocol.quoted_sequence(error.quoted)
        if sequence is not None and error.reporter == _peer_of(self._sock):
            yield Heard(sequence, refused=True)

    def close(self) -> None:
        """Give the socket up; the next question opens another, on the link as it is then."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def source(self) -> str | None:
        """The address that it asks from; absent while it has no socket."""
        return None if self._sock is None else str(self._sock.getsockname()[0])


class HopVoice(Voice):
    """A router on the way: it answers "time exceeded" to a packet for the peer that lives for so many hops only.

    It is never aimed at: what is sent is for the peer. `hop` is absent until `search` and `take_found` have found it.
    """

    def __init__(self, open_socket: Opener, usage: ByteCount, hop: int | None) -> None:
        super().__init__(open_socket, usage)
        self.hop = hop
        self._found: dict[int, str] = {}

    def send(self, sequence: int) -> None:
        """Ask the router of `hop`, as `Voice.send`."""
        if self.hop is not None:
            self._send_for(self.hop, sequence)

    def search(self) -> None:
        """Ask every hop near the line, once. As `Voice.send`."""
        self._found.clear()
        for ttl in range(1, _TTL_MAX + 1):
            self._send_for(ttl, _SEARCH_SEQUENCE + ttl)

    def take_found(self, gateway: str | None) -> int | None:
        """The nearest hop beyond the gateway that answered the search."""
        # On a link with a gateway, that is the first hop, whichever of its addresses it answers from.
        first = 1 if gateway is None else 2
        self.hop = min((ttl for ttl, who in self._found.items() if ttl >= first and who != gateway), default=None)
        return self.hop

    def _send_for(self, ttl: int, sequence: int) -> None:
        if self._sock is None:
            self._sock, self._protocol = self._open()
        if self._sock.family == socket.AF_INET:
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        else:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
        super().send(sequence)
        self._last = 0  # what counts are the errors, which stand behind every reply

    def _said(self, error: NetworkError, protocol: EchoProtocol) -> Iterator[Heard]:
        version = error.icmp_version
        if version is None or meaning(version, error.icmp_type, error.icmp_code) != "time_exceeded":
            return
        sequence = protocol.quoted_sequence(error.quoted)
        if sequence is None and len(error.quoted) >= _ICMP_HEADER_SEQUENCE.stop:
            # Some routers quote no more than RFC 792 asks for: the ICMP header, by which the kernel found our socket.
            sequence = int.from_bytes(error.quoted[_ICMP_HEADER_SEQUENCE], "big")
        if sequence is None or error.reporter is None:
            return
        if sequence > _SEARCH_SEQUENCE:
            self._found[sequence - _SEARCH_SEQUENCE] = error.reporter
        else:
            yield Heard(sequence)


def echo_opener(link: Link, address: str) -> Opener:
    """ICMP echo to an address; one of a neighbour may be link-local."""

    def open_socket() -> tuple[socket.socket, EchoProtocol]:
        version: IpVersion = 4 if ipaddress.ip_address(address).version == 4 else 6  # noqa: PLR2004 - an IP version
        sock, protocol = icmp.open_echo(link, version, icmp.PAYLOAD_BYTES_MIN)
        return _connected(sock, (address, 0), link.interface), protocol

    return open_socket


def stamp_opener(
    link: Link, target: tuple[str, int], version: IpVersion, reading: ClockReading, key: bytes | None
) -> Opener:
    """STAMP to a reflector; authenticated by `key` where it wants one."""

    def open_socket() -> tuple[socket.socket, EchoProtocol]:
        sock = link.socket(version, socket.SOCK_DGRAM)
        return _connected(sock, target, link.interface), StampProtocol(reading, key=key)

    return open_socket


def _connected(sock: socket.socket, target: tuple[str, int], interface: str) -> socket.socket:
    try:
        ask_for_errors(sock)
        if ipaddress.ip_address(target[0]).is_link_local and sock.family == socket.AF_INET6:
            sock.connect((*target, 0, socket.if_nametoindex(interface)))
        else:
            sock.connect(target)
    except OSError:
        sock.close()
        raise
    return sock


def _peer_of(sock: socket.socket) -> str | None:
    with contextlib.suppress(OSError):
        return str(sock.getpeername()[0])
    return None


def knows_way(link: Link, version: IpVersion, address: str) -> bool:
    """Whether a route of the link leads to an address, as far as sending there does not tell.

    By IPv6 it does. By IPv4 a socket that is bound to a device sends without a route too, on the off chance that the
    address is a neighbour's.
    """
    if version != 4:  # noqa: PLR2004 - an IP version
        return True
    try:
        raise_if_no_way(link, version, address)
    except MeasurementFailedError as error:
        return error.failure.operation is not Operation.SEND
    return True


def fit_source(link: Link, version: IpVersion) -> str | None:
    """The address that the link can send from now; absent while its interface is gone, down, or has none."""
    try:
        return link.source_address(version) if _has_carrier(link.interface) else None
    except NotRunError:
        return None


def _has_carrier(interface: str) -> bool:
    """Whether the cable is plugged in. The interface's flags say so too, but up to a second late (linkwatch)."""
    try:
        return (_SYS_NET / interface / "carrier").read_text().strip() != "0"
    except OSError:
        return True  # switched off, or gone: the flags know
