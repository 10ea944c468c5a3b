"""Trace a path: probes of rising TTL over one socket, several on their way at once, none of them privileged.

Every router that a TTL ends at reports it (RFC 792, RFC 4443), and the kernel queues the report at the socket that sent
the probe. As every probe is of one flow (`trace_probes`), all of them take one path.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final

from probe.clock import NS_PER_S
from probe.flows.echo.engine import ByteCount
from probe.flows.error_queue import Departure, NetworkError, ask_for_errors, next_news
from probe.flows.faults import kind_of
from probe.flows.moments import Moment, ask_for_departures, ask_for_stamps, delay_ns, now, stamp_of
from probe.flows.path.flights import Flight, Flights
from probe.flows.path.hops import Hop, Reply, meaning
from probe.flows.path.trace_probes import NothingQuotedError, TraceProbes
from probe.flows.path.traced import EndedBy, Traced, TracePlan
from probe.messages import FailureKind

_IPV6_AUTOFLOWLABEL: Final = 70  # linux/in6.h
_TTL: Final = struct.Struct("=i")
_DATAGRAM_BYTES_MAX: Final = 2048
_ANCILLARY_BYTES: Final = 256
# An error that an earlier probe met is told at the next call instead of sending; several may wait.
_SEND_TRIES: Final = 4
# What one wake-up of the loop reads, so that a flood cannot keep everything else from running.
_READS_PER_WAKE: Final = 64


def prepare(sock: socket.socket) -> None:
    """Ask for stamps and errors, and keep the flow label of IPv6 (RFC 6437) from telling two traces apart."""
    ask_for_stamps(sock)
    ask_for_errors(sock)
    ask_for_departures(sock)
    if sock.family == socket.AF_INET6:
        # The kernel draws a new label for every socket, and routers may choose by it: zero leaves them the ports.
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_AUTOFLOWLABEL, 0)


class Trace:
    """One trace over one prepared, non-blocking datagram socket that is connected to `destination`, an address."""

    def __init__(
        self,
        sock: socket.socket,
        probes: TraceProbes,
        destination: str,
        plan: TracePlan,
        usage: ByteCount,
        read_clocks: Callable[[], Moment] = now,
    ) -> None:
        self._sock = sock
        self._probes = probes
        self._plan = plan
        self._usage = usage
        self._read_clocks = read_clocks
        self._source: str = sock.getsockname()[0]
        self._destination = destination
        self._traced = Traced()
        self._hops: dict[int, Hop] = {}
        self._flights = Flights()
        self._number = 0
        self._nothing_quoted = 0
        self._guessed: set[int] = set()
        self._ttl_max = plan.hops_max
        self._progress = asyncio.Event()
        self._began = read_clocks()

    async def run(self) -> Traced:
        """Trace once."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock.fileno(), self._on_readable)
        self._began = self._read_clocks()
        try:
            await self._first_round()
            for _ in range(self._plan.probes_per_hop - 1):
                await self._another_round()
            await self._all_settled()
            if self._nothing_quoted:
                await self._one_by_one()
        finally:
            loop.remove_reader(self._sock.fileno())
        return self._finished()

    async def _first_round(self) -> None:
        """One probe of each TTL, never further ahead of the last answer than the path may be silent."""
        ttl = 1
        while ttl <= self._ttl_max and not self._is_over():
            if ttl > self._last_answered() + self._plan.silent_hops_max:
                if not await self._something_came():
                    return
                continue
            await self._send(ttl)
            ttl += 1

    async def _another_round(self) -> None:
        """One more probe of each TTL. Those that were silent so far get their chance too."""
        for ttl in sorted(self._hops):
            if ttl > self._ttl_max or self._is_over():
                return
            await self._send(ttl)

    async def _one_by_one(self) -> None:
        """The same for routers that quote too little to tell which probe they mean: one on its way at a time."""
        for ttl in self._guessed:
            self._hops[ttl].replies = []
        self._ttl_max = min(
            (ttl for ttl, hop in self._hops.items() if hop.ends_the_path()), default=self._plan.hops_max
        )
        silent, ttl = 0, 1
        while ttl <= self._ttl_max and silent < self._plan.silent_hops_max and not self._is_over():
            hop = self._hop(ttl)
            if not hop.replies:
                # The answers to the earlier ones may have come: nobody can say.
                hop.sent = 0
                await self._alone(ttl)
            silent = 0 if hop.replies else silent + 1
            ttl += 1

    async def _alone(self, ttl: int) -> None:
        for _ in range(self._plan.probes_per_hop):
            self._flights.give_up()
            await self._send(ttl)
            await self._all_settled()
            if self._is_over():
                return

    async def _send(self, ttl: int) -> None:
        """Send one probe, and wait for the interval."""
        number, self._number = self._number, self._number + 1
        for _ in range(_SEND_TRIES):
            sent = self._read_clocks()
            packet = self._probes.request(number, sent)
            try:
                self._sock.sendmsg((packet,), (self._ancillary(ttl),))
            except OSError as error:
                self._traced.send_error = error
                self._read_errors()
                # Whether a packet that was refused is counted differs from kernel to kernel.
                ask_for_departures(self._sock)
                self._flights.count_anew()
            else:
                self._note_sent(number, ttl, sent, len(packet))
                break
        await asyncio.sleep(self._plan.interval_s)

    def _note_sent(self, number: int, ttl: int, sent: Moment, packet_bytes: int) -> None:
        self._traced.sent += 1
        self._traced.send_error = None
        self._usage.sent_bytes += packet_bytes
        self._flights.add(number, Flight(ttl, sent))
        if ttl not in self._hops:
            self._hops[ttl] = Hop(ttl, sent.monotonic_ns - self._began.monotonic_ns)
        self._hops[ttl].sent += 1

    def _ancillary(self, ttl: int) -> tuple[int, int, bytes]:
        """With the packet itself, so that no other packet gets it."""
        if self._sock.family == socket.AF_INET6:
            return socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT, _TTL.pack(ttl)
        return socket.IPPROTO_IP, socket.IP_TTL, _TTL.pack(ttl)

    def _hop(self, ttl: int) -> Hop:
        elapsed_ns = self._read_clocks().monotonic_ns - self._began.monotonic_ns
        return self._hops.setdefault(ttl, Hop(ttl, elapsed_ns))

    def _last_answered(self) -> int:
        return max((ttl for ttl, hop in self._hops.items() if hop.replies), default=0)

    def _is_over(self) -> bool:
        """Whether the time is over, or the link is gone."""
        error = self._traced.send_error
        if error is not None and kind_of(error) == FailureKind.LINK_LOST:
            return True
        return self._limit_left_s() <= 0

    def _limit_left_s(self) -> float:
        return self._plan.limit_s - (self._read_clocks().monotonic_ns - self._began.monotonic_ns) / NS_PER_S

    async def _all_settled(self) -> None:
        while await self._something_came():
            pass

    async def _something_came(self) -> bool:
        """Wait for the next answer, or the end of all patience; False when nothing is awaited any more."""
        sent_ns = self._flights.last_sent_ns(self._ttl_max)
        if sent_ns is None:
            return False
        waited_s = (self._read_clocks().monotonic_ns - sent_ns) / NS_PER_S
        left_s = min(self._plan.time_out_s - waited_s, self._limit_left_s())
        if left_s <= 0:
            self._flights.give_up()
            return False
        self._progress.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._progress.wait()
        return True

    def _on_readable(self) -> None:
        """Read when probes left and what the routers said, then the answers of the destination."""
        self._read_errors()
        for _ in range(_READS_PER_WAKE):
            try:
                datagram, ancillary, _, _ = self._sock.recvmsg(_DATAGRAM_BYTES_MAX, _ANCILLARY_BYTES)
            except OSError:
                return
            self._usage.received_bytes += len(datagram)
            answered = self._probes.reply(datagram)
            if answered is not None:
                number, residence_ns = answered
                delay = self._delay_ns(number, stamp_of(ancillary), residence_ns)
                self._take(number, Reply(self._destination, delay, from_destination=True))

    def _read_errors(self) -> None:
        for _ in range(_READS_PER_WAKE):
            news = next_news(self._sock)
            if news is None:
                return
            if isinstance(news, Departure):
                self._flights.note_departure(news.count, news.stamp_ns)
            else:
                self._usage.received_bytes += len(news.quoted)
                self._take_error(news)

    def _take_error(self, error: NetworkError) -> None:
        number = self._number_of(error)
        if error.icmp_version is None or error.reporter is None or error.reporter == self._source:
            # Nobody on the path: our own kernel found no gateway, say.
            self._settle(number)
            return
        said = meaning(error.icmp_version, error.icmp_type, error.icmp_code)
        if number is None or said is None:
            return
        # A filter on the way says "port unreachable" too: only the destination's own word is that of the destination.
        from_destination = error.reporter == self._destination
        unreachable = None if said == "time_exceeded" or from_destination else said
        delay = self._delay_ns(number, error.stamp_ns)
        self._take(number, Reply(error.reporter, delay, unreachable, from_destination=from_destination))

    def _number_of(self, error: NetworkError) -> int | None:
        """Which probe is meant. Where the quotation does not tell, the only one on its way is."""
        try:
            return self._probes.quoted(error.quoted)
        except NothingQuotedError:
            self._nothing_quoted += 1
            number = self._flights.only_one()
            flight = None if number is None else self._flights.get(number)
            if flight is not None:
                self._guessed.add(flight.ttl)
            return number

    def _delay_ns(self, number: int, stamp_ns: int | None, residence_ns: int = 0) -> int | None:
        flight = self._flights.get(number)
        if flight is None:
            return None
        return delay_ns(flight.sent, stamp_ns, self._read_clocks(), residence_ns, flight.departed_ns)

    def _take(self, number: int, reply: Reply) -> None:
        """Note the first answer to a probe. What comes twice, or after its time, is nothing new."""
        flight = self._flights.get(number)
        if flight is None:
            return
        self._settle(number)
        elapsed_ns = self._read_clocks().monotonic_ns - flight.sent.monotonic_ns
        took_ns = elapsed_ns if reply.delay_ns is None else reply.delay_ns
        if took_ns > self._plan.time_out_s * NS_PER_S:
            return
        hop = self._hop(flight.ttl)
        hop.replies.append(reply)
        if hop.ends_the_path():
            self._ttl_max = min(self._ttl_max, flight.ttl)

    def _settle(self, number: int | None) -> None:
        if number is not None:
            self._flights.land(number)
        self._progress.set()

    def _finished(self) -> Traced:
        traced, last = self._traced, min(self._last_answered(), self._ttl_max)
        traced.hops = [self._hop(ttl) for ttl in range(1, last + 1)]
        traced.ended_by = self._ended_by()
        return traced

    def _ended_by(self) -> EndedBy:
        end = self._hops.get(self._ttl_max)
        if end is not None and end.is_destination():
            return "destination"
        if end is not None and end.unreachable() is not None:
            return "unreachable"
        if self._limit_left_s() <= 0:
            return "time"
        return "hops_max" if self._ttl_max in self._hops else "silence"
