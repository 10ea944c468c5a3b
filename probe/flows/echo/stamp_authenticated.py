"""STAMP test packets in authenticated mode, byte by byte (RFC 8762 sections 4.2.2, 4.3.2 and 4.4, RFC 8972 section 3).

Session-Sender, 112 bytes::

    sequence 4 | zero 12 | timestamp 8 | error estimate 2 | SSID 2 | zero 68 | HMAC 16

Session-Reflector, 112 bytes::

    sequence 4 | zero 12 | timestamp 8 | error estimate 2 | SSID 2 | zero 4 | receive timestamp 8 | zero 8
    | sender's sequence 4 | zero 12 | sender's timestamp 8 | sender's error estimate 2 | zero 6 | sender's TTL 1
    | zero 15 | HMAC 16

The HMAC is SHA-256 (RFC 2104, RFC 4868), of which the first 128 bits travel, over the 96 bytes before it. It vouches
for who wrote the packet and that nobody changed it. It hides nothing, and an old packet that is sent again is still
right: what is new about a reply is the timestamp of ours that it repeats.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence
from typing import Final

from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket

AUTHENTICATED_BYTES: Final = 112
_SEALED_BYTES: Final = 96
_SENDER: Final = struct.Struct("!I12xQHH68x")
_SENDER_ZERO_FROM: Final = 28
_REFLECTOR: Final = struct.Struct("!I12xQHH4xQ8xI12xQH6xB15x")


def seal(key: bytes, blocks: bytes) -> bytes:
    """The 96 bytes of a packet with the HMAC behind them."""
    return blocks + _hmac(key, blocks)


def is_sealed(key: bytes, datagram: bytes) -> bool:
    """Whether the HMAC is right. Takes as long for a wrong one as for one that is nearly right."""
    blocks, code = datagram[:_SEALED_BYTES], datagram[_SEALED_BYTES:AUTHENTICATED_BYTES]
    return hmac.compare_digest(_hmac(key, blocks), code)


def _hmac(key: bytes, blocks: bytes) -> bytes:
    return hmac.digest(key, blocks, "sha256")[: AUTHENTICATED_BYTES - _SEALED_BYTES]


def encode_sender(packet: SenderPacket, key: bytes) -> bytes:
    """The 112 bytes."""
    return seal(key, _SENDER.pack(packet.sequence, packet.timestamp, packet.error_estimate, packet.session))


def decode_sender(datagram: bytes) -> SenderPacket | None:
    """Read the first 112 bytes; absent when this is no sender's packet. The HMAC is `key_of`'s to check, before this.

    What must be zero must be zero, as in `SenderPacket.decode`: reflectors that share a key would otherwise answer each
    other's answers for ever.
    """
    if len(datagram) < AUTHENTICATED_BYTES or any(datagram[_SENDER_ZERO_FROM:_SEALED_BYTES]):
        return None
    return SenderPacket(*_SENDER.unpack_from(datagram)).checked()


def encode_reflector(packet: ReflectorPacket, key: bytes) -> bytes:
    """The 112 bytes."""
    blocks = _REFLECTOR.pack(
        packet.sequence,
        packet.timestamp,
        packet.error_estimate,
        packet.session,
        packet.receive_timestamp,
        packet.sender_sequence,
        packet.sender_timestamp,
        packet.sender_error_estimate,
        packet.sender_ttl,
    )
    return seal(key, blocks)


def decode_reflector(datagram: bytes, key: bytes) -> ReflectorPacket | None:
    """Read the first 112 bytes; absent when there are fewer or the HMAC is wrong."""
    if len(datagram) < AUTHENTICATED_BYTES or not is_sealed(key, datagram):
        return None
    return ReflectorPacket(*_REFLECTOR.unpack_from(datagram))


def key_of(datagram: bytes, keys: Sequence[bytes]) -> bytes | None:
    """Which of the keys sealed a packet; absent when none did."""
    if len(datagram) < AUTHENTICATED_BYTES:
        return None
    return next((key for key in keys if is_sealed(key, datagram)), None)
