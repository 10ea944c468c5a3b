"""STAMP (RFC 8762): the session of the sender. Who answers it is `probe.peer.reflector`."""

from __future__ import annotations

import secrets
import struct
from typing import Final

from probe.flows.echo import stamp_authenticated
from probe.flows.echo.engine import Reply
from probe.flows.echo.stamp_authenticated import AUTHENTICATED_BYTES
from probe.flows.echo.stamp_packets import PACKET_BYTES, ReflectorPacket, SenderPacket, error_estimate_of, ntp_of
from probe.flows.moments import Moment
from probe.messages import ClockReading

__all__ = ["PACKET_BYTES", "StampProtocol"]

_SEQUENCE: Final = struct.Struct("!I")


class StampProtocol:
    """The packets of one STAMP session (`echo.EchoProtocol`).

    Args:
        reading: the state of the sender's clock, for the error estimate.
        packet_bytes: the size of the UDP payload; the rest is zero. At least the mode's 44 or 112 are sent.
        key: authenticates the packets (RFC 8762 section 4.4); without one the session is unauthenticated.

    Attributes:
        not_authentic: replies that the key did not seal. They are not used.
    """

    def __init__(self, reading: ClockReading, packet_bytes: int = PACKET_BYTES, key: bytes | None = None) -> None:
        self.not_authentic = 0
        self._key = key
        self._error_estimate = error_estimate_of(reading)
        self._padding = bytes(max(packet_bytes - (PACKET_BYTES if key is None else AUTHENTICATED_BYTES), 0))
        # Not zero (RFC 8972 section 3): tells sessions apart at a reflector that sees one source port twice.
        self._session = 1 + secrets.randbelow(0xFFFF)
        self._timestamps: dict[int, int] = {}

    def request(self, sequence: int, sent: Moment) -> bytes:
        """The packet to send now."""
        timestamp = self._timestamps[sequence] = ntp_of(sent.wall_ns)
        packet = SenderPacket(sequence, timestamp, self._error_estimate, self._session)
        key = self._key
        return (packet.encode() if key is None else stamp_authenticated.encode_sender(packet, key)) + self._padding

    def reply(self, datagram: bytes) -> Reply | None:
        """Read an answer. Only who saw the packet knows its timestamp, to the fraction of a nanosecond."""
        packet = self._decode(datagram)
        if packet is None or self._timestamps.get(packet.sender_sequence) != packet.sender_timestamp:
            return None
        return Reply(packet.sender_sequence, packet.residence_ns(), packet.sequence)

    def _decode(self, datagram: bytes) -> ReflectorPacket | None:
        if self._key is None:
            return ReflectorPacket.decode(datagram)
        packet = stamp_authenticated.decode_reflector(datagram, self._key)
        self.not_authentic += packet is None
        return packet

    def quoted_sequence(self, quoted: bytes) -> int | None:
        """Which packet a network error quotes."""
        return int(_SEQUENCE.unpack_from(quoted)[0]) if len(quoted) >= _SEQUENCE.size else None
