"""What is asked beside the one question that is measured can neither spoil its answer nor make one up."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rrset
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from authority import Authority
from clocks import Synchronised
from hyperframe.frame import GoAwayFrame
from web_site import Behaviour, misbehaving

from fleet_controller.lab.services import free_dns_port
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.links import Link
from probe.tasks.base import Context
from probe.tasks.dns import TASK, DnsParameters, DnsValues

HOST, NAME, ADDRESS = "127.0.0.1", "peer.test", "192.0.2.7"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_SIGNATURE = "A 13 2 60 20300101000000 20200101000000 1 test. AAAA"
# Given a question, its answer; none is silence.
Answers = Callable[[dns.message.Message], bytes | None]


async def asked(port: int, **parameters: Any) -> DnsValues:
    """What the task says, with every question that it can ask."""
    link = Link(LinkConfig(name="wan", interface="lo", source_address=HOST))
    everything = {"dnssec": True, "identify": True, "whoami_name": "whoami.test", "time_out_s": 0.3, "tries": 1}
    wanted = DnsParameters(**{"name": NAME, "resolver": f"{HOST}:{port}", **everything, **parameters})
    return await TASK.measure(Context(clock=Synchronised(), time_out_s=30, link=link), wanted)


def answer_to(
    question: dns.message.Message, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, *, is_signed: bool = False
) -> bytes:
    """The address, or an error."""
    response = dns.message.make_response(question)
    response.set_rcode(rcode)
    if rcode == dns.rcode.NOERROR:
        name = question.question[0].name
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", ADDRESS))
        if is_signed:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "RRSIG", _SIGNATURE))
    return response.to_wire()


def unless_chaos(question: dns.message.Message) -> bytes | None:
    """Of itself it tells nothing, not even that."""
    return None if question.question[0].rdclass == dns.rdataclass.CH else answer_to(question)


def by_http_1(version: str, headers: str, answers: Answers) -> Behaviour:
    """A resolver over HTTP/1 that answers for as long as it is asked, whatever its headers say."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = _LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
            assert length is not None
            wire = answers(dns.message.from_wire(await reader.readexactly(int(length[1]))))
            if wire is not None:
                writer.write(f"{version} 200 OK\r\nContent-Length: {len(wire)}\r\n{headers}\r\n".encode() + wire)
                await writer.drain()

    return behave


def by_http_2(settings: dict[Any, int], farewell: bytes) -> Behaviour:
    """A resolver over HTTP/2 that changes its settings with its answer, and says goodbye behind it."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        while content := await reader.read(65_536):
            for event in connection.receive_data(content):
                if isinstance(event, h2.events.DataReceived):
                    wire = answer_to(dns.message.from_wire(event.data))
                    connection.update_settings(settings)
                    connection.send_headers(event.stream_id, [(":status", "200")])
                    connection.send_data(event.stream_id, wire, end_stream=True)
                    writer.write(connection.data_to_send() + farewell)
            writer.write(connection.data_to_send())
            await writer.drain()

    return behave


GOODBYE = GoAwayFrame(0, last_stream_id=1).serialize()
CONCURRENT, WINDOW = (
    h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS,
    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE,
)


@pytest.fixture
def certificate(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Of an authority that is trusted here."""
    authority = Authority.make(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority.issue("resolver", f"IP:{HOST}")


@pytest.mark.parametrize(
    ("behaviour", "alpn", "state"),
    [
        (by_http_1("HTTP/1.1", "Connection: close\r\n", answer_to), "http/1.1", None),
        (by_http_1("HTTP/1.0", "", answer_to), "http/1.1", None),
        (by_http_1("HTTP/1.1", "", unless_chaos), "http/1.1", "unsigned"),
        (by_http_2({}, GOODBYE), "h2", None),
        (by_http_2({CONCURRENT: 0}, b""), "h2", None),
        (by_http_2({WINDOW: 0}, b""), "h2", None),
    ],
    ids=["closes", "http_1_0", "no_chaos", "goodbye", "no_streams", "no_window"],
)
async def test_a_server_that_takes_no_second_question_over_https(
    certificate: tuple[Any, Any], behaviour: Behaviour, alpn: str, state: str | None
) -> None:
    """What it answered is the result; what it could not be asked is absent."""
    async with misbehaving(behaviour, certificate, alpn=alpn) as port:
        values = await asked(port, transport="https")
    assert (values.addresses, values.rcode, values.dnssec_state) == (ADDRESS, "NOERROR", state)
    assert (values.nsid, values.server_id, values.egress) == (None, None, None)


class Scripted(asyncio.DatagramProtocol):
    """A resolver that answers the n-th question with the n-th answer, and then no more."""

    def __init__(self, script: list[Answers]) -> None:
        self.questions: list[dns.message.Message] = []
        self._script = script
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A question."""
        question = dns.message.from_wire(data)
        answers = self._script[len(self.questions)] if len(self.questions) < len(self._script) else silence
        self.questions.append(question)
        wire = answers(question)
        if wire is not None:
            self._transport.sendto(wire, addr)


@contextlib.asynccontextmanager
async def scripted(*script: Answers) -> AsyncIterator[tuple[Scripted, int]]:
    """Run one; gives its port too."""
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Scripted(list(script)), local_addr=(HOST, free_dns_port())
    )
    try:
        yield server, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


def silence(_: dns.message.Message) -> bytes | None:
    """Nothing."""
    return None


def fails(question: dns.message.Message) -> bytes:
    """SERVFAIL."""
    return answer_to(question, dns.rcode.SERVFAIL)


def signed(question: dns.message.Message) -> bytes:
    """The address and its signature."""
    return answer_to(question, is_signed=True)


ONLY_DNSSEC: dict[str, Any] = {"identify": False, "whoami_name": None}


async def test_a_resolver_that_refuses_what_does_not_validate() -> None:
    """SERVFAIL, the signed record without checking, SERVFAIL once more: two questions beside the first."""
    async with scripted(fails, signed, fails) as (server, port):
        values = await asked(port, **ONLY_DNSSEC)
    assert (values.dnssec_state, values.rcode, values.answers) == ("bogus", "SERVFAIL", 0)
    assert [bool(question.flags & dns.flags.CD) for question in server.questions] == [False, True, False]


@pytest.mark.parametrize(
    "script",
    [
        (fails, signed, signed),
        (fails, answer_to, fails),
        (fails, signed),
        (fails, fails, fails),
        (fails,),
    ],
    ids=["record_came_late", "nothing_is_signed", "silent_at_last", "fails_always", "silent_at_once"],
)
async def test_a_resolver_that_fails_is_not_one_that_refuses(script: tuple[Answers, ...]) -> None:
    """It had not got the record in time, or nothing says that a signature was what it disliked: a failure."""
    async with scripted(*script) as (_, port):
        with pytest.raises(MeasurementFailedError) as caught:
            await asked(port, **ONLY_DNSSEC)
    assert (caught.value.failure.operation, caught.value.failure.kind) == ("resolve", "server_failure")


def test_the_time_out_covers_both_questions_of_dnssec() -> None:
    """Each may be asked by UDP and again by TCP."""
    plain, more = (DnsParameters(time_out_s=1, dnssec=dnssec) for dnssec in (False, True))
    assert TASK.time_out_s(more) - TASK.time_out_s(plain) >= 2 * 2
