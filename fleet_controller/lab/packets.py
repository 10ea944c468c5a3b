"""Frames of a TUN device with a virtio header: their length on the wire, and parts of super-packets.

A super-packet is one TCP segment of up to 64 KiB that travels as many packets, each with a copy of its headers
(generic segmentation offload). What happens to one packet of it must happen to that packet alone.
"""

from __future__ import annotations

import struct

# struct virtio_net_hdr (linux/virtio_net.h): flags, gso_type, hdr_len, gso_size, csum_start, csum_offset.
VNET_HEADER_BYTES = 10
_FLAGS_AT = 0
_NEEDS_CHECKSUM = 1
_GSO_TYPE_AT = 1
_GSO_NONE = 0
_GSO_SIZE_AT = slice(4, 6)
_IP_AT = VNET_HEADER_BYTES
_IPV4 = 4
_IPV6_HEADER_BYTES = 40
_TCP = 6
_SYN = 0x02
_LAST_FLAGS = 0x09  # PSH and FIN belong to the last packet of a super-packet
_FIRST_FLAGS = 0x80  # CWR to the first one (RFC 3168)
_WORD = 0xFFFF
_SEQUENCES = 1 << 32


def ip_version(frame: bytes | bytearray) -> int:
    """4 or 6."""
    return frame[_IP_AT] >> 4


def _ip_header_bytes(frame: bytes | bytearray) -> int:
    return (frame[_IP_AT] & 0x0F) * 4 if ip_version(frame) == _IPV4 else _IPV6_HEADER_BYTES


def header_bytes(frame: bytes) -> int:
    """IP and TCP headers of a super-packet. The virtio header's own `hdr_len` is a hint that may count payload."""
    ip_bytes = _ip_header_bytes(frame)
    tcp_words = frame[_IP_AT + ip_bytes + 12] >> 4  # RFC 9293 section 3.1: the data offset
    return ip_bytes + tcp_words * 4


def is_of_running_tcp(frame: bytes) -> bool:
    """Whether it is a TCP segment without SYN, or a fragment too short to tell. IPv6 extension headers hide it."""
    if frame[_IP_AT + (9 if ip_version(frame) == _IPV4 else 6)] != _TCP:
        return False
    flags_at = _IP_AT + _ip_header_bytes(frame) + 13
    return flags_at >= len(frame) or not frame[flags_at] & _SYN


def packets_of(frame: bytes) -> int:
    """How many packets a frame is on the wire."""
    if frame[_GSO_TYPE_AT] == _GSO_NONE:
        return 1
    payload_bytes = len(frame) - VNET_HEADER_BYTES - header_bytes(frame)
    return max(-(-payload_bytes // _segment_bytes(frame)), 1)


def wire_bytes(frame: bytes) -> int:
    """IP-layer bytes of a frame on the wire: every packet of a super-packet has its own headers."""
    length_bytes = len(frame) - VNET_HEADER_BYTES
    if frame[_GSO_TYPE_AT] == _GSO_NONE:
        return length_bytes
    return length_bytes + (packets_of(frame) - 1) * header_bytes(frame)


def largest_packet_bytes(frame: bytes) -> int:
    """IP-layer bytes of the longest packet of a frame."""
    length_bytes = len(frame) - VNET_HEADER_BYTES
    if frame[_GSO_TYPE_AT] == _GSO_NONE:
        return length_bytes
    return min(length_bytes, header_bytes(frame) + _segment_bytes(frame))


def _segment_bytes(frame: bytes) -> int:
    return int.from_bytes(frame[_GSO_SIZE_AT], "little")


def part(frame: bytes, first: int, count: int) -> bytes:
    """The packets `first` to `first + count - 1` of a frame as a frame of their own: a super-packet, or one packet.

    Sequence number, lengths, identification, flags and the partial checksum are what they would be had the kernel
    cut it there.
    """
    packets = packets_of(frame)
    if count == packets:
        return frame
    headers, segment = header_bytes(frame), _segment_bytes(frame)
    begin = _IP_AT + headers + first * segment
    payload = frame[begin : begin + count * segment]
    head = bytearray(frame[: _IP_AT + headers])
    if count == 1:
        head[_GSO_TYPE_AT] = _GSO_NONE
        head[_GSO_SIZE_AT] = b"\0\0"
    change_bytes = len(payload) - (len(frame) - _IP_AT - headers)
    _mend_ip(head, headers + len(payload), first)
    _mend_tcp(head, first * segment, change_bytes, is_first=first == 0, is_last=first + count == packets)
    return bytes(head) + payload


def _mend_ip(head: bytearray, length_bytes: int, first: int) -> None:
    if head[_IP_AT] >> 4 != _IPV4:
        struct.pack_into("!H", head, _IP_AT + 4, length_bytes - _IPV6_HEADER_BYTES)
        return
    struct.pack_into("!H", head, _IP_AT + 2, length_bytes)
    (identification,) = struct.unpack_from("!H", head, _IP_AT + 4)
    struct.pack_into("!H", head, _IP_AT + 4, (identification + first) & _WORD)
    struct.pack_into("!H", head, _IP_AT + 10, 0)
    ip_header = head[_IP_AT : _IP_AT + _ip_header_bytes(head)]
    struct.pack_into("!H", head, _IP_AT + 10, checksum(ip_header))


def _mend_tcp(head: bytearray, skipped_bytes: int, change_bytes: int, *, is_first: bool, is_last: bool) -> None:
    tcp_at = _IP_AT + _ip_header_bytes(head)
    (sequence,) = struct.unpack_from("!I", head, tcp_at + 4)
    struct.pack_into("!I", head, tcp_at + 4, (sequence + skipped_bytes) % _SEQUENCES)
    if not is_last:
        head[tcp_at + 13] &= ~_LAST_FLAGS
    if not is_first:
        head[tcp_at + 13] &= ~_FIRST_FLAGS
    if head[_FLAGS_AT] & _NEEDS_CHECKSUM:
        # The field holds the sum over the pseudo header alone, which counts the length.
        (partial,) = struct.unpack_from("!H", head, tcp_at + 16)
        struct.pack_into("!H", head, tcp_at + 16, _folded(partial + change_bytes % _WORD))


def checksum(content: bytes | bytearray) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = bytes(content) + b"\0" * (len(content) % 2)
    return ~_folded(sum(struct.unpack(f"!{len(padded) // 2}H", padded))) & _WORD


def _folded(total: int) -> int:
    while total > _WORD:
        total = (total & _WORD) + (total >> 16)
    return total


def too_big(frame: bytes, mtu_bytes: int) -> bytes | None:
    """The ICMP message that a router with a smaller next link sends back (RFC 1191, RFC 8201); absent for none.

    It comes from the address that the packet was for: the line has none of its own.
    """
    packet = frame[_IP_AT:]
    body = _too_big_v4(packet, mtu_bytes) if ip_version(frame) == _IPV4 else _too_big_v6(packet, mtu_bytes)
    return None if body is None else bytes(VNET_HEADER_BYTES) + body


def _too_big_v4(packet: bytes, mtu_bytes: int) -> bytes | None:
    if packet[9] == 1 and packet[(packet[0] & 0x0F) * 4] not in {0, 8}:
        return None  # RFC 1122 section 3.2.2: never about an ICMP error
    quoted = packet[: (packet[0] & 0x0F) * 4 + 8]
    message = bytearray(struct.pack("!BBHHH", 3, 4, 0, 0, mtu_bytes) + quoted)
    struct.pack_into("!H", message, 2, checksum(message))
    head = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0))
    head += packet[16:20] + packet[12:16]
    struct.pack_into("!H", head, 10, checksum(head))
    return bytes(head + message)


def _too_big_v6(packet: bytes, mtu_bytes: int) -> bytes | None:
    if packet[6] == 58 and packet[40] < 128:  # noqa: PLR2004 - ICMPv6, and its errors (RFC 4443 section 2.1)
        return None
    quoted = packet[: 1280 - 48]
    source, destination = packet[24:40], packet[8:24]
    message = bytearray(struct.pack("!BBHI", 2, 0, 0, mtu_bytes) + quoted)
    pseudo = source + destination + struct.pack("!II", len(message), 58)
    struct.pack_into("!H", message, 2, checksum(pseudo + message))
    return struct.pack("!IHBB", 6 << 28, len(message), 58, 64) + source + destination + bytes(message)
