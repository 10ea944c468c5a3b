from __future__ import annotations

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stamp_spelt import HALF_PAST_NS, REFLECTOR, SENDER

from probe.flows.echo.engine import Reply
from probe.flows.echo.stamp import StampProtocol
from probe.flows.echo.stamp_authenticated import (
    AUTHENTICATED_BYTES,
    decode_reflector,
    decode_sender,
    encode_reflector,
    encode_sender,
    is_sealed,
    key_of,
    seal,
)
from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket, ntp_of
from probe.flows.moments import Moment
from probe.messages import ClockReading, ClockState
from probe.tasks.round_trip import RoundTripParameters

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
READING = ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.001)


def hmac_by_hand(key: bytes, text: bytes) -> bytes:
    """RFC 2104 section 2 with SHA-256, the first 128 bits (RFC 8762 section 4.4)."""
    padded = key + bytes(64 - len(key))
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()[:16]


# RFC 8762 figure 3 with the session identifier of RFC 8972 figure 3, written out by hand, in blocks of 16 bytes.
SENDER_BLOCKS = bytes.fromhex(
    "01020304" + "00" * 12  # sequence number, must be zero
    + "e93c7f0080000000" + "8cc8" + "beef" + "00" * 4  # timestamp, error estimate, session identifier, must be zero
    + "00" * 64
)  # fmt: skip
# RFC 8762 figure 5, RFC 8972 figure 4: received 0.25 s later, answered after another 0.25 s.
REFLECTOR_BLOCKS = bytes.fromhex(
    "00000007" + "00" * 12
    + "e93c7f0100000000" + "0101" + "beef" + "00" * 4
    + "e93c7f00c0000000" + "00" * 8  # receive timestamp, must be zero
    + "01020304" + "00" * 12  # session-sender sequence number
    + "e93c7f0080000000" + "8cc8" + "00" * 6  # session-sender timestamp and error estimate
    + "3f" + "00" * 15  # session-sender TTL: 63
)  # fmt: skip
SENDER_BYTES = SENDER_BLOCKS + hmac_by_hand(KEY, SENDER_BLOCKS)
REFLECTOR_BYTES = REFLECTOR_BLOCKS + hmac_by_hand(KEY, REFLECTOR_BLOCKS)


def test_the_hmac_is_that_of_rfc_4231() -> None:
    """Test case 2 of RFC 4231: key "Jefe", "what do ya want for nothing?"; of its 32 bytes the first 16 travel."""
    text = b"what do ya want for nothing?"
    assert seal(b"Jefe", text) == text + bytes.fromhex("5bdcc146bf60754e6a042426089575c7")
    assert hmac_by_hand(b"Jefe", text) == seal(b"Jefe", text)[len(text) :]


def test_packets_are_byte_exact() -> None:
    """112 bytes, each field where the RFCs have it, the HMAC over the 96 before it."""
    assert len(SENDER_BYTES) == len(REFLECTOR_BYTES) == AUTHENTICATED_BYTES == 112
    assert encode_sender(SENDER, KEY) == SENDER_BYTES
    assert decode_sender(SENDER_BYTES) == SENDER
    assert encode_reflector(REFLECTOR, KEY) == REFLECTOR_BYTES
    assert decode_reflector(REFLECTOR_BYTES, KEY) == REFLECTOR


@given(st.integers(min_value=0, max_value=112 * 8 - 1))
def test_no_bit_can_be_changed(bit: int) -> None:
    """Whichever of the 896 bits is flipped: not authentic, at the reflector and at the sender."""
    for packet in (SENDER_BYTES, REFLECTOR_BYTES):
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_sealed(KEY, bytes(changed))
        assert key_of(bytes(changed), (OTHER_KEY, KEY)) is None
        assert decode_reflector(bytes(changed), KEY) is None


def test_another_key_is_no_key() -> None:
    """A packet is as good as the key that sealed it; of several keys the right one is found."""
    assert decode_reflector(REFLECTOR_BYTES, OTHER_KEY) is None
    assert key_of(SENDER_BYTES, ()) is None
    assert key_of(SENDER_BYTES, (OTHER_KEY,)) is None
    assert key_of(SENDER_BYTES, (OTHER_KEY, KEY)) == KEY


def test_a_reflectors_packet_is_no_senders() -> None:
    """Sealed by the same key, and not to be answered: two reflectors would talk to each other for ever."""
    assert key_of(REFLECTOR_BYTES, (KEY,)) == KEY
    assert decode_sender(REFLECTOR_BYTES) is None
    assert decode_sender(seal(KEY, bytes(96))) is None  # a multiplier of zero


@given(st.binary(max_size=150))
def test_no_garbage_raises(garbage: bytes) -> None:
    """Whatever comes in is refused, and counted."""
    protocol = StampProtocol(READING, key=KEY)
    protocol.request(1, Moment(HALF_PAST_NS, 0))
    assert protocol.reply(garbage) is None
    assert protocol.not_authentic == 1
    assert key_of(garbage, (KEY,)) is None
    decode_sender(garbage)


def test_the_session_takes_authentic_answers_alone() -> None:
    """The right answer is read; one without a seal, one with another's, and an unauthenticated one are counted."""
    protocol = StampProtocol(READING, key=KEY)
    request = protocol.request(3, Moment(HALF_PAST_NS, 0))
    asked = decode_sender(request)
    assert asked is not None
    answer = answer_to(asked)
    assert protocol.reply(encode_reflector(answer, KEY)) == Reply(3, 1_000_000, 2)
    assert protocol.not_authentic == 0
    for forged in (encode_reflector(answer, OTHER_KEY), answer.encode(), encode_reflector(answer, KEY)[:111]):
        assert protocol.reply(forged) is None
    assert protocol.not_authentic == 3


def answer_to(asked: SenderPacket) -> ReflectorPacket:
    """What a reflector that took 1 ms answers."""
    times = (ntp_of(5_001_000_000), ntp_of(5_000_000_000))
    return ReflectorPacket(
        2, times[0], 1, asked.session, times[1], asked.sequence, asked.timestamp, asked.error_estimate, 64
    )


def test_an_old_answer_is_authentic_and_not_ours() -> None:
    """Sealed once for another packet of ours and sent again: its timestamp is not the one that was asked with."""
    protocol = StampProtocol(READING, key=KEY)
    first = decode_sender(protocol.request(1, Moment(HALF_PAST_NS, 0)))
    assert first is not None
    later = StampProtocol(READING, key=KEY)
    later.request(1, Moment(HALF_PAST_NS + 1, 0))
    assert later.reply(encode_reflector(answer_to(first), KEY)) is None
    assert later.not_authentic == 0


@pytest.mark.parametrize(("wished", "sent"), [(44, 112), (112, 112), (160, 160)])
def test_the_length_is_the_modes_at_least(wished: int, sent: int) -> None:
    """44 bytes are too few for the HMAC; what is wished beyond 112 is filled with zeros behind it."""
    request = StampProtocol(READING, wished, KEY).request(1, Moment(HALF_PAST_NS, 0))
    assert len(request) == sent
    assert not any(request[112:])
    assert is_sealed(KEY, request)


def test_a_dead_peer_leaves_no_more_connections_than_there_is_room_for() -> None:
    """By tcp, what waits at once is bounded: by fewer packets, a shorter time-out or a longer interval."""
    for good in ({"packets": 64}, {"interval_s": 0.05, "packets": 1000}, {"time_out_s": 0.5, "interval_s": 0.01}):
        msgspec.convert({"method": "tcp"} | good, RoundTripParameters)
    with pytest.raises(msgspec.ValidationError, match=r"at most 64 connections.*raise interval_s, such as 0\.046875"):
        msgspec.convert({"method": "tcp", "packets": 1000, "interval_s": 0.01}, RoundTripParameters)
