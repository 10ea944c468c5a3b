"""Frames of a TUN device: what a super-packet is on the wire, and what its parts look like."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.lab.packets import (
    VNET_HEADER_BYTES,
    checksum,
    header_bytes,
    is_of_running_tcp,
    largest_packet_bytes,
    packets_of,
    part,
    too_big,
    wire_bytes,
)

SEGMENT_BYTES = 1000
NEEDS_CHECKSUM, TCP_V4, TCP_V6 = 1, 1, 4
ACK, PSH, FIN, CWR, SYN = 0x10, 0x08, 0x01, 0x80, 0x02
IP_BYTES = {4: 20, 6: 40}


def pseudo(version: int, source: bytes, destination: bytes, length_bytes: int) -> bytes:
    """The pseudo header of TCP (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    if version == 4:
        return source + destination + struct.pack("!BBH", 0, 6, length_bytes)
    return source + destination + struct.pack("!II", length_bytes, 6)


def super_packet(version: int, payload: bytes, sequence: int = 7, flags: int = ACK) -> bytes:
    """A TCP super-packet as the kernel hands it out: the checksum field holds the sum of the pseudo header."""
    size = {4: 4, 6: 16}[version]
    source, destination = bytes(range(1, size + 1)), bytes(range(101, 101 + size))
    tcp_bytes = 32 + len(payload)
    partial = ~checksum(pseudo(version, source, destination, tcp_bytes)) & 0xFFFF
    tcp = struct.pack("!HHIIBBHHH", 80, 81, sequence, 9, 8 << 4, flags, 500, partial, 0) + bytes(12)
    if version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + tcp_bytes, 65_535, 0x4000, 64, 6, 0) + source + destination
    else:
        ip = struct.pack("!IHBB", 6 << 28, tcp_bytes, 6, 64) + source + destination
    gso = TCP_V4 if version == 4 else TCP_V6
    head = struct.pack("<BBHHHH", NEEDS_CHECKSUM, gso, len(ip) + 32, SEGMENT_BYTES, len(ip), 16)
    return head + ip + tcp + payload


def tcp_of(frame: bytes, version: int) -> tuple[int, int, int, bytes]:
    """Sequence number, flags, checksum field and payload."""
    at = VNET_HEADER_BYTES + IP_BYTES[version]
    sequence, flags, field = struct.unpack_from("!4xIxxxxxBxxH", frame, at)
    return sequence, flags, field, frame[at + 32 :]


@pytest.mark.parametrize("version", [4, 6])
@given(packets=st.integers(2, 12), tail_bytes=st.integers(1, SEGMENT_BYTES), chosen=st.data())
def test_a_part_is_what_the_kernel_would_have_cut(
    version: int, packets: int, tail_bytes: int, chosen: st.DataObject
) -> None:
    """Payload, sequence number, lengths, flags and both checksums of any part are right by the RFCs' own rules."""
    payload = bytes(number % 251 for number in range((packets - 1) * SEGMENT_BYTES + tail_bytes))
    whole = super_packet(version, payload, sequence=2**32 - 500, flags=ACK | PSH | FIN | CWR)
    first = chosen.draw(st.integers(0, packets - 1))
    count = chosen.draw(st.integers(1, packets - first))
    cut = part(whole, first, count)
    sequence, flags, field, carried = tcp_of(cut, version)
    assert carried == payload[first * SEGMENT_BYTES : (first + count) * SEGMENT_BYTES]
    assert sequence == (2**32 - 500 + first * SEGMENT_BYTES) % 2**32
    assert bool(flags & (PSH | FIN)) == (first + count == packets)
    assert bool(flags & CWR) == (first == 0)
    assert packets_of(cut) == count
    assert wire_bytes(cut) == len(carried) + count * (IP_BYTES[version] + 32)
    ip = cut[VNET_HEADER_BYTES : VNET_HEADER_BYTES + IP_BYTES[version]]
    addresses = (ip[12:16], ip[16:20]) if version == 4 else (ip[8:24], ip[24:40])
    # Ones' complement has two zeros.
    assert (field - (~checksum(pseudo(version, *addresses, 32 + len(carried))) & 0xFFFF)) % 0xFFFF == 0
    length_field = struct.unpack_from("!H", ip, 2 if version == 4 else 4)[0]
    assert length_field == len(carried) + 32 + (20 if version == 4 else 0)
    if version == 4 and count < packets:
        assert checksum(ip) == 0
        assert struct.unpack_from("!H", ip, 4)[0] == (65_535 + first) % 65_536


def test_the_whole_is_its_own_part() -> None:
    """A frame that is not cut is not touched."""
    whole = super_packet(4, bytes(3 * SEGMENT_BYTES))
    assert part(whole, 0, 3) is whole
    assert packets_of(whole) == 3
    assert header_bytes(whole) == 52
    assert largest_packet_bytes(whole) == 1052


def test_a_frame_of_one_packet_counts_as_it_is() -> None:
    """Without a super-packet's mark the length is the length."""
    one = bytes(VNET_HEADER_BYTES) + bytes([0x45]) + bytes(83)
    assert (packets_of(one), wire_bytes(one), largest_packet_bytes(one)) == (1, 84, 84)


def test_too_big_is_said_to_the_sender_of_ipv4() -> None:
    """RFC 1191: type 3 code 4 with the MTU, the addresses exchanged, the packet's first bytes quoted."""
    whole = super_packet(4, bytes(3 * SEGMENT_BYTES))
    reply = too_big(whole, 1280)
    assert reply is not None
    ip, message = reply[VNET_HEADER_BYTES:][:20], reply[VNET_HEADER_BYTES + 20 :]
    assert checksum(ip) == checksum(message) == 0
    assert (ip[12:16], ip[16:20]) == (bytes([101, 102, 103, 104]), bytes([1, 2, 3, 4]))
    assert struct.unpack("!BBxxxxH", message[:8]) == (3, 4, 1280)
    assert message[8:] == whole[VNET_HEADER_BYTES : VNET_HEADER_BYTES + 28]


def test_too_big_is_said_to_the_sender_of_ipv6() -> None:
    """RFC 8201 and RFC 4443: type 2 with the MTU, and no more than 1280 bytes in all."""
    whole = super_packet(6, bytes(3 * SEGMENT_BYTES))
    reply = too_big(whole, 1400)
    assert reply is not None
    ip, message = reply[VNET_HEADER_BYTES:][:40], reply[VNET_HEADER_BYTES + 40 :]
    assert len(ip) + len(message) == 1280
    assert struct.unpack("!BBxxI", message[:8]) == (2, 0, 1400)
    assert checksum(ip[8:40] + struct.pack("!II", len(message), 58) + message) == 0
    assert ip[8:24] == bytes(range(101, 117))


@pytest.mark.parametrize("kind", [3, 11])
def test_nobody_complains_about_a_complaint(kind: int) -> None:
    """RFC 1122 section 3.2.2: no ICMP error about an ICMP error, or two routers would talk for ever."""
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 1500, 0, 0, 64, 1, 0) + bytes(8)
    assert too_big(bytes(VNET_HEADER_BYTES) + ip + bytes([kind]) + bytes(1479), 1400) is None
    ip6 = struct.pack("!IHBB", 6 << 28, 1460, 58, 64) + bytes(32)
    assert too_big(bytes(VNET_HEADER_BYTES) + ip6 + bytes([1]) + bytes(1459), 1400) is None


@pytest.mark.parametrize("version", [4, 6])
def test_what_opens_a_connection_is_not_of_a_running_one(version: int) -> None:
    """SYN and SYN/ACK open it; anything but TCP, with the same bytes where TCP has its flags, is of none."""
    assert is_of_running_tcp(super_packet(version, b"", flags=ACK))
    assert is_of_running_tcp(super_packet(version, b"payload", flags=ACK | PSH | FIN))
    assert not is_of_running_tcp(super_packet(version, b"", flags=SYN))
    assert not is_of_running_tcp(super_packet(version, b"", flags=SYN | ACK))
    assert is_of_running_tcp(super_packet(version, b"", flags=SYN)[: VNET_HEADER_BYTES + IP_BYTES[version] + 13])
    of_udp = bytearray(super_packet(version, b"", flags=ACK))
    of_udp[VNET_HEADER_BYTES + {4: 9, 6: 6}[version]] = 17
    assert not is_of_running_tcp(bytes(of_udp))
