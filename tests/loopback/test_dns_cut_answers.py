"""An answer that is cut short over a stream is no answer: what it leaves out is not "no such record"."""

from __future__ import annotations

import asyncio
import re
import struct
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rrset
import pytest
from authority import Authority
from clocks import Synchronised
from web_site import Behaviour, misbehaving

from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.dns.query import resolve_host
from probe.links import Link
from probe.tasks.base import Context, Usage
from probe.tasks.dns import TASK, DnsParameters

HOST, NAME, ADDRESS = "127.0.0.1", "peer.test", "192.0.2.7"
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def link_to(*ports: int) -> Link:
    """The loopback, with these resolvers."""
    return Link(
        LinkConfig(name="wan", interface="lo", source_address=HOST, resolvers=tuple(f"{HOST}:{port}" for port in ports))
    )


def cut(question: bytes) -> bytes:
    """What a forwarder hands on that got it so by UDP."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.flags |= dns.flags.TC
    return response.to_wire()


def whole(question: bytes) -> bytes:
    """The address."""
    response = dns.message.make_response(dns.message.from_wire(question))
    response.answer.append(dns.rrset.from_text(response.question[0].name, 60, "IN", "A", ADDRESS))
    return response.to_wire()


def over_a_stream(answer: Any) -> Behaviour:
    """One answer, framed."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        wire = answer(await reader.readexactly(length))
        writer.write(struct.pack("!H", len(wire)) + wire)
        await writer.drain()

    return behave


async def over_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One cut answer to a POST."""
    length = _LENGTH.search(await reader.readuntil(b"\r\n\r\n"))
    assert length is not None
    wire = cut(await reader.readexactly(int(length[1])))
    writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(wire)}\r\n\r\n".encode() + wire)
    await writer.drain()


class Cuts(asyncio.DatagramProtocol):
    """The same resolver by UDP, where it is as it should be."""

    transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Too long for UDP."""
        self.transport.sendto(cut(data), addr)


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Of an authority that is trusted here."""
    authority = Authority.make(tmp_path / "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    return authority.issue("resolver", f"IP:{HOST}")


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls", "https"])
async def test_a_cut_answer_over_a_stream_is_malformed(certificate: tuple[Path, Path], transport: Any) -> None:
    """RFC 2181 section 9; by UDP it was right to be cut, and was asked for again by TCP."""
    behaviour = over_http if transport == "https" else over_a_stream(cut)
    tls = certificate if transport in {"tls", "https"} else None
    async with misbehaving(behaviour, tls, alpn="http/1.1" if transport == "https" else "dot") as port:
        by_udp, _ = await asyncio.get_running_loop().create_datagram_endpoint(Cuts, local_addr=(HOST, port))
        parameters = DnsParameters(name=NAME, transport=transport, resolver=f"{HOST}:{port}", tries=1)
        context = Context(clock=Synchronised(), time_out_s=30, link=link_to(port))
        try:
            with pytest.raises(MeasurementFailedError) as caught:
                await TASK.measure(context, parameters)
        finally:
            by_udp.close()
    assert (caught.value.failure.operation, caught.value.failure.kind) == ("resolve", "malformed")
    assert "cut short over a stream" in caught.value.failure.detail


async def test_the_next_resolver_is_asked_after_a_cut_answer() -> None:
    """That the first left all records out is not final."""
    loop = asyncio.get_running_loop()
    async with misbehaving(over_a_stream(cut)) as bad, misbehaving(over_a_stream(whole)) as good:
        by_udp = [(await loop.create_datagram_endpoint(Cuts, local_addr=(HOST, port)))[0] for port in (bad, good)]
        try:
            assert await resolve_host(link_to(bad, good), NAME, 4, 5, Usage()) == ADDRESS
        finally:
            for transport in by_udp:
                transport.close()
