"""What the network says of packets that were sent: the error queue of a datagram socket (ip(7), IP_RECVERR).

The kernel puts there what ICMP reported about this socket's own packets: who reported it, what, when it came, and as
much of the packet as the report quotes. Reading it needs no privilege, which a raw ICMP socket would.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from probe.flows.moments import departure_of, stamp_of

_IP_RECVERR: Final = 11  # linux/in.h
_IPV6_RECVERR: Final = 25  # linux/in6.h
_ERROR_MESSAGES: Final = {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}

# linux/errqueue.h, struct sock_extended_err: errno, origin, type, code, padding, info, data. The address of who
# reported it follows: struct sockaddr_in with the address at its byte 4, struct sockaddr_in6 at its byte 8.
_EXTENDED: Final = struct.Struct("=IBBBBII")
_ADDRESS_AT: Final = {socket.AF_INET: slice(4, 8), socket.AF_INET6: slice(8, 24)}
_FAMILY: Final = struct.Struct("=H")
# SO_EE_ORIGIN_LOCAL, SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6: the version of IP that the report came by. Other origins
# are no errors but news of the kernel's own, such as transmit stamps.
_ORIGINS: Final[dict[int, int | None]] = {1: None, 2: 4, 3: 6}

# A report quotes at most 1280 bytes (RFC 4443 section 3), and its ancillary data are a stamp and the error.
_QUOTED_BYTES_MAX: Final = 1500
_ANCILLARY_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class NetworkError:
    """One report about one of our packets.

    Attributes:
        number: the errno that the kernel makes of it.
        icmp_version: 4 or 6, by the ICMP that reported it; absent when our own kernel did.
        icmp_type: of that ICMP message.
        icmp_code: of that ICMP message.
        info: the MTU, where the report is about a packet too big.
        reporter: who sent the report; absent when our own kernel did.
        stamp_ns: when it came, on the wall clock; absent where the kernel does not stamp.
        quoted: how much of our packet it quotes, after the UDP header or from the ICMP header on. Some routers quote
            no more than RFC 792 asks for, and then nothing is left after a UDP header.
    """

    number: int
    icmp_version: int | None
    icmp_type: int
    icmp_code: int
    info: int
    reporter: str | None
    stamp_ns: int | None
    quoted: bytes

    def as_error(self) -> OSError:
        """The same as the operating system would have raised it."""
        return OSError(self.number, f"the network reported: {os.strerror(self.number)}")


@dataclass(frozen=True, slots=True)
class Departure:
    """When a packet of this socket left, on the wall clock; `count` is the kernel's own, from 0 on."""

    count: int
    stamp_ns: int


def ask_for_errors(sock: socket.socket) -> None:
    """Have the kernel queue every report about this socket's packets."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


def next_error(sock: socket.socket) -> NetworkError | None:
    """Take one report from the queue of a non-blocking socket; absent when there is none that can be read.

    Other messages that the kernel queues there are passed over.
    """
    while True:
        news = next_news(sock)
        if news is None or isinstance(news, NetworkError):
            return news


def next_news(sock: socket.socket) -> NetworkError | Departure | None:
    """Take one report or transmit stamp from the queue of a non-blocking socket; absent when there is none."""
    while True:
        try:
            quoted, ancillary, _, _ = sock.recvmsg(_QUOTED_BYTES_MAX, _ANCILLARY_BYTES, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        departure = departure_of(ancillary)
        if departure is not None:
            return Departure(*departure)
        error = read_error(quoted, ancillary)
        if error is not None:
            return error


def read_error(quoted: bytes, ancillary: Iterable[tuple[int, int, bytes]]) -> NetworkError | None:
    """What one message of the error queue says; absent when it is no error."""
    messages = list(ancillary)
    for level, kind, content in messages:
        if (level, kind) not in _ERROR_MESSAGES or len(content) < _EXTENDED.size:
            continue
        number, origin, icmp_type, icmp_code, _, info, _ = _EXTENDED.unpack_from(content)
        if origin not in _ORIGINS:
            return None
        version = _ORIGINS[origin]
        return NetworkError(
            number=number,
            icmp_version=version,
            icmp_type=icmp_type,
            icmp_code=icmp_code,
            info=info,
            reporter=None if version is None else _reporter(content[_EXTENDED.size :]),
            stamp_ns=stamp_of(messages),
            quoted=quoted,
        )
    return None


def _reporter(address: bytes) -> str | None:
    if len(address) < _FAMILY.size:
        return None
    family = _FAMILY.unpack_from(address)[0]
    packed = address[_ADDRESS_AT[family]] if family in _ADDRESS_AT else b""
    expected_bytes = {socket.AF_INET: 4, socket.AF_INET6: 16}.get(family)
    return socket.inet_ntop(family, packed) if len(packed) == expected_bytes else None
