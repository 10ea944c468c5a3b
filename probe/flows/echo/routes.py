"""Which way a packet of a link would take, and whether it gets past the first step: asked of the kernel (rtnetlink(7)).

No privilege is needed. Files of /proc show the main table alone; a probe with several lines has a table for each.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.faults import failed
from probe.links import IpVersion, Link
from probe.messages import FailureKind, Operation

_HEADER: Final = struct.Struct("=IHHII")  # linux/netlink.h, struct nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # linux/rtnetlink.h, struct rtmsg: family, lengths of both addresses, …
_NEIGHBOUR: Final = struct.Struct("=BBHiHBB")  # linux/neighbour.h, struct ndmsg: family, padding, index, state, …
_ATTRIBUTE: Final = struct.Struct("=HH")  # linux/rtnetlink.h, struct rtattr: length, type
_INDEX: Final = struct.Struct("=I")
_ERROR: Final = struct.Struct("=i")
_FAMILY: Final = struct.Struct("=H")  # linux/rtnetlink.h, struct rtvia begins with it
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_RTM_GETROUTE: Final = 26
_RTM_GETNEIGH: Final = 30  # of one address: Linux 5.0
_RTM_F_FIB_MATCH: Final = 0x2000  # Linux 4.13: tell the route itself, and say so when there is none
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_GATEWAY = 1, 2, 4, 5
_RTA_VIA: Final = 18  # an IPv4 route by an IPv6 neighbour (RFC 5549)
_NDA_DST: Final = 1
# NUD_INCOMPLETE and NUD_FAILED: asked for, and not answered (yet). What is to be sent there waits, or was thrown away.
_NOT_THERE: Final = 0x01 | 0x20
_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH})
_SEQUENCE: Final = 1
_ANSWER_BYTES: Final = 8192
_TIME_OUT_S: Final = 1.0  # the kernel answers within the call that asks


def raise_if_no_way(
    link: Link,
    version: IpVersion,
    destination: str,
    sending: Operation = Operation.SEND,
    answering: Operation = Operation.RECEIVE,
) -> None:
    """Tell a path on which all are silent from packets that have never left: for when nothing at all came back.

    The kernel tells the sockets of neither. One that is bound to a device sends by IPv4 without a route too, on the off
    chance; and the report that the next hop does not answer for its address does not find such a socket (UDP, IPv4).

    Raises:
        MeasurementFailedError: (`sending`, network_unreachable) no route of this link leads there; (`answering`,
            host_unreachable) the next hop answers no question for its address; (`answering`, link_lost) the link went
            down meanwhile, or lost its address.
    """
    try:
        source = link.source_address(version)
    except NotRunError as gone:
        raise MeasurementFailedError(answering, FailureKind.LINK_LOST, str(gone)) from gone
    error = _route_error_v4(link.interface, source, destination) if version == 4 else None  # noqa: PLR2004 - IPv4
    if error is not None:
        raise failed(sending, error) from error
    error = neighbour_error(link.interface, source, destination)
    if error is not None:
        raise failed(answering, error) from error


def next_hop(interface: str, source: str, destination: str) -> str | None:
    """The neighbour that takes a packet of this source on its way; absent where the destination is one itself.

    A line without neighbours (a tunnel, a modem) has none either.

    Raises:
        OSError: there is no such interface, or no route.
    """
    answer = _ask(_RTM_GETROUTE, _route_question(interface, source, destination))
    for kind, content in _attributes(answer[_ROUTE.size :]):
        if kind == _RTA_GATEWAY:
            return str(ipaddress.ip_address(content))
        if kind == _RTA_VIA and _FAMILY.unpack_from(content)[0] == socket.AF_INET6:
            return str(ipaddress.IPv6Address(content[_FAMILY.size :]))
    return None


def neighbour_error(interface: str, source: str, destination: str) -> OSError | None:
    """That the next hop does not answer for its address; absent when it does, or the kernel cannot tell."""
    try:
        neighbour = next_hop(interface, source, destination) or destination
        address = ipaddress.ip_address(neighbour)
        head = _NEIGHBOUR.pack(_family(neighbour), 0, 0, socket.if_nametoindex(interface), 0, 0, 0)
        answer = _ask(_RTM_GETNEIGH, head + _attribute(_NDA_DST, address.packed))
    except OSError:
        return None
    if not _NEIGHBOUR.unpack_from(answer)[4] & _NOT_THERE:
        return None
    return OSError(errno.EHOSTUNREACH, f"{neighbour} does not answer for its address on {interface}")


def _route_error_v4(interface: str, source: str, destination: str) -> OSError | None:
    """That no route leads to an IPv4 address; absent when one does, or the kernel cannot tell.

    Without the flag Linux takes what no route leads to over a device for a neighbour on its wire
    (ip_route_output_key_hash_rcu in net/ipv4/route.c).
    """
    try:
        _ask(_RTM_GETROUTE, _route_question(interface, source, destination, _RTM_F_FIB_MATCH))
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return OSError(errno.ENETUNREACH, f"no route over {interface} leads to {destination}")
    return None


def _route_question(interface: str, source: str, destination: str, flags: int = 0) -> bytes:
    to, of = ipaddress.ip_address(destination), ipaddress.ip_address(source)
    bits = to.max_prefixlen
    head = _ROUTE.pack(_family(destination), bits, bits, 0, 0, 0, 0, 0, flags)
    wanted = _attribute(_RTA_DST, to.packed) + _attribute(_RTA_SRC, of.packed)
    return head + wanted + _attribute(_RTA_OIF, _INDEX.pack(socket.if_nametoindex(interface)))


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _attribute(kind: int, content: bytes) -> bytes:
    """All that is sent here has a length that needs no padding."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content


def _ask(kind: int, body: bytes) -> bytes:
    """The body of the kernel's answer.

    Raises:
        OSError: what it says is wrong.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_TIME_OUT_S)
        sock.sendto(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST, _SEQUENCE, 0) + body, (0, 0))
        answer = sock.recv(_ANSWER_BYTES)
    if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
        number = -_ERROR.unpack_from(answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number))
    return answer[_HEADER.size :]


def _attributes(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each; attributes stand at multiples of 4 bytes."""
    at = 0
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, answer[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
