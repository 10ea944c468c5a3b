from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.flows.echo.icmp import checksum
from probe.flows.echo.stamp_authenticated import (
    AUTHENTICATED_BYTES,
    decode_sender,
    encode_reflector,
    encode_sender,
    key_of,
)
from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket
from probe.flows.moments import Moment
from probe.flows.path.trace_probes import EchoProbes, NothingQuotedError, StampProbes, TraceProbes
from probe.messages import ClockReading, ClockState

KEY = bytes(range(32))
SENT = Moment(1_704_067_200_123_456_789, 5)
NUMBERS = st.integers(min_value=0, max_value=0xFFFF)


def stamp_probes() -> StampProbes:
    """STAMP on a good clock."""
    return StampProbes(ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01))


def sealed_probes() -> StampProbes:
    """The same with a key."""
    return StampProbes(ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.01), KEY)


def each_kind() -> tuple[TraceProbes, ...]:
    """Each kind of probe."""
    return stamp_probes(), sealed_probes(), EchoProbes(4)


@given(NUMBERS, NUMBERS, st.integers(min_value=0, max_value=10**9))
def test_the_checksum_never_changes(first: int, second: int, later_ns: int) -> None:
    """Whatever the number and the time, the ones' complement sum of a trace's packets is one and the same."""
    later = Moment(SENT.wall_ns + later_ns, SENT.monotonic_ns + later_ns)
    for probes in each_kind():
        assert checksum(probes.request(first, SENT)) == checksum(probes.request(second, later))


@given(NUMBERS)
def test_stamp_probes_are_stamp_packets(number: int) -> None:
    """A reflector takes them: 44 bytes, zero where the RFC wants zero, the number as sequence."""
    packet = stamp_probes().request(number, SENT)
    decoded = SenderPacket.decode(packet)
    assert decoded is not None
    assert decoded.sequence == number


@given(NUMBERS)
def test_with_a_key_they_are_authenticated_stamp_packets(number: int) -> None:
    """A reflector with that key takes them, with another it does not: 112 bytes, and the word for the checksum."""
    packet = sealed_probes().request(number, SENT)
    assert len(packet) == AUTHENTICATED_BYTES + 2
    assert (key_of(packet, [KEY]), key_of(packet, [bytes(32)])) == (KEY, None)
    decoded = decode_sender(packet)
    assert decoded is not None
    assert decoded.sequence == number


def reflected(packet: bytes, key: bytes | None = None, **changes: int) -> bytes:
    """What a reflector answers."""
    sender = SenderPacket.decode(packet) if key is None else decode_sender(packet)
    assert sender is not None
    fields = {
        "sequence": 0, "timestamp": 3 << 32, "error_estimate": 1, "session": sender.session,
        "receive_timestamp": 2 << 32, "sender_sequence": sender.sequence, "sender_timestamp": sender.timestamp,
        "sender_error_estimate": sender.error_estimate, "sender_ttl": 60,
    }  # fmt: skip
    answer = ReflectorPacket(**(fields | changes))
    return answer.encode() if key is None else encode_reflector(answer, key)


def test_a_reflectors_answer_is_read() -> None:
    """Its number, and that it kept the packet for a second."""
    probes = stamp_probes()
    packet = probes.request(7, SENT)
    assert probes.reply(reflected(packet)) == (7, 1_000_000_000)


def test_forged_answers_are_not() -> None:
    """An unknown number, a timestamp that nobody sent, rubbish."""
    probes = stamp_probes()
    packet = probes.request(7, SENT)
    assert probes.reply(reflected(packet, sender_sequence=8)) is None
    assert probes.reply(reflected(packet, sender_timestamp=1)) is None
    assert probes.reply(b"\0" * 44) is None
    assert probes.reply(b"") is None


def test_with_a_key_only_what_it_sealed_is_an_answer() -> None:
    """Not what nobody sealed, not what another key did, and not one of another trace."""
    probes = sealed_probes()
    packet = probes.request(7, SENT)
    assert probes.reply(reflected(packet, KEY)) == (7, 1_000_000_000)
    assert probes.reply(reflected(packet, KEY, sender_timestamp=1)) is None
    assert probes.reply(reflected(packet, KEY)[:-1] + b"\0") is None
    other_key = encode_sender(SenderPacket(7, 1, 1), bytes(32))
    assert probes.reply(reflected(other_key, bytes(32))) is None
    assert probes.reply(reflected(stamp_probes().request(7, SENT))) is None


def test_an_echo_reply_is_read_by_its_token() -> None:
    """The identifier is the kernel's affair; another program's reply has another token."""
    probes, others = EchoProbes(4), EchoProbes(4)
    mine, theirs = probes.request(9, SENT), others.request(9, SENT)
    assert probes.reply(b"\0" + mine[1:]) == (9, 0)
    assert probes.reply(mine) is None  # our own request, as a loopback shows it
    assert probes.reply(b"\0" + theirs[1:]) is None
    assert probes.reply(b"\0" + mine[1:20]) is None


@given(st.binary(max_size=600))
def test_any_quotation_can_be_read(quoted: bytes) -> None:
    """Whatever a router quotes, it is one of our numbers, nothing, or too short to tell."""
    for probes in each_kind():
        probes.request(1, SENT)
        try:
            assert probes.quoted(quoted) in {1, None}
        except NothingQuotedError:
            assert len(quoted) < 8


def test_quotations_are_told_apart() -> None:
    """As much as a router quotes must be ours, byte for byte; what follows (RFC 4884 padding) does not matter."""
    for probes in each_kind():
        for number in range(3):
            probes.request(number, SENT)
        packet = probes.request(2, SENT)
        assert probes.quoted(packet) == 2
        assert probes.quoted(packet + bytes(84)) == 2
        assert probes.quoted(packet[:8]) == 2
        forged = packet[:12] + b"\xee" + packet[13:]
        assert probes.quoted(forged) is None
        with pytest.raises(NothingQuotedError):
            probes.quoted(b"")


def test_echo_requests_have_their_numbers_in_the_header() -> None:
    """What ICMP routers quote at least: type, code, checksum, identifier, sequence."""
    packet = EchoProbes(6).request(300, SENT)
    assert struct.unpack("!BBHHH", packet[:8]) == (128, 0, 0, 0, 300)
