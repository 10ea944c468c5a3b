"""The packets of a trace: all alike to whoever balances load over several paths (Augustin et al., IMC 2006).

Routers choose among equal paths by addresses, protocol and the first four bytes after the IP header: the ports of UDP,
or type, code and checksum of ICMP. Those never change within a trace. The checksum of UDP does not either: what must
differ, the number of the probe, is made good for elsewhere in the packet.
"""

from __future__ import annotations

import secrets
import struct
from typing import Final, Protocol

from probe.flows.echo import stamp_authenticated
from probe.flows.echo.icmp import checksum
from probe.flows.echo.stamp_packets import PACKET_BYTES, ReflectorPacket, SenderPacket, error_estimate_of, ntp_of
from probe.flows.moments import Moment
from probe.links import IpVersion
from probe.messages import ClockReading

# Ones' complement sums of 16-bit words (RFC 1071): a word and this minus the word always add up to this.
_WORD_MAX: Final = 0xFFFF
_SEQUENCE: Final = struct.Struct("!I")
_CHECKSUM: Final = struct.Struct("!H")

_ECHO_REQUEST: Final = {4: 8, 6: 128}
_ECHO_REPLY: Final = {4: 0, 6: 129}
_ECHO_HEADER: Final = struct.Struct("!BBHHH")
_TOKEN_BYTES: Final = 14
_ECHO_PAYLOAD: Final = struct.Struct(f"!{_TOKEN_BYTES}sH")


class TraceProbes(Protocol):
    """The packets of one way to trace."""

    def request(self, number: int, sent: Moment) -> bytes:
        """The probe of this number, 0 or more, below 65,536."""

    def reply(self, datagram: bytes) -> tuple[int, int] | None:
        """Which probe the destination answered, and for how many ns it says that it kept it; absent for another's."""

    def quoted(self, quoted: bytes) -> int | None:
        """Which probe an error quotes. Absent for one of somebody else's.

        Raises:
            NothingQuotedError: the router quoted too little to tell.
        """


class NothingQuotedError(Exception):
    """A report quotes no byte by which probes differ: RFC 792 asks for no more than the ports."""


class StampProbes:
    """UDP probes that are STAMP packets (RFC 8762): a reflector at the destination answers, whatever firewalls think.

    The sequence number's low word and the lowest word of the timestamp (15 µs) add up to the same in every probe. An
    HMAC does not, and covers what could make it good: so a probe with a `key` (RFC 8762 section 4.4) has one more word,
    in the padding behind it, that does.
    """

    def __init__(self, reading: ClockReading, key: bytes | None = None) -> None:
        self._key = key
        self._error_estimate = error_estimate_of(reading)
        self._session = 1 + secrets.randbelow(_WORD_MAX)
        self._timestamp: int | None = None
        self._sent: dict[int, bytes] = {}

    def request(self, number: int, sent: Moment) -> bytes:
        """The probe. Its timestamp is that of the trace's first one: another would be another checksum."""
        if self._timestamp is None:
            self._timestamp = ntp_of(sent.wall_ns) & ~_WORD_MAX
        timestamp = self._timestamp | (_WORD_MAX - number)
        encoded = self._encoded(SenderPacket(number, timestamp, self._error_estimate, self._session))
        self._sent[number] = encoded
        return encoded

    def _encoded(self, packet: SenderPacket) -> bytes:
        if self._key is None:
            return packet.encode()
        sealed = stamp_authenticated.encode_sender(packet, self._key)
        return sealed + _CHECKSUM.pack(checksum(sealed))

    def reply(self, datagram: bytes) -> tuple[int, int] | None:
        """Read a reflector's answer."""
        packet = self._decoded(datagram)
        if packet is None or self._timestamp is None or packet.sender_sequence not in self._sent:
            return None
        if packet.sender_timestamp != self._timestamp | (_WORD_MAX - packet.sender_sequence):
            return None
        return packet.sender_sequence, packet.residence_ns()

    def _decoded(self, datagram: bytes) -> ReflectorPacket | None:
        if self._key is None:
            return ReflectorPacket.decode(datagram)
        return stamp_authenticated.decode_reflector(datagram, self._key)

    def quoted(self, quoted: bytes) -> int | None:
        """Read what an error quotes, which begins after the UDP header."""
        if len(quoted) < _SEQUENCE.size:
            raise NothingQuotedError
        number = int(_SEQUENCE.unpack_from(quoted)[0])
        # With a key there is more of the packet, and nothing in it that would tell more.
        ours = self._sent.get(number, b"")[:PACKET_BYTES]
        return number if ours and quoted[:PACKET_BYTES] == ours[: len(quoted)] else None


class EchoProbes:
    """ICMP echo requests over a ping socket, for destinations that answer nothing else.

    The kernel fills in identifier and checksum; the sequence number and the last word add up to the same in all.
    """

    def __init__(self, version: IpVersion) -> None:
        self._version = version
        self._token = secrets.token_bytes(_TOKEN_BYTES)
        self._sent: set[int] = set()

    def request(self, number: int, sent: Moment) -> bytes:  # noqa: ARG002 - the reply brings no time back
        """The probe."""
        self._sent.add(number)
        header = _ECHO_HEADER.pack(_ECHO_REQUEST[self._version], 0, 0, 0, number)
        return header + _ECHO_PAYLOAD.pack(self._token, _WORD_MAX - number)

    def reply(self, datagram: bytes) -> tuple[int, int] | None:
        """Read an echo reply."""
        if len(datagram) < _ECHO_HEADER.size + _ECHO_PAYLOAD.size or datagram[0] != _ECHO_REPLY[self._version]:
            return None
        token, complement = _ECHO_PAYLOAD.unpack_from(datagram, _ECHO_HEADER.size)
        number = _WORD_MAX - int(complement)
        return (number, 0) if token == self._token and number in self._sent else None

    def quoted(self, quoted: bytes) -> int | None:
        """Read what an error quotes, which begins with the ICMP header."""
        if len(quoted) < _ECHO_HEADER.size:
            raise NothingQuotedError
        number = int(_ECHO_HEADER.unpack_from(quoted)[4])
        token = quoted[_ECHO_HEADER.size : _ECHO_HEADER.size + _TOKEN_BYTES]
        return number if number in self._sent and self._token.startswith(token) else None
