"""ICMP echo (RFC 792, RFC 4443) over datagram sockets, which need no privilege once the host admits the group."""

from __future__ import annotations

import secrets
import socket
import struct
from typing import Final

from probe.errors import NotRunError
from probe.flows.echo.engine import Reply
from probe.flows.moments import Moment
from probe.links import IpVersion, Link
from probe.messages import NotRunReason

HEADER_BYTES: Final = 8
# A token that nobody guesses, and the whole sequence number: the header has but 16 bits for it.
_MARK: Final = struct.Struct("!12sI")
PAYLOAD_BYTES_MIN: Final = _MARK.size
_TOKEN_BYTES: Final = 12

_HEADER: Final = struct.Struct("!BBHHH")
_PROTOCOL: Final = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_ECHO_REQUEST: Final = {4: 8, 6: 128}
_ECHO_REPLY: Final = {4: 0, 6: 129}

_SOL_RAW: Final = 255  # raw(7)
_ICMP_FILTER: Final = 1  # linux/icmp.h: a bit set is a type not to be had
_ICMP6_FILTER: Final = 1  # linux/icmpv6.h: as above, 256 bits
_TYPES_OF_ICMPV6: Final = 256


class IcmpProtocol:
    """The packets of one series of echo requests (`echo.EchoProtocol`).

    Args:
        version: of IP.
        payload_bytes: what follows the ICMP header, 16 or more.
        raw: whether the socket is a raw one: then checksum and identifier are ours to fill in, and an IPv4 header
            stands before what is received.
    """

    def __init__(self, version: IpVersion, payload_bytes: int, *, raw: bool = False) -> None:
        self._version = version
        self._raw = raw
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._identifier = secrets.randbelow(1 << 16)
        self._padding = bytes(payload_bytes - PAYLOAD_BYTES_MIN)

    def request(self, sequence: int, sent: Moment) -> bytes:  # noqa: ARG002 - the reply brings no time back
        """The packet to send now. The kernel fills in what a datagram socket's owner must not choose."""
        payload = _MARK.pack(self._token, sequence) + self._padding
        fields = (_ECHO_REQUEST[self._version], 0, 0, self._identifier, sequence & 0xFFFF)
        packet = _HEADER.pack(*fields) + payload
        # ICMPv6's checksum covers addresses that only the kernel knows, so it computes that one on raw sockets too.
        if self._raw and self._version == 4:  # noqa: PLR2004 - an IP version
            return packet[:2] + checksum(packet).to_bytes(2, "big") + packet[4:]
        return packet

    def reply(self, datagram: bytes) -> Reply | None:
        """Read an echo reply; absent when it is another message or another's."""
        start = self._message_start(datagram)
        if len(datagram) < start + HEADER_BYTES + _MARK.size or datagram[start] != _ECHO_REPLY[self._version]:
            return None
        token, sequence = _MARK.unpack_from(datagram, start + HEADER_BYTES)
        return Reply(sequence) if token == self._token else None

    def quoted_sequence(self, quoted: bytes) -> int | None:
        """Which packet a network error quotes. Routers may cut the quotation short of our mark."""
        at = quoted.find(self._token)
        if at < 0 or len(quoted) < at + _MARK.size:
            return None
        return int(_MARK.unpack_from(quoted, at)[1])

    def _message_start(self, datagram: bytes) -> int:
        """Raw IPv4 sockets give the IP header too; its length in words is in the low half of its first byte."""
        with_header = self._raw and self._version == 4 and bool(datagram)  # noqa: PLR2004 - an IP version
        return (datagram[0] & 0x0F) * 4 if with_header else 0


def open_echo(link: Link, version: IpVersion, payload_bytes: int) -> tuple[socket.socket, IcmpProtocol]:
    """Open a socket for echo requests on `link`, unprivileged if the host allows it.

    Raises:
        NotRunError: the host allows neither (`tool_missing`, with the setting to change), or the link is down.
    """
    try:
        sock = link.socket(version, socket.SOCK_DGRAM, _PROTOCOL[version])
    except PermissionError:
        return _open_raw(link, version), IcmpProtocol(version, payload_bytes, raw=True)
    return sock, IcmpProtocol(version, payload_bytes)


def _open_raw(link: Link, version: IpVersion) -> socket.socket:
    try:
        sock = link.socket(version, socket.SOCK_RAW, _PROTOCOL[version])
    except PermissionError as error:
        raise NotRunError(
            NotRunReason.TOOL_MISSING,
            "ICMP echo is not allowed here: set sysctl net.ipv4.ping_group_range to a range that has the probe's "
            "group, such as `0 2147483647` (it counts for IPv6 too)",
        ) from error
    # A raw socket is given every ICMP message of the host unless told otherwise.
    if version == 4:  # noqa: PLR2004 - an IP version
        wanted = 1 << _ECHO_REPLY[4]
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, (~wanted & 0xFFFFFFFF).to_bytes(4, "little"))
    else:
        blocked = (1 << _TYPES_OF_ICMPV6) - 1 & ~(1 << _ECHO_REPLY[6])
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, blocked.to_bytes(_TYPES_OF_ICMPV6 // 8, "little"))
    return sock


def checksum(message: bytes) -> int:
    """The Internet checksum (RFC 1071) of a message whose own checksum field is zero."""
    padded = message + b"\0" * (len(message) % 2)
    total: int = sum(word for (word,) in struct.iter_unpack("!H", padded))
    while total > 0xFFFF:  # noqa: PLR2004 - 16 bits: the carries are added back
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
