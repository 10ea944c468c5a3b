"""Is there a route to an IPv4 address over an interface? Asked of the kernel by rtnetlink(7), without privilege.

A socket that is bound to a device does not tell: where no route leads to the address over that device, Linux takes it
for a neighbour on the wire (ip_route_output_key_hash_rcu in net/ipv4/route.c), and what is sent vanishes in silence.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

_RTM_GETROUTE: Final = 26  # linux/rtnetlink.h, as the next four
_RTM_F_FIB_MATCH: Final = 0x2000  # Linux 4.13: tell the route itself, and say so when there is none
_RTA_DST: Final = 1
_RTA_SRC: Final = 2
_RTA_OIF: Final = 4
_NLMSG_ERROR: Final = 2  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, lengths of destination and source, …, flags
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length, type
_ERROR = struct.Struct("=i")
_ADDRESS_BITS: Final = 32
_TIME_OUT_S: Final = 1.0  # the kernel answers within the call; this only bounds the wait
_ANSWER_BYTES: Final = 4096
_NO_ROUTE: Final = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH})


def route_error_v4(interface: str, source: str, destination: str) -> OSError | None:
    """That no route leads to an IPv4 address; absent when one does, or the kernel cannot tell.

    Args:
        interface: by which the packets must leave.
        source: the address that they carry: policy rules may choose the table by it.
        destination: an IPv4 address.
    """
    try:
        number = _ask(socket.if_nametoindex(interface), source, destination)
    except OSError:
        return None
    if number not in _NO_ROUTE:
        return None
    return OSError(errno.ENETUNREACH, f"{os.strerror(errno.ENETUNREACH)}: no route over {interface} leads there")


def _ask(index: int, source: str, destination: str) -> int:
    """The errno of the kernel's answer, 0 for a route."""
    body = _ROUTE.pack(socket.AF_INET, _ADDRESS_BITS, _ADDRESS_BITS, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    body += _attribute(_RTA_DST, socket.inet_aton(destination))
    body += _attribute(_RTA_SRC, socket.inet_aton(source))
    body += _attribute(_RTA_OIF, struct.pack("=I", index))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(_TIME_OUT_S)
        sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
        answer = sock.recv(_ANSWER_BYTES)
    if len(answer) < _HEADER.size + _ERROR.size or _HEADER.unpack_from(answer)[1] != _NLMSG_ERROR:
        return 0
    return -int(_ERROR.unpack_from(answer, _HEADER.size)[0])


def _attribute(kind: int, content: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(content), kind) + content
