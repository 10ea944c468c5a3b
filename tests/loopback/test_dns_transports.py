"""Asking by UDP, TCP, TLS and HTTPS: the real unbound with a signed zone, and servers that misbehave."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rrset
import msgspec
import pytest
from authority import Authority
from clocks import Synchronised
from unbound import ADDRESS, ADDRESS_V6, BOGUS, IDENTITY, NOBODY, SIGNED, UNSIGNED, WILDCARD, Unbound
from web_site import Behaviour, is_silent, misbehaving, resets, says

from fleet_controller.lab.services import free_port
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.links import Link
from probe.messages import NotRunReason
from probe.tasks.base import Context
from probe.tasks.dns import TASK, DnsParameters, DnsValues

TRANSPORTS = ("udp", "tcp", "tls", "https")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs here."""
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def unbound(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Unbound]:
    """A resolver that validates."""
    certificate = authority.issue("resolver", "DNS:resolver.test,IP:127.0.0.1,IP:::1")
    with Unbound(tmp_path_factory.mktemp("unbound"), certificate) as service:
        yield service


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    """Our authority."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))


def context_on(resolver: str = "127.0.0.1:53", interface: str = "lo") -> Context:
    """A link over loopback."""
    config = LinkConfig(
        name="wan",
        interface=interface,
        source_address="127.0.0.1",
        source_address_v6="::1",
        resolvers=(resolver,),
    )
    return Context(clock=Synchronised(), time_out_s=30, link=Link(config))


def port_of(unbound: Unbound, transport: str) -> int:
    """Where it listens for it."""
    return {"tls": unbound.tls_port, "https": unbound.https_port}.get(transport, unbound.port)


async def asked(unbound: Unbound, name: str, transport: Any = "udp", **parameters: Any) -> DnsValues:
    """What the task says."""
    resolver = f"127.0.0.1:{port_of(unbound, transport)}"
    wanted = DnsParameters(name=name, transport=transport, resolver=resolver, **parameters)
    return await TASK.measure(context_on(), wanted)


async def failure(port: int, transport: Any, **parameters: Any) -> tuple[str, str]:
    """Which operation fails, and how; within 2 s for steps of 0.3 s."""
    wanted = DnsParameters(
        **{
            "name": SIGNED,
            "transport": transport,
            "resolver": f"127.0.0.1:{port}",
            "time_out_s": 0.3,
            "tries": 1,
            **parameters,
        }
    )
    with pytest.raises(MeasurementFailedError) as caught:
        async with asyncio.timeout(2):
            await TASK.measure(context_on(), wanted)
    return caught.value.failure.operation.value, caught.value.failure.kind.value


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_transport_gives_the_same_answer(unbound: Unbound, transport: str) -> None:
    """And times each step that it has, no other."""
    values = await asked(unbound, SIGNED, transport)
    assert (values.addresses, values.rcode, values.ttl_s is not None) == (ADDRESS, "NOERROR", True)
    assert 0 < values.response_time_s < 2
    assert (values.connect_s is not None) == (transport != "udp") == values.used_tcp
    assert (values.tls_s is not None) == (transport in {"tls", "https"})
    assert values.http_version == ("2" if transport == "https" else None)
    assert values.tls_version == ("TLSv1.3" if transport in {"tls", "https"} else None)
    if transport in {"tls", "https"}:
        assert values.certificate_days_left == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_the_outcome_classes_are_the_same_over_every_transport(unbound: Unbound, transport: str) -> None:
    """No such record is a value, no such name and an answer that does not validate are failures."""
    values = await asked(unbound, "ns.unsigned.test", transport, record_type="AAAA")
    assert (values.answers, values.rcode) == (0, "NOERROR")
    port = port_of(unbound, transport)
    assert await failure(port, transport, name=NOBODY) == ("resolve", "name_not_found")
    assert await failure(port, transport, name=BOGUS) == ("resolve", "server_failure")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_ipv6(unbound: Unbound, transport: Any) -> None:
    """A resolver by its IPv6 address, named so in its certificate, and an AAAA record."""
    resolver = f"[::1]:{port_of(unbound, transport)}"
    parameters = DnsParameters(name=SIGNED, record_type="AAAA", transport=transport, resolver=resolver)
    values = await TASK.measure(context_on(), parameters)
    assert (values.addresses, values.resolver) == (ADDRESS_V6, "::1")


async def test_the_links_own_resolver_is_asked_at_the_transports_port(unbound: Unbound) -> None:
    """Its port 53 is for UDP and TCP; TLS has 853, where here nobody listens."""
    context = context_on(f"127.0.0.1:{unbound.port}")
    assert (await TASK.measure(context, DnsParameters(name=SIGNED, transport="tcp"))).answers == 1
    with pytest.raises(MeasurementFailedError) as caught:
        await TASK.measure(context, DnsParameters(name=SIGNED, transport="tls", tries=1))
    assert (caught.value.failure.operation, caught.value.failure.kind) == ("connect", "refused")


@pytest.mark.parametrize(
    ("name", "state"), [(SIGNED, "authenticated"), (UNSIGNED, "unsigned"), (BOGUS, "bogus"), (SIGNED, None)]
)
async def test_the_state_of_dnssec(unbound: Unbound, name: str, state: str | None) -> None:
    """Asked for, it is told, and a resolver that refuses a forged answer has done its duty; else it is absent."""
    values = await asked(unbound, name, dnssec=state is not None)
    assert (values.dnssec_state, values.rcode) == (state, "SERVFAIL" if state == "bogus" else "NOERROR")
    assert values.answers == (0 if state == "bogus" else 1)


async def test_a_resolver_that_does_not_validate(authority: Authority, tmp_path: Path) -> None:
    """It hands the signatures on, and the forged answer too."""
    certificate = authority.issue("blind", "IP:127.0.0.1")
    with Unbound(tmp_path / "blind", certificate, validates=False) as blind:
        assert (await asked(blind, SIGNED, dnssec=True)).dnssec_state == "signed_not_validated"
        assert (await asked(blind, BOGUS, dnssec=True)).dnssec_state == "signed_not_validated"
        assert (await asked(blind, UNSIGNED, dnssec=True)).dnssec_state == "unsigned"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_the_resolver_is(unbound: Unbound, transport: str) -> None:
    """Its NSID, its CHAOS name and where it asks from: over the one connection, and only when wished."""
    values = await asked(unbound, SIGNED, transport, identify=True, whoami_name="whoami.test")
    assert (values.nsid, values.server_id, values.egress) == (IDENTITY, IDENTITY, "198.51.100.53")
    values = await asked(unbound, SIGNED, transport)
    assert (values.nsid, values.server_id, values.egress) == (None, None, None)


async def test_a_random_label_is_another_each_time(unbound: Unbound) -> None:
    """The wildcard answers it, no cache has: the lifetime is the zone's whole one."""
    for _ in range(2):
        values = await asked(unbound, WILDCARD, random_label=True)
        assert (values.answers, values.ttl_s, values.name) == (1, 3600, WILDCARD)


def test_random_labels_are_asked_of_own_zones_only() -> None:
    """They pass every cache and reach the zone's own servers, so the zone must be within the device's targets."""
    plain = DnsParameters(name="stranger.test", resolver="192.0.2.1")
    assert TASK.targets(plain) == ("192.0.2.1",)
    assert TASK.targets(msgspec.structs.replace(plain, random_label=True)) == ("192.0.2.1", "stranger.test")


@pytest.mark.parametrize(
    ("expected", "said"), [((), None), ((ADDRESS,), True), ((ADDRESS, "192.0.2.9"), True), (("192.0.2.9",), False)]
)
async def test_answers_that_were_not_expected(unbound: Unbound, expected: tuple[str, ...], said: bool | None) -> None:
    """A hint that somebody on the way answers instead."""
    assert (await asked(unbound, SIGNED, expected_addresses=expected)).answers_expected is said


@pytest.mark.parametrize(
    "wrong",
    [
        {"expected_addresses": ("peer.test",)},
        {"random_label": True, "name": ".".join(["label"] * 40)},
        {"https_path": "dns-query"},
        {"https_path": "/dns query"},
        {"resolver": "dns.example", "transport": "tls"},
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(wrong: dict[str, Any]) -> None:
    """Parameters are checked where they are read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, DnsParameters)


@pytest.mark.parametrize("transport", ["tls", "https"])
async def test_the_certificate_must_name_whom_we_meant(unbound: Unbound, transport: str) -> None:
    """By its address without a name, by the name with one; another name is no resolver of ours."""
    assert (await asked(unbound, SIGNED, transport, server_name="resolver.test")).answers == 1
    port = port_of(unbound, transport)
    assert await failure(port, transport, server_name="other.test") == ("tls", "certificate_invalid")


@pytest.mark.parametrize("transport", ["tcp", "tls", "https"])
async def test_nobody_is_there(transport: str) -> None:
    """Refused at once."""
    assert await failure(free_port(), transport) == ("connect", "refused")


@pytest.mark.parametrize(
    ("behaviour", "transport", "said"),
    [
        (is_silent, "tcp", ("resolve", "timed_out")),
        (resets, "tcp", ("resolve", "reset")),
        (is_silent, "tls", ("tls", "timed_out")),
        (resets, "tls", ("tls", "reset")),
        (is_silent, "https", ("tls", "timed_out")),
    ],
)
async def test_a_resolver_that_does_not_answer(behaviour: Behaviour, transport: str, said: tuple[str, str]) -> None:
    """The step at which it went quiet is named."""
    async with misbehaving(behaviour) as port:
        assert await failure(port, transport) == said


async def reads_a_message(reader: asyncio.StreamReader) -> bytes:
    """One question over a stream."""
    (length_bytes,) = struct.unpack("!H", await reader.readexactly(2))
    return await reader.readexactly(length_bytes)


def answer_to(question: bytes, name: str | None = None) -> bytes:
    """A framed answer, to the question or to another one."""
    asked_for = dns.message.from_wire(question)
    other = dns.message.make_query(name, "A", id=asked_for.id) if name is not None else asked_for
    response = dns.message.make_response(other)
    response.answer.append(dns.rrset.from_text(other.question[0].name, 60, "IN", "A", ADDRESS))
    wire = response.to_wire()
    return struct.pack("!H", len(wire)) + wire


async def test_what_comes_in_pieces_is_one_answer() -> None:
    """A byte at a time, and the next message behind it."""

    async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = answer_to(await reads_a_message(reader))
        for index in range(len(content)):
            writer.write(content[index : index + 1])
            await asyncio.sleep(0)
        writer.write(content)

    async with misbehaving(drips) as port:
        parameters = DnsParameters(name=SIGNED, transport="tcp", resolver=f"127.0.0.1:{port}")
        assert (await TASK.measure(context_on(), parameters)).addresses == ADDRESS


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"\x00\x05wrong", "malformed"), (b"\xff\xffonly the beginning", "closed"), (None, "malformed")],
)
async def test_a_wrong_answer_over_a_stream(content: bytes | None, kind: str) -> None:
    """No DNS, half of one, or the answer to another question: on a stream it cannot be somebody else's."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reads_a_message(reader)
        writer.write(answer_to(question, "evil.test") if content is None else content)
        await writer.drain()

    async with misbehaving(behave) as port:
        assert await failure(port, "tcp") == ("resolve", kind)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", ("request", "http_status")),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\nContent-Length: 0\r\n\r\n",
            ("request", "redirected"),
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat", ("resolve", "malformed")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\nhalf", ("transfer", "closed")),
        (b"", ("request", "closed")),
    ],
)
async def test_a_web_server_that_is_no_resolver(authority: Authority, content: bytes, said: tuple[str, str]) -> None:
    """What a server in the wrong place says over HTTPS."""
    async with misbehaving(says(content), authority.issue("web", "IP:127.0.0.1")) as port:
        assert await failure(port, "https") == said


@pytest.mark.parametrize("step_s", [3600, -3600])
async def test_a_clock_that_is_stepped_meanwhile_changes_no_figure(
    monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    """The wall clock jumps by an hour between question and answer."""
    real = time.time_ns

    async def steps_the_clock(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reads_a_message(reader)
        monkeypatch.setattr(time, "time_ns", lambda: real() + step_s * 1_000_000_000)
        writer.write(answer_to(question))
        await writer.drain()

    async with misbehaving(steps_the_clock) as port:
        parameters = DnsParameters(name=SIGNED, transport="tcp", resolver=f"127.0.0.1:{port}")
        values = await TASK.measure(context_on(), parameters)
    assert 0 < values.response_time_s < 1


async def test_a_second_try_makes_a_new_connection() -> None:
    """The first was reset; what is counted is the try that was answered."""
    connections = 0

    async def learns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        question = await reads_a_message(reader)
        if connections == 1:
            await resets(reader, writer)
        else:
            writer.write(answer_to(question))
            await writer.drain()

    async with misbehaving(learns) as port:
        parameters = DnsParameters(name=SIGNED, transport="tcp", resolver=f"127.0.0.1:{port}")
        values = await TASK.measure(context_on(), parameters)
    assert (values.tries, values.answers, connections) == (2, 1, 2)


async def test_what_is_asked_beside_it_can_spoil_nothing() -> None:
    """A server that closes after its first answer: the answer stands, the rest is absent."""

    async def answers_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer_to(await reads_a_message(reader)))
        await writer.drain()

    async with misbehaving(answers_once) as port:
        parameters = DnsParameters(
            name=SIGNED,
            transport="tcp",
            resolver=f"127.0.0.1:{port}",
            dnssec=True,
            identify=True,
            whoami_name="whoami.test",
        )
        values = await TASK.measure(context_on(), parameters)
    assert values.addresses == ADDRESS
    assert (values.dnssec_state, values.nsid, values.server_id, values.egress) == (None, None, None, None)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_dead_link_asks_nobody(transport: Any) -> None:
    """Not run, and no other line is used instead."""
    with pytest.raises(NotRunError) as caught:
        await TASK.measure(context_on(interface="absent0"), DnsParameters(transport=transport, resolver="127.0.0.1:53"))
    assert caught.value.not_run.reason is NotRunReason.LINK_DOWN


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_time_out_covers_every_step(transport: Any) -> None:
    """The scheduler never ends a question that still keeps to its own time-outs."""
    parameters = DnsParameters(transport=transport, time_out_s=1, tries=2, dnssec=True, identify=True)
    assert TASK.time_out_s(parameters) >= 2 * 2 + 4 * 1
