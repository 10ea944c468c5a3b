"""A resolver on loopback that says what it is told to, question by question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


class Resolver(asyncio.DatagramProtocol):
    """Answers the n-th question for a name with the n-th word: an address, NXDOMAIN, or nothing; the last for ever.

    Its words are for questions of type A; those for "AAAA <name>" are for the other ones, and NXDOMAIN without any.
    """

    def __init__(self, words: dict[str, list[str | None]], wait_s: float = 0.0) -> None:
        self.words = words
        self.wait_s = wait_s
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Asyncio hands over the socket."""
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """A question."""
        response = dns.message.make_response(dns.message.from_wire(data))
        name, kind = response.question[0].name, dns.rdatatype.to_text(response.question[0].rdtype)
        asked = name.to_text(omit_final_dot=True)
        words = self.words[asked] if kind == "A" else self.words.get(f"{kind} {asked}", ["NXDOMAIN"])
        word = words.pop(0) if len(words) > 1 else words[0]
        if word == "NXDOMAIN":
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif word is not None:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", kind, word))
        if word is not None:
            asyncio.get_running_loop().call_later(self.wait_s, self._answer, response.to_wire(), addr)

    def _answer(self, wire: bytes, addr: tuple[str, int]) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(wire, addr)


@asynccontextmanager
async def resolver(**words: list[str | None]) -> AsyncIterator[tuple[str, ...]]:
    """Serves names under `test`: what the links of a probe on loopback have for resolvers."""
    async with serving({f"{name}.test": said for name, said in words.items()}) as where:
        yield (where,)


@asynccontextmanager
async def serving(
    words: dict[str, list[str | None]], host: str = "127.0.0.1", wait_s: float = 0.0
) -> AsyncIterator[str]:
    """Serves these words at an address, each answer `wait_s` after its question; gives `address:port`."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: Resolver(words, wait_s), local_addr=(host, 0))
    try:
        yield f"{host}:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.close()
