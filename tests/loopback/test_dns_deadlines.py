"""Whatever a resolver does not do, a question is over in time, with the step at which it went quiet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
from authority import Authority
from clocks import Synchronised

from fleet_controller.lab.namespaces import entered, namespace
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.dns.query import resolve_host
from probe.links import Link
from probe.tasks.base import Context, Usage
from probe.tasks.dns import TASK, DnsParameters

HOST, NAME, ADDRESS = "127.0.0.1", "peer.test", "192.0.2.7"
# Linux sends the second SYN a second after the first (RFC 6298 section 2.1).
SECOND_SYN_S = 1.0
# A busy machine, and what is done between two steps.
SLACK_S = 0.5


def link_to(port: int) -> Link:
    """The loopback, with this resolver."""
    return Link(LinkConfig(name="wan", interface="lo", source_address=HOST, resolvers=(f"{HOST}:{port}",)))


@contextlib.contextmanager
def deaf() -> Iterator[socket.socket]:
    """A listening socket whose queue is full: the kernel throws away every SYN that comes."""
    with socket.socket() as listening, socket.socket() as filling:
        listening.bind((HOST, 0))
        listening.listen(0)
        filling.connect(listening.getsockname())
        yield listening


async def took_s(parameters: DnsParameters, said: tuple[str, str]) -> float:
    """How long a question takes that fails so."""
    began_s = time.monotonic()
    with pytest.raises(MeasurementFailedError) as caught:
        await TASK.measure(Context(clock=Synchronised(), time_out_s=30, link=link_to(53)), parameters)
    assert (caught.value.failure.operation, caught.value.failure.kind) == said
    return time.monotonic() - began_s


@pytest.mark.parametrize("transport", ["tcp", "tls", "https"])
async def test_a_resolver_that_drops_every_syn(transport: Any) -> None:
    """Two tries of one step each, and no more."""
    with deaf() as listening:
        port = listening.getsockname()[1]
        parameters = DnsParameters(name=NAME, transport=transport, resolver=f"{HOST}:{port}", time_out_s=0.8)
        assert await took_s(parameters, ("connect", "timed_out")) == pytest.approx(1.6, abs=SLACK_S)


@pytest.mark.parametrize("transport", ["tls", "https"])
async def test_a_resolver_that_accepts_and_says_nothing(transport: Any) -> None:
    """It has the handshake's time in each of two tries."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()
        port = listening.getsockname()[1]
        parameters = DnsParameters(name=NAME, transport=transport, resolver=f"{HOST}:{port}", time_out_s=0.8)
        assert await took_s(parameters, ("tls", "timed_out")) == pytest.approx(1.6, abs=SLACK_S)


def answer_to(question: bytes) -> bytes:
    """The address, framed for a stream."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.answer.append(dns.rrset.from_text(response.question[0].name, 60, "IN", "A", ADDRESS))
    wire = response.to_wire()
    return struct.pack("!H", len(wire)) + wire


def serve_late(listening: socket.socket, context: ssl.SSLContext) -> None:
    """Make room in the queue only after the first SYN was thrown away, then be a resolver that sends no tickets."""
    time.sleep(SECOND_SYN_S / 2)
    listening.settimeout(10)
    with contextlib.suppress(OSError):
        listening.accept()[0].close()
        connection = listening.accept()[0]
        connection.settimeout(10)
        with context.wrap_socket(connection, server_side=True) as secure:
            (length_bytes,) = struct.unpack("!H", secure.recv(2))
            secure.sendall(answer_to(secure.recv(length_bytes)))
            secure.recv(1)


@pytest.fixture
def without_timestamps() -> Iterator[None]:
    """Where TCP has none: then nobody can tell how long a repeated SYN took."""
    with namespace("syn") as name, entered(name):
        Path("/proc/sys/net/ipv4/tcp_timestamps").write_text("0", encoding="ascii")
        yield


@pytest.mark.needs_root
@pytest.mark.usefixtures("without_timestamps")
async def test_a_lost_syn_does_not_lengthen_the_other_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cost a second; a server without session tickets is not waited for as if that were the round trip."""
    authority = Authority.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("late", f"IP:{HOST}"))
    context.num_tickets = 0
    with deaf() as listening:
        serving = threading.Thread(target=serve_late, args=(listening, context), daemon=True)
        serving.start()
        port = listening.getsockname()[1]
        parameters = DnsParameters(name=NAME, transport="tls", resolver=f"{HOST}:{port}", tries=1)
        began_s = time.monotonic()
        values = await TASK.measure(Context(clock=Synchronised(), time_out_s=30, link=link_to(port)), parameters)
        passed_s = time.monotonic() - began_s
        await asyncio.to_thread(serving.join, 10)
    assert values.addresses == ADDRESS
    assert values.connect_s is not None
    assert values.connect_s == pytest.approx(SECOND_SYN_S, abs=SLACK_S)
    assert passed_s - values.connect_s < SLACK_S


class Cutting(asyncio.DatagramProtocol):
    """Answers every question after a while, without the answer: "ask over TCP"."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A question."""
        response = dns.message.make_response(dns.message.from_wire(data))
        response.flags |= dns.flags.TC
        asyncio.get_running_loop().call_later(self._after_s, self._transport.sendto, response.to_wire(), addr)


@contextlib.asynccontextmanager
async def cutting(after_s: float) -> AsyncIterator[socket.socket]:
    """Such a resolver; gives its TCP socket, which listens, and which the kernel answers SYNs for."""
    with socket.socket() as listening:
        listening.bind((HOST, 0))
        listening.listen()
        listening.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: Cutting(after_s), local_addr=listening.getsockname()
        )
        try:
            yield listening
        finally:
            transport.close()


@pytest.mark.parametrize("after_s", [0.0, 0.5])
async def test_resolving_over_tcp_is_within_the_same_deadline(after_s: float) -> None:
    """A cut answer late in the time leaves TCP what is left of it, not as much again."""
    async with cutting(after_s) as listening:
        began_s = time.monotonic()
        with pytest.raises(MeasurementFailedError) as caught:
            await resolve_host(link_to(listening.getsockname()[1]), NAME, 4, 0.8, Usage())
        passed_s = time.monotonic() - began_s
    assert (caught.value.failure.operation, caught.value.failure.kind) == ("resolve", "timed_out")
    assert passed_s == pytest.approx(0.8, abs=0.3)


async def test_what_resolving_costs_is_counted() -> None:
    """The question and the cut answer over UDP, and both over TCP, framed."""
    usage = Usage()
    async with cutting(0.0) as listening:
        resolving = asyncio.create_task(resolve_host(link_to(listening.getsockname()[1]), NAME, 4, 5.0, usage))
        loop = asyncio.get_running_loop()
        connection, _ = await asyncio.wait_for(loop.sock_accept(listening), 5)
        with connection:
            framed = await asyncio.wait_for(loop.sock_recv(connection, 4096), 5)
            answer = answer_to(framed[2:])
            await loop.sock_sendall(connection, answer)
            assert await resolving == ADDRESS
    # A cut answer is as long as its question.
    question_bytes = len(framed) - 2
    assert usage.sent_bytes == question_bytes + len(framed)
    assert usage.received_bytes == question_bytes + len(answer)
