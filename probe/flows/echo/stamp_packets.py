"""STAMP test packets, byte by byte (RFC 8762, unauthenticated mode, with the session identifier of RFC 8972).

Session-Sender, 44 bytes (RFC 8762 figure 2; RFC 8972 figure 1)::

    sequence 4 | timestamp 8 | error estimate 2 | SSID 2 | zero 28

Session-Reflector, 44 bytes (RFC 8762 figure 4; RFC 8972 figure 2)::

    sequence 4 | timestamp 8 | error estimate 2 | SSID 2 | receive timestamp 8
    | sender's sequence 4 | sender's timestamp 8 | sender's error estimate 2 | zero 2 | sender's TTL 1 | zero 3

TWAMP Light (RFC 5357 appendix I) has the same fields at the same places; its shortest packets end after the TTL, at 41
bytes (RFC 5357 erratum 5045), and both are understood here (RFC 8762 section 4.6). `stamp_authenticated` has the other
mode.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Final

from probe.clock import NS_PER_S
from probe.messages import ClockReading, ClockState

PACKET_BYTES: Final = 44
TWAMP_BYTES: Final = 41
_SENDER = struct.Struct("!IQHH28x")
_SENDER_FIELDS = struct.Struct("!IQHH")
_REFLECTOR = struct.Struct("!IQHHQIQH2xB3x")
_REFLECTOR_FIELDS = struct.Struct("!IQHHQIQH2xB")

# Seconds from 1900-01-01, where NTP starts, to 1970-01-01 (RFC 5905 appendix A.4).
NTP_UNIX_OFFSET_S: Final = 2_208_988_800
_ERA_S: Final = 1 << 32
_FRACTIONS_PER_S: Final = 1 << 32
# An NTP second below this is of the era that starts in 2036 (RFC 4330 section 3).
_ERA_PIVOT_S: Final = 1 << 31

_SYNCHRONISED_BIT: Final = 0x8000
_PTP_BIT: Final = 0x4000
_MULTIPLIER_BITS: Final = 8
_MULTIPLIER_MAX: Final = 255
# What an unsynchronised clock declares: the bound at which the kernel gives up (NTP_PHASE_LIMIT, 16 s).
UNKNOWN_ERROR_S: Final = 16.0


@dataclass(frozen=True, slots=True)
class SenderPacket:
    """What the sender says. Timestamps are the 64 bits of the wire."""

    sequence: int
    timestamp: int
    error_estimate: int
    session: int = 0

    def encode(self) -> bytes:
        """The 44 bytes."""
        return _SENDER.pack(self.sequence, self.timestamp, self.error_estimate, self.session)

    @classmethod
    def decode(cls, datagram: bytes) -> SenderPacket | None:
        """Read the first 44 bytes, or the 41 or more of TWAMP Light; absent when this is no sender's packet.

        What must be zero must be zero here: the packet of another reflector is not, and answering that one with a
        forged source would make two reflectors talk to each other for ever.
        """
        if len(datagram) < TWAMP_BYTES or any(datagram[16:PACKET_BYTES]):
            return None
        return cls(*_SENDER_FIELDS.unpack_from(datagram)).checked()

    def checked(self) -> SenderPacket | None:
        """Itself, or absent when it cannot be one: a multiplier of zero is not allowed (RFC 4656 section 4.1.2)."""
        return self if self.error_estimate & _MULTIPLIER_MAX else None


@dataclass(frozen=True, slots=True)
class ReflectorPacket:
    """What the reflector answers. Timestamps are the 64 bits of the wire."""

    sequence: int
    timestamp: int
    error_estimate: int
    session: int
    receive_timestamp: int
    sender_sequence: int
    sender_timestamp: int
    sender_error_estimate: int
    sender_ttl: int

    def encode(self) -> bytes:
        """The 44 bytes."""
        return _REFLECTOR.pack(
            self.sequence,
            self.timestamp,
            self.error_estimate,
            self.session,
            self.receive_timestamp,
            self.sender_sequence,
            self.sender_timestamp,
            self.sender_error_estimate,
            self.sender_ttl,
        )

    @classmethod
    def decode(cls, datagram: bytes) -> ReflectorPacket | None:
        """Read the first 41 bytes; absent when there are fewer."""
        return cls(*_REFLECTOR_FIELDS.unpack_from(datagram)) if len(datagram) >= TWAMP_BYTES else None

    def residence_ns(self) -> int:
        """How long the reflector kept the packet, by its own clock; below zero if that clock was set back."""
        ptp = bool(self.error_estimate & _PTP_BIT)
        return unix_ns_of(self.timestamp, ptp=ptp) - unix_ns_of(self.receive_timestamp, ptp=ptp)


def ntp_of(unix_ns: int) -> int:
    """The 64-bit NTP timestamp of a time: 32 bits of seconds since 1900 (of its era), 32 bits of fraction."""
    seconds, rest_ns = divmod(unix_ns, NS_PER_S)
    # Rounded up: what comes back is cut off to the same nanosecond then.
    fraction = -(-rest_ns * _FRACTIONS_PER_S // NS_PER_S)
    return ((seconds + NTP_UNIX_OFFSET_S) % _ERA_S) << 32 | fraction


def unix_ns_of(timestamp: int, *, ptp: bool = False) -> int:
    """The time of a 64-bit timestamp in ns since 1970, in the NTP format or in the truncated PTP format."""
    seconds, rest = divmod(timestamp, _FRACTIONS_PER_S)
    if ptp:
        return seconds * NS_PER_S + rest
    era_s = _ERA_S if seconds < _ERA_PIVOT_S else 0
    return (seconds + era_s - NTP_UNIX_OFFSET_S) * NS_PER_S + rest * NS_PER_S // _FRACTIONS_PER_S


def error_estimate_of(reading: ClockReading) -> int:
    """The 16 bits S, Z = 0 (NTP format), scale and multiplier (RFC 8762 section 4.2.1, RFC 4656 section 4.1.2).

    The error is multiplier * 2 ** (scale - 32) seconds, rounded up to what can be said.
    """
    synchronised = _SYNCHRONISED_BIT if reading.state == ClockState.SYNCHRONISED else 0
    error_s = UNKNOWN_ERROR_S if reading.max_error_s is None else reading.max_error_s
    units = max(math.ceil(error_s * _FRACTIONS_PER_S), 1)
    scale = max(units.bit_length() - _MULTIPLIER_BITS, 0)
    multiplier = -(-units >> scale)
    if multiplier > _MULTIPLIER_MAX:
        scale, multiplier = scale + 1, multiplier // 2
    return synchronised | scale << 8 | multiplier
