"""Which way a packet of a link would take: asked of the kernel (rtnetlink(7)), which needs no privilege.

Files of /proc show the main table alone; a probe with several lines has a table for each of them.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

_HEADER: Final = struct.Struct("=IHHII")  # linux/netlink.h, struct nlmsghdr: length, type, flags, sequence, port
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # linux/rtnetlink.h, struct rtmsg: family, lengths of the two addresses, …
_ATTRIBUTE: Final = struct.Struct("=HH")  # linux/rtnetlink.h, struct rtattr: length, type
_INDEX: Final = struct.Struct("=I")
_FAMILY: Final = struct.Struct("=H")  # linux/rtnetlink.h, struct rtvia begins with it
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST: Final = 1
_RTM_GETROUTE: Final = 26
_RTM_NEWROUTE: Final = 24
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_VIA: Final = 18  # an IPv4 route by an IPv6 neighbour (RFC 5549)
_SEQUENCE: Final = 1
_ANSWER_BYTES: Final = 8192
_TIME_OUT_S: Final = 1.0  # the kernel answers within the call that asks


def next_hop(interface: str, source: str, destination: str) -> str | None:
    """The neighbour that takes a packet of this source on its way; absent where the destination is one itself.

    A line without neighbours (a tunnel, a modem) has none either.

    Raises:
        OSError: there is no such interface, or no route.
    """
    to, of = ipaddress.ip_address(destination), ipaddress.ip_address(source)
    bits = to.max_prefixlen
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6  # noqa: PLR2004 - an IP version
    body = _ROUTE.pack(family, bits, bits, 0, 0, 0, 0, 0, 0)
    body += _attribute(_RTA_DST, to.packed) + _attribute(_RTA_SRC, of.packed)
    body += _attribute(_RTA_OIF, _INDEX.pack(socket.if_nametoindex(interface)))
    answer = _ask(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, _SEQUENCE, 0) + body)
    for kind, content in _attributes(answer):
        if kind == _RTA_GATEWAY:
            return str(ipaddress.ip_address(content))
        if kind == _RTA_VIA and _FAMILY.unpack_from(content)[0] == socket.AF_INET6:
            return str(ipaddress.IPv6Address(content[_FAMILY.size :]))
    return None


def _attribute(kind: int, content: bytes) -> bytes:
    """All that is sent here has a length that needs no padding."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content


def _ask(request: bytes) -> bytes:
    """The attributes of the route that the kernel answers with."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_TIME_OUT_S)
        sock.sendto(request, (0, 0))
        answer = sock.recv(_ANSWER_BYTES)
    kind = _HEADER.unpack_from(answer)[1]
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        raise OSError(number, os.strerror(number))
    if kind != _RTM_NEWROUTE:
        raise OSError(f"the kernel answered with a message of type {kind}")
    return answer[_HEADER.size + _ROUTE.size :]


def _attributes(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each; attributes stand at multiples of 4 bytes."""
    at = 0
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, answer[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
