"""Asking one resolver, several times if need be, by one of the four ways there are.

UDP (RFC 1035), TCP (RFC 7766), TLS (DoT, RFC 7858, strict: RFC 8310) and HTTPS (DoH, RFC 8484). The connection is made
first and timed apart, so that `response_time_s`, from the question to its answer, compares over all four.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from probe.clock import NS_PER_S, Clock
from probe.errors import MeasurementFailedError
from probe.flows.dns.exchange import Answer, Patience, Server, ask_by_datagram, ask_over, version_of
from probe.flows.dns.message import NotTheAnswerError, Question, UnreadableError
from probe.flows.http.channel import ByteCount, Channel, open_channel
from probe.flows.http.exchange import HTTP_1_1, HTTP_2, HttpConnection
from probe.flows.http.messages import HttpRequest
from probe.links import Link
from probe.messages import FailureKind, Operation

Transport = Literal["udp", "tcp", "tls", "https"]
# RFC 1035 section 4.2, RFC 7858 section 3.1, RFC 9110 section 4.2.2.
PORT_OF: Final[dict[Transport, int]] = {"udp": 53, "tcp": 53, "tls": 853, "https": 443}

_DOT: Final = ("dot",)  # as IANA registers it for ALPN
_DNS_MESSAGE: Final = "application/dns-message"
_MESSAGE_BYTES_MAX: Final = 65_535
_OK: Final = 200
_REDIRECT: Final = range(300, 400)


@dataclass(frozen=True, slots=True)
class Where:
    """Whom to ask, how, and for how long to wait at each step.

    `server_name` is whom the certificate must name; absent, the resolver's own address, as those of the big public
    resolvers do. `https_path` is where the questions go to over HTTPS.
    """

    server: Server
    transport: Transport
    time_out_s: float
    server_name: str | None = None
    https_path: str = "/dns-query"


class Session(Protocol):
    """A resolver that can be asked.

    Attributes:
        channel: the connection; absent over UDP.
        http_version: absent but over HTTPS.
    """

    channel: Channel | None
    http_version: str | None

    async def ask(self, question: Question) -> Answer:
        """One question, one answer.

        Raises:
            MeasurementFailedError: (resolve, ...), over HTTPS (request | transfer, ...) too.
        """


@asynccontextmanager
async def open_session(link: Link, where: Where, clock: Clock, usage: ByteCount) -> AsyncIterator[Session]:
    """Connect, where there is something to connect.

    Raises:
        MeasurementFailedError: (connect | tls, ...).
        NotRunError: the link is down; this device cannot judge certificates (`tool_missing`, `clock`).
    """
    if where.transport == "udp":
        yield _Udp(link, where, usage)
        return
    version = version_of(where.server[0])
    channel = await open_channel(link, version, *where.server, where.time_out_s, usage)
    try:
        if where.transport == "tcp":
            yield _Stream(channel, where)
            return
        alpn = _DOT if where.transport == "tls" else (HTTP_2, HTTP_1_1)
        await channel.secure(where.server_name or where.server[0], alpn, clock, where.time_out_s)
        # What follows the handshake is part of that step, and of its time.
        await channel.settle(max(where.time_out_s - (channel.tls_s or 0.0), 0.0))
        yield _Stream(channel, where) if where.transport == "tls" else _Https(channel, where)
    finally:
        channel.close()


class _Udp:
    """A socket of its own for each question."""

    def __init__(self, link: Link, where: Where, usage: ByteCount) -> None:
        self.channel: Channel | None = None
        self.http_version: str | None = None
        self._link = link
        self._where = where
        self._usage = usage

    async def ask(self, question: Question) -> Answer:
        """Over UDP, and over TCP when the answer was cut short."""
        patience = Patience(self._where.time_out_s)
        return await ask_by_datagram(self._link, self._where.server, question, patience, self._usage)


class _Stream:
    """TCP, or TLS over it."""

    def __init__(self, channel: Channel, where: Where) -> None:
        self.channel: Channel | None = channel
        self.http_version: str | None = None
        self._channel = channel
        self._where = where

    async def ask(self, question: Question) -> Answer:
        """On the connection that is open."""
        began_ns = time.monotonic_ns()
        reply = await ask_over(self._channel, self._where.server, question, self._where.time_out_s)
        response_time_s = (self._channel.arrived_ns - began_ns) / NS_PER_S
        return Answer(reply, response_time_s, self._where.server[0], used_tcp=True)


class _Https:
    """HTTP/2, or 1.1 where the server has nothing better."""

    def __init__(self, channel: Channel, where: Where) -> None:
        self.channel: Channel | None = channel
        self._where = where
        self._connection = HttpConnection(channel)
        self.http_version: str | None = self._connection.version

    async def ask(self, question: Question) -> Answer:
        """By POST, which no cache on the way answers (RFC 8484 section 4.1)."""
        request = HttpRequest(
            scheme="https",
            authority=self._authority(),
            target=self._where.https_path,
            headers=(("accept", _DNS_MESSAGE), ("content-type", _DNS_MESSAGE)),
            body=question.wire_with_id_0(),
        )
        response = await self._connection.ask(request, self._where.time_out_s, _MESSAGE_BYTES_MAX)
        _check(response.head.status, response.head.headers, self._where.server[0])
        try:
            reply = question.read_whole(bytes(response.body))
        except (UnreadableError, NotTheAnswerError) as error:
            detail = f"{self._where.server[0]} sent no answer over HTTPS: {error}"
            raise MeasurementFailedError(Operation.RESOLVE, FailureKind.MALFORMED, detail) from error
        response_time_s = response.first_byte_s + response.transfer_s
        return Answer(reply, response_time_s, self._where.server[0], used_tcp=True)

    def _authority(self) -> str:
        address, port = self._where.server
        host = self._where.server_name or (f"[{address}]" if ":" in address else address)
        return host if port == PORT_OF["https"] else f"{host}:{port}"


def _check(status: int, headers: dict[str, str], server: str) -> None:
    if status in _REDIRECT:
        target = headers.get("location", "nowhere")
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.REDIRECTED, f"{status} to {target}")
    if status != _OK:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"{server} answered {status}")
