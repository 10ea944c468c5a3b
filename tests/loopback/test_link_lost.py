"""A link that goes away between two steps was lost, which is a result; only one that was down before them is not run.

Each test has a loopback of its own, which the servers themselves take away: at the moment of a question, or of an
answer that has just been sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
from clocks import Synchronised
from web_site import misbehaving

from fleet_controller.lab.namespaces import entered, namespace, run_ip
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns import query as dns_query
from probe.links import Link
from probe.messages import NotRunReason
from probe.tasks.base import Context, Usage
from probe.tasks.dns import TASK as DNS
from probe.tasks.dns import DnsParameters
from probe.tasks.web import TASK as WEB
from probe.tasks.web import WebParameters

pytestmark = pytest.mark.needs_root
HOST, NAME, PORT = "127.0.0.1", "page.test", 5300
LOST = ("resolve", "link_lost")
Fault = Callable[[str], None]


def switched_off(name: str) -> None:
    """The carrier is lost."""
    run_ip("-n", name, "link", "set", "lo", "down")


def withdrawn(name: str) -> None:
    """The modem dials anew: the interface stays up, and has no address."""
    run_ip("-n", name, "-4", "address", "flush", "dev", "lo")


FAULTS = pytest.mark.parametrize("fault", [switched_off, withdrawn])


@pytest.fixture
def own() -> Iterator[str]:
    """A namespace with nothing but a loopback."""
    with namespace("lost") as name, entered(name):
        yield name


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent resolver is given up sooner."""
    monkeypatch.setattr(dns_query, "TRY_TIME_OUT_S", 0.3)


def context(*resolvers: int) -> Context:
    """A link whose address is the interface's own, as a line's is."""
    config = LinkConfig(name="wan", interface="lo", resolvers=tuple(f"{HOST}:{port}" for port in resolvers or (PORT,)))
    return Context(clock=Synchronised(), time_out_s=30, link=Link(config))


class Resolver(asyncio.DatagramProtocol):
    """Answers, or is silent, and then strikes: once."""

    def __init__(self, strike: Callable[[], None], answer: Callable[[bytes], bytes] | None) -> None:
        self._strike: Callable[[], None] | None = strike
        self._answer = answer
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A question."""
        if self._answer is not None:
            self._transport.sendto(self._answer(data), addr)
        if self._strike is not None:
            self._strike()
            self._strike = None


@contextlib.asynccontextmanager
async def resolver(strike: Callable[[], None], answer: Callable[[bytes], bytes] | None = None) -> AsyncIterator[None]:
    """Run one."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Resolver(strike, answer), local_addr=(HOST, PORT)
    )
    try:
        yield
    finally:
        transport.close()


def home(question: bytes) -> bytes:
    """The page is here."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.answer.append(dns.rrset.from_text(response.question[0].name, 60, "IN", "A", HOST))
    return response.to_wire()


def cut(question: bytes) -> bytes:
    """It must be asked for again by TCP."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.flags |= dns.flags.TC
    return response.to_wire()


async def failure(task: Any, wanted: Context, parameters: Any) -> tuple[str, str]:
    """Which operation fails, and how."""
    with pytest.raises(MeasurementFailedError) as caught:
        async with asyncio.timeout(5):
            await task.measure(wanted, parameters)
    return caught.value.failure.operation.value, caught.value.failure.kind.value


@FAULTS
async def test_while_a_name_was_looked_up(own: str, fault: Fault) -> None:
    """The question went out and nothing came: the next resolver cannot be asked any more."""
    async with resolver(lambda: fault(own)):
        with pytest.raises(MeasurementFailedError) as caught:
            await dns_query.resolve_host(context().need_link(), NAME, 4, 5.0, Usage())
    assert (caught.value.failure.operation, caught.value.failure.kind) == LOST


async def test_while_the_last_resolver_was_waited_for(own: str) -> None:
    """The time is over before another could be asked: that it was the link is known all the same."""
    async with resolver(lambda: switched_off(own)):
        with pytest.raises(MeasurementFailedError) as caught:
            await dns_query.resolve_host(context().need_link(), NAME, 4, 0.2, Usage())
    assert (caught.value.failure.operation, caught.value.failure.kind) == LOST


@FAULTS
async def test_between_a_cut_answer_and_tcp(own: str, fault: Fault) -> None:
    """One resolution, whose first half was there."""
    async with resolver(lambda: fault(own), cut):
        assert await failure(DNS, context(), DnsParameters(name=NAME, time_out_s=0.3, tries=1)) == LOST


@FAULTS
async def test_between_two_tries_of_a_question(own: str, fault: Fault) -> None:
    """The first was sent, and its time ran out."""
    async with resolver(lambda: fault(own)):
        assert await failure(DNS, context(), DnsParameters(name=NAME, time_out_s=0.3)) == LOST


async def test_between_two_connections_for_a_question(own: str) -> None:
    """The first was accepted and not answered; it is the same step that fails."""

    async def strikes(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        withdrawn(own)
        await asyncio.sleep(0.5)  # its end could not be heard of any more

    async with misbehaving(strikes) as port:
        parameters = DnsParameters(name=NAME, transport="tcp", resolver=f"{HOST}:{port}", time_out_s=0.3)
        assert await failure(DNS, context(), parameters) == LOST


@FAULTS
async def test_between_a_page_s_name_and_its_server(own: str, fault: Fault) -> None:
    """The name was resolved, and nobody can be connected to."""
    async with resolver(lambda: fault(own), home):
        parameters = WebParameters(url=f"http://{NAME}/", allow_private=True)
        assert await failure(WEB, context(), parameters) == ("connect", "link_lost")


@FAULTS
@pytest.mark.parametrize(("host", "operation"), [(HOST, "connect"), (NAME, "resolve")])
async def test_between_a_page_and_the_one_it_leads_to(own: str, fault: Fault, host: str, operation: str) -> None:
    """The redirect came; the next page's first step is the one that fails."""

    async def redirects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://{host}/x\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        fault(own)

    async with misbehaving(redirects) as port:
        parameters = WebParameters(
            url=f"http://{HOST}:{port}/", follow_redirects=True, redirect_hosts=(HOST, NAME), allow_private=True
        )
        assert await failure(WEB, context(), parameters) == (operation, "link_lost")


@FAULTS
@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        (WEB, WebParameters(url=f"http://{NAME}/")),
        (WEB, WebParameters(url=f"http://{HOST}/")),
        (DNS, DnsParameters(name=NAME)),
        (DNS, DnsParameters(name=NAME, transport="tcp", resolver=HOST)),
    ],
    ids=["web_name", "web_address", "dns_udp", "dns_tcp"],
)
async def test_before_anything(own: str, fault: Fault, task: Any, parameters: Any) -> None:
    """Nothing was sent, so nothing is said of the line."""
    fault(own)
    with pytest.raises(NotRunError) as caught:
        await task.measure(context(), parameters)
    assert caught.value.not_run.reason is NotRunReason.LINK_DOWN
