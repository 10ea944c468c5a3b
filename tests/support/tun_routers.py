"""A path of routers that Linux cannot be made into: those that quote little, answer now and then, twice, or rubbish.

All of them stand behind one TUN device, in the test's own event loop: they read what the probe sends and answer, each
as it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fleet_controller.lab.namespaces import entered, run_ip
from probe.flows.echo.icmp import checksum

SOURCE, DESTINATION = "10.88.0.1", "10.89.0.1"
DEVICE = "wan0"
FULL_QUOTE_BYTES = 576
SHORT_QUOTE_BYTES = 28  # the IP header and 8 bytes: all that RFC 792 asks for
PORT_UNREACHABLE = (3, 3)
TIME_EXCEEDED = (11, 0)

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_IFF_TUN_NO_PI = 0x0001 | 0x1000
_IP = struct.Struct("!BBHHHBBH4s4s")


@dataclass(frozen=True, slots=True)
class Router:
    """One hop: who it says it is (in turn, when there are several), and how it answers; no address: not at all."""

    addresses: tuple[str, ...] = ()
    quote_bytes: int = FULL_QUOTE_BYTES
    delay_s: float = 0.0
    answers: tuple[int, int] = TIME_EXCEEDED
    answers_max: int = 1_000_000
    copies: int = 1
    rubbish: bytes | None = None


class TunRouters:
    """Routers in a row; the last one is the destination."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = routers
        self._asked = [0] * len(routers)
        self._turns = [itertools.cycle(router.addresses or ("",)) for router in routers]
        self._descriptor = -1
        self.packets: list[bytes] = []

    @contextlib.contextmanager
    def behind(self, name: str) -> Iterator[None]:
        """Stand behind the device of a namespace, for the length of a block within a running event loop."""
        with entered(name):
            self._descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(self._descriptor, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
        loop = asyncio.get_running_loop()
        try:
            run_ip("-n", name, "addr", "add", f"{SOURCE}/24", "dev", DEVICE)
            run_ip("-n", name, "link", "set", DEVICE, "up")
            run_ip("-n", name, "route", "add", "default", "dev", DEVICE)
            loop.add_reader(self._descriptor, self._on_packet)
            yield
        finally:
            loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    def _on_packet(self) -> None:
        packet = os.read(self._descriptor, 2048)
        if packet[0] >> 4 != 4:
            return
        self.packets.append(packet)
        index = min(packet[8], len(self._routers)) - 1
        router = self._routers[index]
        self._asked[index] += 1
        if not router.addresses or self._asked[index] > router.answers_max:
            return
        answer = _icmp(next(self._turns[index]), router, packet)
        for _ in range(router.copies):
            asyncio.get_running_loop().call_later(router.delay_s, self._write, answer)

    def _write(self, answer: bytes) -> None:
        with contextlib.suppress(OSError):  # the test is over
            os.write(self._descriptor, answer)


def _icmp(reporter: str, router: Router, packet: bytes) -> bytes:
    quoted = packet[: router.quote_bytes]
    if router.rubbish is not None:
        quoted = quoted[:SHORT_QUOTE_BYTES] + router.rubbish
    message = struct.pack("!BBHI", *router.answers, 0, 0) + quoted
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    source, destination = bytes(map(int, reporter.split("."))), packet[12:16]
    fields = (0x45, 0, _IP.size + len(message), 0, 0, 64, 1)
    header = _IP.pack(*fields, 0, source, destination)
    return _IP.pack(*fields, checksum(header), source, destination) + message


def destination(quote_bytes: int = FULL_QUOTE_BYTES, delay_s: float = 0.0) -> Router:
    """A host on which nobody listens."""
    return Router((DESTINATION,), quote_bytes, delay_s, answers=PORT_UNREACHABLE)
