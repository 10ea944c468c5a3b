from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.echo.engine import Reply
from probe.flows.echo.icmp import HEADER_BYTES, IcmpProtocol, checksum
from probe.flows.moments import Moment
from probe.links import IpVersion

NOW = Moment(0, 0)
ECHO_REPLY = {4: 0, 6: 129}


def reply_to(request: bytes, version: IpVersion) -> bytes:
    """What a host answers: the same with another type."""
    return bytes([ECHO_REPLY[version]]) + request[1:]


def test_checksum_of_the_rfc_example() -> None:
    """RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2, so the checksum is 220d."""
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_checksum_of_an_odd_length() -> None:
    """The last byte counts as if a zero followed it."""
    assert checksum(b"\x12\x34\x56") == checksum(b"\x12\x34\x56\x00")


@pytest.mark.parametrize(("version", "kind"), [(4, 8), (6, 128)])
def test_request_is_an_echo_request(version: IpVersion, kind: int) -> None:
    """Type, code 0, and the low 16 bits of the sequence in the header (RFC 792, RFC 4443 section 4.1)."""
    request = IcmpProtocol(version, 56).request(0x10005, NOW)
    assert len(request) == HEADER_BYTES + 56
    assert struct.unpack_from("!BB", request) == (kind, 0)
    assert struct.unpack_from("!H", request, 6) == (5,)


def test_a_raw_request_carries_its_checksum() -> None:
    """With its checksum in place, a message sums to zero."""
    assert checksum(IcmpProtocol(4, 57, raw=True).request(1, NOW)) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_own_reply_is_read_with_the_whole_sequence(version: IpVersion) -> None:
    """The sequence is not cut to the header's 16 bits."""
    protocol = IcmpProtocol(version, 56)
    assert protocol.reply(reply_to(protocol.request(0x10005, NOW), version)) == Reply(0x10005)


def test_a_raw_ipv4_reply_stands_behind_its_ip_header() -> None:
    """The header's length is its own, options included."""
    protocol = IcmpProtocol(4, 56, raw=True)
    message = reply_to(protocol.request(9, NOW), 4)
    assert protocol.reply(b"\x45" + bytes(19) + message) == Reply(9)
    assert protocol.reply(b"\x46" + bytes(23) + message) == Reply(9)


def test_what_is_not_our_reply_is_left_alone() -> None:
    """A request (ours, seen on loopback), another program's reply, a cut one."""
    protocol = IcmpProtocol(4, 56)
    request = protocol.request(1, NOW)
    foreign = IcmpProtocol(4, 56).request(1, NOW)
    assert protocol.reply(request) is None
    assert protocol.reply(reply_to(foreign, 4)) is None
    assert protocol.reply(reply_to(request, 4)[: HEADER_BYTES + 15]) is None


def test_a_quoted_request_is_found_wherever_it_starts() -> None:
    """Raw sockets quote the IP header too; a router that quotes 8 bytes quotes too few to tell."""
    protocol = IcmpProtocol(4, 56)
    request = protocol.request(77, NOW)
    assert protocol.quoted_sequence(b"\x45" + bytes(19) + request) == 77
    assert protocol.quoted_sequence(request[:8]) is None


@given(st.binary(max_size=100), st.booleans(), st.sampled_from([4, 6]))
def test_no_garbage_raises(garbage: bytes, raw: bool, version: IpVersion) -> None:
    """Whatever comes in over the network is read or refused, never an exception."""
    protocol = IcmpProtocol(version, 56, raw=raw)
    assert protocol.reply(garbage) is None
    assert protocol.quoted_sequence(garbage) is None
