"""The STAMP session-reflector (RFC 8762 section 4.3): stateful, safe to stand on the Internet.

It never sends more bytes than it was sent, never more packets than it was sent, nothing to garbage and nothing to
other reflectors; each source address has a rate, and every table has a bound. One wake-up of the event loop answers
a whole batch, straight on the socket.

With keys it is authenticated (RFC 8762 section 4.4): it answers what one of them sealed, and drops everything else
without a word. Without keys it is unauthenticated. Peers for both modes listen on two ports.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from probe.clock import Clock, SystemClock
from probe.flows.echo.engine import ANCILLARY_BYTES, DATAGRAM_BYTES_MAX
from probe.flows.echo.stamp_authenticated import (
    AUTHENTICATED_BYTES,
    decode_sender,
    encode_reflector,
    key_of,
)
from probe.flows.echo.stamp_packets import PACKET_BYTES, ReflectorPacket, SenderPacket, error_estimate_of, ntp_of
from probe.flows.moments import ask_for_stamps, stamp_of
from probe.peer.send_lag import SendLag

_LOG = logging.getLogger(__name__)

# One source address may be a carrier's whole NAT: a thousand probes at 10 packets/s fit. It stops a flood; below that a
# limit would be read as loss on the line.
PACKETS_PER_S_MAX: Final = 10_000.0
# Sessions and sources remembered at once: far over a province's probes, a few megabytes at most.
SESSIONS_MAX: Final = 4096
# A session that is silent for so long has ended (REFWAIT of RFC 5357 section 4.2).
SESSION_IDLE_S: Final = 900.0
# The state of our clock is asked once in this time, not for each packet.
_CLOCK_READ_S: Final = 1.0
# What one wake-up of the loop answers, so that a flood cannot keep everything else from running.
_BATCH: Final = 64
# Packets wait here while the process does something else: a second of a busy peer's traffic.
_RECEIVE_BUFFER_BYTES: Final = 1 << 20

_IP_PKTINFO: Final = 8  # linux/in.h
_IP_RECVTTL: Final = 12  # linux/in.h
_IN_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, local address, destination address
_TTL = struct.Struct("=i")


@dataclass(slots=True)
class Counters:
    """What became of the packets that came in. `not_authentic` are those that none of the keys sealed."""

    reflected: int = 0
    ignored: int = 0
    not_authentic: int = 0
    limited: int = 0
    unsent: int = 0
    evicted: int = 0


@dataclass(slots=True)
class _Session:
    next_sequence: int
    seen_s: float


@dataclass(slots=True)
class _Bucket:
    packets: float
    filled_s: float


@dataclass(frozen=True, slots=True)
class _Arrived:
    """One datagram with what the kernel said about it."""

    datagram: bytes
    source: tuple[Any, ...]
    stamp_ns: int
    ttl: int
    answer_from: list[tuple[int, int, bytes]]


class Reflector:
    """Answers STAMP packets on one UDP address. IPv4 and IPv6 each take one reflector.

    Args:
        packets_per_s_max: what one source address may ask.
        clock: the clocks.
        keys: of authenticated mode; several, so that a key can be replaced while both the old and the new one are in
            use. None at all means unauthenticated mode.

    Attributes:
        port: where it listens, once started.
        counters: what it did so far.
    """

    def __init__(
        self, packets_per_s_max: float = PACKETS_PER_S_MAX, clock: Clock | None = None, keys: Sequence[bytes] = ()
    ) -> None:
        self.port = 0
        self.counters = Counters()
        self._packets_per_s_max = packets_per_s_max
        self._clock = clock or SystemClock()
        self._keys = tuple(keys)
        self._sessions: OrderedDict[tuple[Any, ...], _Session] = OrderedDict()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._error_estimate = 0
        self._error_estimate_until_s = 0.0
        self._lag = SendLag()
        self._sock: socket.socket | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen on `host`, an address of this machine (`0.0.0.0` and `::` for all of a family); port 0 for any.

        Raises:
            OSError: the address is not ours, or in use.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        self._sock = _open(family, address)
        self._lag.prepare(self._sock)
        self.port = self._sock.getsockname()[1]
        loop.add_reader(self._sock.fileno(), self._on_readable, self._sock)
        _LOG.info("STAMP reflector started on %s port %d", host, self.port)

    async def stop(self) -> None:
        """Close. Stopping twice, or before a start, does nothing."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self._sock = None
        _LOG.info("STAMP reflector stopped: %s", self.counters)

    def _on_readable(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                datagram, ancillary, flags, source = sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES)
            except OSError:
                # Nothing to read: then it was a stamp that came late.
                self._lag.drain(sock)
                return
            if flags & socket.MSG_TRUNC:
                self.counters.ignored += 1
                continue
            self._reflect(sock, _arrived(datagram, ancillary, source))

    def _reflect(self, sock: socket.socket, arrived: _Arrived) -> None:
        key = key_of(arrived.datagram, self._keys)
        if self._keys and key is None:
            self.counters.not_authentic += 1
            return
        packet = SenderPacket.decode(arrived.datagram) if key is None else decode_sender(arrived.datagram)
        # A source port of 0 cannot be answered.
        if packet is None or not arrived.source[1]:
            self.counters.ignored += 1
            return
        now_s = self._clock.monotonic_s()
        if not self._may_answer(arrived.source[0], now_s):
            self.counters.limited += 1
            return
        sequence = self._next_sequence((*arrived.source[:2], packet.session), now_s)
        ancillary = [*arrived.answer_from, *self._lag.ask(now_s)]
        error_estimate = self._error_estimate_at(now_s)
        clock_ns = self._clock.wall_ns()
        head = self._head(packet, arrived, sequence, error_estimate, clock_ns + self._lag.lag_ns)
        try:
            sock.sendmsg((_answer(head, arrived.datagram, key),), ancillary, 0, arrived.source)
        except OSError:
            self.counters.unsent += 1
            return
        self._lag.learn(sock, clock_ns)
        self.counters.reflected += 1

    def _head(
        self, packet: SenderPacket, arrived: _Arrived, sequence: int, error_estimate: int, leaves_ns: int
    ) -> ReflectorPacket:
        return ReflectorPacket(
            sequence=sequence,
            timestamp=ntp_of(leaves_ns),
            error_estimate=error_estimate,
            session=packet.session,
            receive_timestamp=ntp_of(arrived.stamp_ns),
            sender_sequence=packet.sequence,
            sender_timestamp=packet.timestamp,
            sender_error_estimate=packet.error_estimate,
            sender_ttl=arrived.ttl,
        )

    def _may_answer(self, address: str, now_s: float) -> bool:
        """Take one packet out of the address's bucket, which holds one second's worth."""
        bucket = self._buckets.get(address)
        if bucket is None:
            bucket = self._buckets[address] = _Bucket(self._packets_per_s_max, now_s)
            self._bound(self._buckets)
        self._buckets.move_to_end(address)
        refilled = bucket.packets + (now_s - bucket.filled_s) * self._packets_per_s_max
        bucket.packets, bucket.filled_s = min(refilled, self._packets_per_s_max), now_s
        if bucket.packets < 1:
            return False
        bucket.packets -= 1
        return True

    def _next_sequence(self, key: tuple[Any, ...], now_s: float) -> int:
        session = self._sessions.get(key)
        if session is None or now_s - session.seen_s > SESSION_IDLE_S:
            session = self._sessions[key] = _Session(0, now_s)
            self._bound(self._sessions)
        self._sessions.move_to_end(key)
        sequence = session.next_sequence
        session.next_sequence, session.seen_s = (sequence + 1) % (1 << 32), now_s
        return sequence

    def _bound(self, table: OrderedDict[Any, Any]) -> None:
        """Forget whoever was silent the longest."""
        if len(table) > SESSIONS_MAX:
            table.popitem(last=False)
            self.counters.evicted += 1

    def _error_estimate_at(self, now_s: float) -> int:
        if now_s >= self._error_estimate_until_s:
            self._error_estimate = error_estimate_of(self._clock.reading())
            self._error_estimate_until_s = now_s + _CLOCK_READ_S
        return self._error_estimate


def _answer(head: ReflectorPacket, asked: bytes, key: bytes | None) -> bytes:
    """The answer. What follows goes back as it came: same size on both ways, extensions not understood (RFC 8972).

    TWAMP Light's packets may end before ours do.
    """
    if key is None:
        return head.encode()[: len(asked)] + asked[PACKET_BYTES:]
    return encode_reflector(head, key) + asked[AUTHENTICATED_BYTES:]


def _open(family: socket.AddressFamily, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        ask_for_stamps(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def _arrived(datagram: bytes, ancillary: list[tuple[int, int, bytes]], source: tuple[Any, ...]) -> _Arrived:
    ttl, answer_from = 0, []
    for level, kind, content in ancillary:
        if (level, kind) in {(socket.IPPROTO_IP, socket.IP_TTL), (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)}:
            ttl = _TTL.unpack_from(content)[0]
        elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            # From the address that was asked (a host may have several), over whatever interface leads back.
            local = _IN_PKTINFO.unpack_from(content)[1]
            answer_from.append((level, kind, _IN_PKTINFO.pack(0, local, bytes(4))))
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            answer_from.append((level, kind, content))
    stamp_ns = stamp_of(ancillary)
    return _Arrived(datagram, source, time.time_ns() if stamp_ns is None else stamp_ns, ttl, answer_from)
