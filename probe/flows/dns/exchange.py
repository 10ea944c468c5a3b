"""One DNS question and its answer: over UDP, over TCP when the answer was cut short, over a connection that is open.

The other parts of the name service decide whom to ask, and how often.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import socket
import struct
import time
from dataclasses import dataclass, replace
from typing import Final

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError
from probe.flows.dns.message import NotTheAnswerError, Question, Reply, UnreadableError
from probe.flows.faults import failed
from probe.flows.http.channel import ByteCount, Channel, arrival_ns, lost_after, open_channel, until_readable
from probe.flows.moments import Moment, ask_for_stamps, now, stamp_of
from probe.links import IpVersion, Link
from probe.messages import FailureKind, Operation

Server = tuple[str, int]

# The largest answer over UDP without EDNS is 512 bytes (RFC 1035 section 4.2.1); some servers do not care.
_DATAGRAM_BYTES_MAX: Final = 4096
_ANCILLARY_BYTES: Final = 64
_LENGTH: Final = struct.Struct("!H")  # RFC 1035 section 4.2.2: the prefix of a message over TCP


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: `step_s` for each step of a try, and never beyond `until_s` on the monotonic clock."""

    step_s: float
    until_s: float = math.inf

    def left_s(self) -> float:
        """What the next step may take."""
        return max(min(self.step_s, self.until_s - time.monotonic()), 0.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a resolver said.

    `response_time_s` runs from the sending of the try that was answered to the arrival of its last answer; `tries`
    counts the questions that were sent for it, `strays` the datagrams that answered something else or nothing.
    """

    reply: Reply
    response_time_s: float
    server: str
    used_tcp: bool = False
    tries: int = 1
    strays: int = 0

    @property
    def rcode(self) -> str:
        """The response code (RFC 1035 section 4.1.1, RFC 6895), by name."""
        return self.reply.rcode

    @property
    def addresses(self) -> tuple[str, ...]:
        """The records that were asked for, as text."""
        return self.reply.addresses


def version_of(address: str) -> IpVersion:
    """The IP version of an address."""
    return 6 if ipaddress.ip_address(address).version == 6 else 4  # noqa: PLR2004 - the two versions of IP


async def ask_by_datagram(
    link: Link, server: Server, question: Question, patience: Patience, usage: ByteCount
) -> Answer:
    """One try over UDP and, when the answer does not fit, over TCP: two steps."""
    began = now()
    with link.socket(version_of(server[0]), socket.SOCK_DGRAM) as sock:
        try:
            answer = await _Datagrams(sock, server, question, usage).ask(patience.left_s())
        except OSError as error:
            raise failed(Operation.RESOLVE, error) from error
    if not answer.reply.truncated:
        return answer
    reply, arrived_ns = await _ask_again_over_tcp(link, server, question, patience.left_s(), usage)
    response_time_s = (arrived_ns - began.monotonic_ns) / NS_PER_S
    return replace(answer, reply=reply, response_time_s=response_time_s, used_tcp=True)


class _Datagrams:
    """One question over UDP. Datagrams that answer something else are passed over, and counted."""

    def __init__(self, sock: socket.socket, server: Server, question: Question, usage: ByteCount) -> None:
        self._sock = sock
        self._server = server
        self._question = question
        self._usage = usage
        self._strays = 0
        self._rubbish: UnreadableError | None = None

    async def ask(self, time_out_s: float) -> Answer:
        """Send and wait.

        Raises:
            OSError: TimeoutError when nothing came, or what the network said (ICMP).
            MeasurementFailedError: (resolve, malformed) only rubbish came.
        """
        ask_for_stamps(self._sock)
        self._sock.connect(self._server)  # from now on the kernel drops what comes from anyone else
        sent = now()
        self._sock.send(self._question.wire)
        self._usage.sent_bytes += len(self._question.wire)
        try:
            async with asyncio.timeout(time_out_s):
                return await self._until_answered(sent)
        except TimeoutError:
            raise self._silence(time_out_s) from None

    async def _until_answered(self, sent: Moment) -> Answer:
        while True:
            await until_readable(self._sock)
            try:
                wire, ancillary, _, _ = self._sock.recvmsg(_DATAGRAM_BYTES_MAX, _ANCILLARY_BYTES)
            except BlockingIOError:  # woken for a datagram with a wrong checksum
                continue
            arrived_ns = arrival_ns(sent, stamp_of(ancillary), now())
            self._usage.received_bytes += len(wire)
            try:
                reply = self._question.read(wire)
            except (NotTheAnswerError, UnreadableError) as error:
                self._rubbish = error if isinstance(error, UnreadableError) else self._rubbish
                self._strays += 1
            else:
                response_time_s = (arrived_ns - sent.monotonic_ns) / NS_PER_S
                return Answer(reply, response_time_s, self._server[0], strays=self._strays)

    def _silence(self, time_out_s: float) -> Exception:
        if self._rubbish is not None:
            detail = f"{self._server[0]} sent no DNS message: {self._rubbish}"
            return MeasurementFailedError(Operation.RESOLVE, FailureKind.MALFORMED, detail)
        strays = f", but {self._strays} answers to something else came" if self._strays else ""
        return TimeoutError(f"{self._server[0]} did not answer within {time_out_s:g} s{strays}")


async def _ask_again_over_tcp(
    link: Link, server: Server, question: Question, time_out_s: float, usage: ByteCount
) -> tuple[Reply, int]:
    """The whole answer, and when it came on the monotonic clock.

    To connect and to be answered are parts of one resolution here, so every failure is that of `resolve`.
    """
    deadline_s = time.monotonic() + time_out_s
    try:
        with lost_after(Operation.RESOLVE, has_begun=True):
            channel = await open_channel(link, version_of(server[0]), *server, time_out_s, usage)
        try:
            reply = await ask_over(channel, server, question, max(deadline_s - time.monotonic(), 0.0))
            return reply, channel.arrived_ns
        finally:
            channel.close()
    except MeasurementFailedError as error:
        detail = f"the answer was cut short, and over TCP: {error.failure.detail}"
        raise MeasurementFailedError(Operation.RESOLVE, error.failure.kind, detail) from error


async def ask_over(channel: Channel, server: Server, question: Question, time_out_s: float) -> Reply:
    """One question over a connection that is open (RFC 7766).

    Raises:
        MeasurementFailedError: (resolve, timed_out | closed | reset | malformed).
    """
    try:
        async with asyncio.timeout(time_out_s):
            await channel.send(_LENGTH.pack(len(question.wire)) + question.wire)
            return question.read_whole(await _read_message(channel))
    except TimeoutError as error:
        detail = f"{server[0]} did not answer over TCP within {time_out_s:g} s"
        raise MeasurementFailedError(Operation.RESOLVE, FailureKind.TIMED_OUT, detail) from error
    except (OSError, EOFError) as error:
        raise failed(Operation.RESOLVE, error) from error
    except (UnreadableError, NotTheAnswerError) as error:
        detail = f"{server[0]} sent no answer over TCP: {error}"
        raise MeasurementFailedError(Operation.RESOLVE, FailureKind.MALFORMED, detail) from error


async def _read_message(channel: Channel) -> bytes:
    """The next message, of 65,535 bytes at most; what follows it belongs to nothing that we asked."""
    received = await _at_least(channel, b"", _LENGTH.size)
    end = _LENGTH.size + _LENGTH.unpack_from(received)[0]
    return (await _at_least(channel, received, end))[_LENGTH.size : end]


async def _at_least(channel: Channel, received: bytes, wanted_bytes: int) -> bytes:
    while len(received) < wanted_bytes:
        part = await channel.receive()
        if not part:
            raise EOFError("the resolver closed the connection in the middle of its answer")
        received += part
    return received
