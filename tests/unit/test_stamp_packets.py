from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stamp_spelt import HALF_PAST_NS, REFLECTOR, SENDER

from probe.flows.echo.engine import Reply
from probe.flows.echo.stamp import StampProtocol
from probe.flows.echo.stamp_packets import (
    PACKET_BYTES,
    ReflectorPacket,
    SenderPacket,
    error_estimate_of,
    ntp_of,
    unix_ns_of,
)
from probe.flows.moments import Moment
from probe.messages import ClockReading, ClockState

# RFC 8762 figure 2, written out by hand: sequence 0x01020304; 2024-01-01T00:00:00.5Z, which is NTP second
# 1704067200 + 2208988800 = 3913056000 = 0xE93C7F00 and fraction 0x80000000; S = 1, Z = 0, scale 12, multiplier 200.
SENDER_BYTES = bytes.fromhex(
    "01020304"  # sequence number
    "e93c7f0080000000"  # timestamp
    "8cc8"  # error estimate: 1 0 001100 11001000
    "beef" + "00" * 28  # session identifier (RFC 8972)  # must be zero
)
# RFC 8762 figure 4: received 0.25 s later, answered after another 0.25 s.
REFLECTOR_BYTES = bytes.fromhex(
    "00000007"  # the reflector's own sequence number
    "e93c7f0100000000"  # timestamp
    "0101"  # error estimate: not synchronised, scale 1, multiplier 1
    "beef"  # session identifier
    "e93c7f00c0000000"  # receive timestamp
    "01020304"  # session-sender sequence number
    "e93c7f0080000000"  # session-sender timestamp
    "8cc8"  # session-sender error estimate
    "0000"  # must be zero
    "3f"  # session-sender TTL: 63
    "000000"  # must be zero
)
READING = ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.001)


def test_sender_packet_is_byte_exact() -> None:
    """44 bytes, each field where RFC 8762 figure 2 has it."""
    assert SENDER.encode() == SENDER_BYTES
    assert SenderPacket.decode(SENDER_BYTES) == SENDER
    assert len(SENDER_BYTES) == PACKET_BYTES == 44


def test_reflector_packet_is_byte_exact() -> None:
    """44 bytes, each field where RFC 8762 figure 4 has it."""
    assert REFLECTOR.encode() == REFLECTOR_BYTES
    assert ReflectorPacket.decode(REFLECTOR_BYTES) == REFLECTOR
    assert REFLECTOR.residence_ns() == 250_000_000


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        SENDER_BYTES[:40],
        b"\xff" * 44,
        # A reflector's packet: what must be zero in a sender's is not.
        REFLECTOR_BYTES,
        # A multiplier of zero.
        SENDER_BYTES[:13] + b"\0" + SENDER_BYTES[14:],
        bytes(44),
        b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\nAccept: */*\r\n\r\n",
    ],
)
def test_garbage_is_no_sender_packet(garbage: bytes) -> None:
    """Short, foreign, or another reflector's: not to be answered."""
    assert SenderPacket.decode(garbage) is None


def test_a_longer_packet_is_read_by_its_first_44_bytes() -> None:
    """Padding and extensions (RFC 8972) stand behind."""
    assert SenderPacket.decode(SENDER_BYTES + b"\x80\x01\x00\x04abcd") == SenderPacket.decode(SENDER_BYTES)


def test_packets_of_twamp_light_end_earlier() -> None:
    """RFC 5357's shortest packets have 41 bytes, with every field in the place where STAMP has it."""
    assert SenderPacket.decode(SENDER_BYTES[:41]) == SenderPacket.decode(SENDER_BYTES)
    assert ReflectorPacket.decode(REFLECTOR_BYTES[:41]) == ReflectorPacket.decode(REFLECTOR_BYTES)
    assert ReflectorPacket.decode(REFLECTOR_BYTES[:40]) is None


def test_ntp_time_by_known_instants() -> None:
    """1970 stands at 0x83AA7E80 (RFC 5905 figure 4), and the era turns over on 2036-02-07T06:28:16Z."""
    assert ntp_of(0) == 0x83AA7E80_00000000
    assert ntp_of(2_085_978_496 * 10**9) == 0
    assert unix_ns_of(0x83AA7E80_00000000) == 0
    assert unix_ns_of(0) == 2_085_978_496 * 10**9


@given(st.integers(min_value=0, max_value=4_000_000_000 * 10**9))
def test_ntp_time_keeps_the_nanosecond(unix_ns: int) -> None:
    """There and back is the same nanosecond, from 1970 to 2096 and over the turn of the era."""
    assert 0 <= ntp_of(unix_ns) < 1 << 64
    assert unix_ns_of(ntp_of(unix_ns)) == unix_ns


def test_residence_across_the_turn_of_the_era() -> None:
    """A packet kept for one second around 2036-02-07T06:28:16Z was kept for one second."""
    turn_ns = 2_085_978_496 * 10**9
    times = {"receive_timestamp": ntp_of(turn_ns - 400_000_000), "timestamp": ntp_of(turn_ns + 600_000_000)}
    packet = ReflectorPacket(1, times["timestamp"], 1, 0, times["receive_timestamp"], 0, 0, 1, 64)
    assert packet.residence_ns() == 10**9


def test_a_reflector_with_ptp_time_is_understood() -> None:
    """Z = 1: 32 bits of seconds and 32 bits of nanoseconds (RFC 8186 section 2.1)."""
    packet = ReflectorPacket(1, 100 << 32 | 250_000, 0x4001, 0, 99 << 32 | 999_900_000, 0, 0, 1, 64)
    assert packet.residence_ns() == 350_000


@pytest.mark.parametrize(
    ("error_s", "bits"),
    [
        (0.0, 0x8001),  # multiplier 1, scale 0: as small as can be said, zero is not allowed
        (2**-32, 0x8001),
        (255 * 2**-32, 0x80FF),
        (256 * 2**-32, 0x8180),  # 128 * 2 ** 1
        (511 * 2**-32, 0x8280),  # rounded up to 256, which is 128 * 2 ** 2
        (1.0, 0x8000 | 25 << 8 | 128),  # 128 * 2 ** (25 - 32)
    ],
)
def test_error_estimate_by_hand(error_s: float, bits: int) -> None:
    """S, Z, six bits of scale, eight of multiplier (RFC 4656 section 4.1.2)."""
    assert error_estimate_of(ClockReading(state=ClockState.SYNCHRONISED, max_error_s=error_s)) == bits


def test_an_unsynchronised_clock_says_so() -> None:
    """S is 0, and the error is the 16 s at which the kernel gives up: 128 * 2 ** (29 - 32)."""
    assert error_estimate_of(ClockReading(state=ClockState.UNSYNCHRONISED)) == 29 << 8 | 128


@given(st.floats(min_value=0, max_value=16))
def test_error_estimate_never_promises_too_much(error_s: float) -> None:
    """What is said is not below the error, and at most a hundredth, or the smallest step that can be said, above it."""
    bits = error_estimate_of(ClockReading(state=ClockState.SYNCHRONISED, max_error_s=error_s))
    said_s = (bits & 0xFF) * 2.0 ** ((bits >> 8 & 0x3F) - 32)
    assert bits >> 14 == 0b10
    assert error_s <= said_s <= error_s + max(error_s * 0.01, 2.0**-32)


def answer_to(request: bytes, **changes: int) -> bytes:
    """What a reflector that took 1 ms answers."""
    asked = SenderPacket.decode(request)
    assert asked is not None
    fields = {
        "sequence": 0,
        "timestamp": ntp_of(5_001_000_000),
        "error_estimate": 1,
        "session": asked.session,
        "receive_timestamp": ntp_of(5_000_000_000),
        "sender_sequence": asked.sequence,
        "sender_timestamp": asked.timestamp,
        "sender_error_estimate": asked.error_estimate,
        "sender_ttl": 64,
    }
    return ReflectorPacket(**(fields | changes)).encode()


def test_the_protocol_reads_its_own_answers() -> None:
    """The reply names the packet, the reflector's count and the time that it took."""
    protocol = StampProtocol(READING)
    request = protocol.request(3, Moment(HALF_PAST_NS, 0))
    assert protocol.reply(answer_to(request, sequence=2)) == Reply(3, 1_000_000, 2)


def test_a_forged_answer_is_not_ours() -> None:
    """Without the exact timestamp that was sent, a reply is not one; nor is one to a packet never sent."""
    protocol = StampProtocol(READING)
    request = protocol.request(3, Moment(HALF_PAST_NS, 0))
    assert protocol.reply(answer_to(request, sender_timestamp=ntp_of(HALF_PAST_NS + 1))) is None
    assert protocol.reply(answer_to(request, sender_sequence=4)) is None
    assert protocol.reply(request) is None
    assert protocol.reply(answer_to(request)[:40]) is None


def test_padding_makes_the_packet_as_long_as_wished() -> None:
    """The rest of a longer packet is zero."""
    request = StampProtocol(READING, 160).request(1, Moment(HALF_PAST_NS, 0))
    assert len(request) == 160
    assert request[44:] == bytes(116)


def test_sessions_differ() -> None:
    """Two sessions of one probe have identifiers of their own, and none is zero."""
    identifiers = {StampProtocol(READING).request(1, Moment(0, 0))[14:16] for _ in range(20)}
    assert len(identifiers) > 10
    assert b"\0\0" not in identifiers


def test_a_quoted_packet_is_found_by_its_sequence() -> None:
    """A router quotes as much as it likes: four bytes are enough, three are not."""
    protocol = StampProtocol(READING)
    request = protocol.request(0x01020304, Moment(HALF_PAST_NS, 0))
    assert protocol.quoted_sequence(request[:4]) == 0x01020304
    assert protocol.quoted_sequence(request[:3]) is None


@given(st.binary(max_size=100))
def test_no_garbage_raises(garbage: bytes) -> None:
    """Whatever comes in over the network is read or refused, never an exception."""
    protocol = StampProtocol(READING)
    protocol.request(1, Moment(HALF_PAST_NS, 0))
    assert protocol.reply(garbage) is None
    protocol.quoted_sequence(garbage)
    SenderPacket.decode(garbage)
