"""Resolving through a link's own resolvers: the real dnsmasq, and servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from fleet_controller.lab.services import Dnsmasq, free_dns_port, free_port
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.query import Answer, query, resolve_host
from probe.links import Link
from probe.messages import FailureKind, NotRunReason, Operation
from probe.tasks.base import Context, Usage
from probe.tasks.dns import TASK, DnsParameters, DnsValues

NAME, ADDRESS = "peer.test", "192.0.2.7"
# Given a question, the datagrams to send back.
Behaviour = Callable[[bytes], list[bytes]]


def link_with(*resolvers: tuple[str, int], interface: str = "lo") -> Link:
    """A link over loopback whose resolvers are these."""
    texts = tuple(f"{host}:{port}" for host, port in resolvers)
    return Link(
        LinkConfig(
            name="wan",
            interface=interface,
            source_address="127.0.0.1",
            source_address_v6="::1",
            resolvers=texts,
        )
    )


def response_to(wire: bytes, address: str | None = ADDRESS, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> bytes:
    """A proper answer."""
    response = dns.message.make_response(dns.message.from_wire(wire))
    response.set_rcode(rcode)
    if address is not None:
        response.answer.append(dns.rrset.from_text(response.question[0].name, 60, "IN", "A", address))
    return response.to_wire()


def cut(wire: bytes) -> bytes:
    """An answer that did not fit."""
    response = dns.message.make_response(dns.message.from_wire(wire))
    response.flags |= dns.flags.TC
    return response.to_wire()


class Resolver(asyncio.DatagramProtocol):
    """A server that answers each datagram as it is told, and counts them."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.questions: list[bytes] = []
        self.asked = asyncio.Event()
        self.client = ("", 0)
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """The n-th question gets the n-th behaviour, the last one for ever."""
        behaviour = self.behaviours[min(len(self.questions), len(self.behaviours) - 1)]
        self.questions.append(data)
        self.client = addr
        self.asked.set()
        for wire in behaviour(data):
            self.transport.sendto(wire, addr)


@contextlib.asynccontextmanager
async def resolver(*behaviours: Behaviour) -> AsyncIterator[tuple[Resolver, tuple[str, int]]]:
    """Run one on a free port."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: Resolver(*behaviours), local_addr=("127.0.0.1", free_dns_port())
    )
    try:
        yield protocol, transport.get_extra_info("sockname")
    finally:
        transport.close()


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def ask(server: tuple[str, int], tries: int = 1, time_out_s: float = 0.3) -> Answer:
    """One question for the name."""
    return await query(link_with(), server, NAME, "A", time_out_s, tries)


async def failure_of(server: tuple[str, int], tries: int = 1) -> FailureKind:
    """How asking fails."""
    with pytest.raises(MeasurementFailedError) as caught:
        await ask(server, tries)
    assert caught.value.failure.operation is Operation.RESOLVE
    return caught.value.failure.kind


@pytest.fixture
def dnsmasq(tmp_path: Path) -> Iterator[Dnsmasq]:
    """A resolver that knows one name."""
    with Dnsmasq(tmp_path / "dnsmasq", names={NAME: ADDRESS}) as service:
        yield service


@pytest.fixture(autouse=True)
def no_getaddrinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own resolver would leave by any line: whoever calls it here fails."""

    def refuse(*arguments: Any, **_options: Any) -> None:
        assert arguments[0] in {"127.0.0.1", None}, f"getaddrinfo was called for {arguments[0]}"

    real = socket.getaddrinfo

    def guarded(*arguments: Any, **options: Any) -> Any:
        refuse(*arguments, **options)
        return real(*arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


async def measured(dnsmasq: Dnsmasq, **parameters: Any) -> tuple[DnsValues, Context]:
    """What the task says of a name."""
    context = Context(clock=SystemClock(), time_out_s=5, link=link_with((dnsmasq.host, dnsmasq.port)))
    return await TASK.measure(context, DnsParameters(**parameters)), context


async def test_a_name_is_resolved_and_timed(dnsmasq: Dnsmasq) -> None:
    """The address, the time, who answered, and the bytes that it cost."""
    values, context = await measured(dnsmasq, name=NAME)
    assert (values.answers, values.addresses, values.rcode) == (1, ADDRESS, "NOERROR")
    assert (values.resolver, values.used_tcp, values.tries) == ("127.0.0.1", False, 1)
    assert 0 < values.response_time_s < 2
    assert context.usage.sent_bytes == 12 + len(NAME) + 2 + 4
    assert context.usage.received_bytes == context.usage.sent_bytes + 16


async def test_no_such_record_is_a_value(dnsmasq: Dnsmasq) -> None:
    """The name exists and has no AAAA: answered, with no addresses."""
    values, _ = await measured(dnsmasq, name=NAME, record_type="AAAA")
    assert (values.answers, values.addresses, values.rcode) == (0, "", "NOERROR")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(f"none.{NAME}", FailureKind.NAME_NOT_FOUND), ("elsewhere.example", FailureKind.QUERY_REFUSED)],
)
async def test_what_the_resolver_does_not_know_is_a_failure(dnsmasq: Dnsmasq, name: str, kind: FailureKind) -> None:
    """NXDOMAIN and REFUSED each have their kind."""
    with pytest.raises(MeasurementFailedError) as caught:
        await measured(dnsmasq, name=name)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.RESOLVE, kind)


async def test_another_resolver_can_be_asked(dnsmasq: Dnsmasq) -> None:
    """The parameter wins over the link's own, which here nobody answers at."""
    context = Context(clock=SystemClock(), time_out_s=5, link=link_with(("127.0.0.1", free_port())))
    values = await TASK.measure(context, DnsParameters(name=NAME, resolver=f"127.0.0.1:{dnsmasq.port}"))
    assert values.answers == 1


@pytest.mark.parametrize("name", ["a b.test", "-.test\n", "x" * 300, "a..b", ""])
def test_a_bad_name_is_refused_before_it_runs(name: str) -> None:
    """Parameters are checked where they are read."""
    import msgspec  # noqa: PLC0415 - for this test only

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name}, DnsParameters)


def test_a_resolver_must_be_an_address() -> None:
    """A name would itself have to be resolved."""
    import msgspec  # noqa: PLC0415 - for this test only

    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"resolver": "dns.example"}, DnsParameters)


async def test_a_closed_port_is_refused_at_once() -> None:
    """ICMP says so; nobody waits for a time-out."""
    server = ("127.0.0.1", free_port(kind=socket.SOCK_DGRAM))
    with pytest.raises(MeasurementFailedError) as caught:
        await query(link_with(), server, NAME, "A", 60)
    assert caught.value.failure.kind is FailureKind.REFUSED


async def test_silence_times_out_after_all_tries() -> None:
    """Two tries, two questions with two ids, then timed_out."""
    async with resolver(lambda _wire: []) as (server, address):
        assert await failure_of(address, tries=2) is FailureKind.TIMED_OUT
    assert len(server.questions) == 2
    assert server.questions[0][:2] != server.questions[1][:2]


async def test_the_second_try_counts() -> None:
    """The first question was lost: answered by the second, timed from the second."""
    async with resolver(lambda _wire: [], lambda wire: [response_to(wire)]) as (_, address):
        answer = await ask(address, tries=2)
    assert (answer.addresses, answer.tries) == ((ADDRESS,), 2)
    assert answer.response_time_s < 0.3


async def test_forged_answers_are_passed_over() -> None:
    """A wrong id and a wrong question come first; the true answer is the one that counts."""

    def attack(wire: bytes) -> list[bytes]:
        wrong_id = bytes([wire[0] ^ 1]) + response_to(wire, "192.0.2.66")[1:]
        other = dns.message.make_query("evil.test", "A", id=int.from_bytes(wire[:2], "big")).to_wire()
        return [wrong_id, response_to(other, "192.0.2.66"), response_to(wire)]

    async with resolver(attack) as (_, address):
        answer = await ask(address)
    assert (answer.addresses, answer.strays) == ((ADDRESS,), 2)


async def test_what_came_instead_of_an_answer_is_told() -> None:
    """Silence but for answers to something else: timed_out, and the detail counts them."""

    def attack(wire: bytes) -> list[bytes]:
        return [bytes([wire[0] ^ 1]) + response_to(wire)[1:]] * 3

    async with resolver(attack) as (_, address):
        with pytest.raises(MeasurementFailedError) as caught:
            await ask(address)
    assert caught.value.failure.kind is FailureKind.TIMED_OUT
    assert "3 answers to something else came" in caught.value.failure.detail


async def test_an_answer_from_another_port_is_not_heard() -> None:
    """Only the asked server's address and port are listened to."""
    async with resolver(lambda _wire: []) as (server, address):
        asking = asyncio.create_task(failure_of(address))
        await server.asked.wait()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(response_to(server.questions[0], "192.0.2.66"), server.client)
        assert await asking is FailureKind.TIMED_OUT


async def test_only_rubbish_is_malformed() -> None:
    """Something answers there, but not DNS."""
    async with resolver(lambda _wire: [b"hello", b"\xff" * 40]) as (_, address):
        assert await failure_of(address) is FailureKind.MALFORMED


async def test_rubbish_before_the_answer_does_no_harm() -> None:
    """As with forged answers: keep waiting."""
    async with resolver(lambda wire: [b"", b"hello", response_to(wire)]) as (_, address):
        assert (await ask(address)).addresses == (ADDRESS,)


async def test_a_broken_server_is_a_server_failure() -> None:
    """SERVFAIL by the task, as the resolver of a name whose zone is dead says."""
    async with resolver(lambda wire: [response_to(wire, None, dns.rcode.SERVFAIL)]) as (_, address):
        context = Context(clock=SystemClock(), time_out_s=5, link=link_with(address))
        with pytest.raises(MeasurementFailedError) as caught:
            await TASK.measure(context, DnsParameters(name=NAME))
    assert caught.value.failure.kind is FailureKind.SERVER_FAILURE


@contextlib.asynccontextmanager
async def tcp_server(port: int, answer: Callable[[bytes], bytes]) -> AsyncIterator[None]:
    """The TCP side of a resolver; `answer` gives all the bytes that go back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        writer.write(answer(await reader.readexactly(length)))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    async with server:
        yield


def framed(wire: bytes) -> bytes:
    """A message as it goes over TCP."""
    return struct.pack("!H", len(wire)) + wire


async def test_a_cut_answer_is_asked_for_again_over_tcp() -> None:
    """TC over UDP, the whole answer over TCP, and the result says so."""
    async with (
        resolver(lambda wire: [cut(wire)]) as (_, address),
        tcp_server(address[1], lambda wire: framed(response_to(wire))),
    ):
        answer = await ask(address)
    assert (answer.addresses, answer.used_tcp) == ((ADDRESS,), True)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x00", FailureKind.CLOSED),
        (framed(b"rubbish"), FailureKind.MALFORMED),
        (b"\x01\x00only the beginning", FailureKind.CLOSED),
    ],
)
async def test_a_bad_answer_over_tcp_is_a_failure(content: bytes, kind: FailureKind) -> None:
    """Closed in the middle, or no DNS."""
    async with resolver(lambda wire: [cut(wire)]) as (_, address), tcp_server(address[1], lambda _wire: content):
        assert await failure_of(address) is kind


async def test_without_tcp_the_cut_answer_is_a_failure() -> None:
    """A resolver that cuts and then refuses TCP resolves nothing."""
    async with resolver(lambda wire: [cut(wire)]) as (_, address):
        assert await failure_of(address) is FailureKind.REFUSED


async def test_resolve_host_goes_to_the_next_resolver() -> None:
    """The first is closed, the second refuses, the third knows."""
    closed = ("127.0.0.1", free_port(kind=socket.SOCK_DGRAM))
    refuses = resolver(lambda wire: [response_to(wire, None, dns.rcode.REFUSED)])
    async with refuses as (_, second), resolver(lambda wire: [response_to(wire)]) as (_, third):
        assert await resolve_host(link_with(closed, second, third), NAME, 4, 5, Usage()) == ADDRESS


async def test_resolve_host_keeps_to_its_time() -> None:
    """With two silent resolvers 0.2 s are 0.2 s, and the failure is timed_out."""
    async with resolver(lambda _wire: []) as (_, first), resolver(lambda _wire: []) as (_, second):
        with pytest.raises(MeasurementFailedError) as caught:
            async with asyncio.timeout(2):
                await resolve_host(link_with(first, second), NAME, 4, 0.2, Usage())
    assert caught.value.failure.kind is FailureKind.TIMED_OUT


async def test_that_a_name_does_not_exist_is_final(dnsmasq: Dnsmasq) -> None:
    """The second resolver is not asked."""
    async with resolver(lambda wire: [response_to(wire)]) as (second, address):
        link = link_with((dnsmasq.host, dnsmasq.port), address)
        with pytest.raises(MeasurementFailedError) as caught:
            await resolve_host(link, f"none.{NAME}", 4, 5, Usage())
    assert caught.value.failure.kind is FailureKind.NAME_NOT_FOUND
    assert second.questions == []


async def test_a_name_without_such_an_address_has_no_answer(dnsmasq: Dnsmasq) -> None:
    """An IPv4-only peer asked for by IPv6."""
    with pytest.raises(MeasurementFailedError) as caught:
        await resolve_host(link_with((dnsmasq.host, dnsmasq.port)), NAME, 6, 5, Usage())
    assert caught.value.failure.kind is FailureKind.NO_ANSWER


async def test_an_address_needs_no_resolver() -> None:
    """It passes through, in its shortest form; one of the other version cannot be measured."""
    nobody = link_with()
    assert await resolve_host(nobody, "192.0.2.1", 4, 1, Usage()) == "192.0.2.1"
    assert await resolve_host(nobody, "2001:db8:0:0::1", 6, 1, Usage()) == "2001:db8::1"
    with pytest.raises(NotRunError) as caught:
        await resolve_host(nobody, "192.0.2.1", 6, 1, Usage())
    assert caught.value.not_run.reason is NotRunReason.BAD_PARAMETERS


async def test_what_is_no_name_is_not_asked() -> None:
    """An overlong label never leaves the probe."""
    with pytest.raises(NotRunError) as caught:
        await resolve_host(link_with(("127.0.0.1", 53)), "x" * 64, 4, 1, Usage())
    assert caught.value.not_run.reason is NotRunReason.BAD_PARAMETERS


async def test_a_dead_link_measures_nothing(dnsmasq: Dnsmasq) -> None:
    """The interface is absent: not run, and no other line is used instead."""
    link = link_with((dnsmasq.host, dnsmasq.port), interface="absent0")
    with pytest.raises(NotRunError) as caught:
        await resolve_host(link, NAME, 4, 1, Usage())
    assert caught.value.not_run.reason is NotRunReason.LINK_DOWN


async def test_a_resolver_of_the_other_ip_version_is_skipped(dnsmasq: Dnsmasq, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link without IPv6 does not ask its IPv6 resolver."""
    config = LinkConfig(
        name="wan",
        interface="lo",
        source_address="127.0.0.1",
        resolvers=("[2001:db8::53]:53", f"127.0.0.1:{dnsmasq.port}"),
    )
    link = Link(config)
    monkeypatch.setattr(link, "_address_v6", lambda: None)
    assert await resolve_host(link, NAME, 4, 5, Usage()) == ADDRESS


async def test_a_cancelled_question_leaves_nothing_behind() -> None:
    """No socket and no reader on the loop."""
    async with resolver(lambda _wire: []) as (server, address):
        before = open_files()
        asking = asyncio.create_task(ask(address, time_out_s=30))
        await server.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert open_files() == before
