"""A firewall on the way that refuses in the host's name, as REJECT of ip6tables does: "port unreachable".

It stands beside the kernel of a router that forwards nothing: it sees what comes in, and answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator

from fleet_controller.lab.namespaces import entered
from probe.flows.echo.icmp import checksum

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
# Where an IP header has its two addresses.
_SOURCE_AT = {4: slice(12, 16), 6: slice(8, 24)}
_DESTINATION_AT = {4: slice(16, 20), 6: slice(24, 40)}
_QUOTED_BYTES = 576


@contextlib.contextmanager
def rejecting(router: str, device: str, host: str) -> Iterator[None]:
    """Refuse all that comes in at a device of a namespace for this host, within a running event loop."""
    version = 6 if ":" in host else 4
    with entered(router):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETHERTYPE[version]))
        voice = socket.socket(_FAMILY[version], socket.SOCK_RAW, _PROTOCOL[version])
    loop = asyncio.get_running_loop()
    with wire, voice:
        wire.bind((device, _ETHERTYPE[version]))
        wire.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        loop.add_reader(wire.fileno(), _on_packet, wire, voice, version, host)
        try:
            yield
        finally:
            loop.remove_reader(wire.fileno())


def _on_packet(wire: socket.socket, voice: socket.socket, version: int, host: str) -> None:
    packet, (_, _, kind, *_) = wire.recvfrom(2048)
    destination = socket.inet_pton(_FAMILY[version], host)
    if kind != socket.PACKET_HOST or packet[_DESTINATION_AT[version]] != destination:
        return
    message = struct.pack("!BBHI", *_PORT_UNREACHABLE[version], 0, 0) + packet[:_QUOTED_BYTES]
    if version == 4:
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    voice.sendto(message, (socket.inet_ntop(_FAMILY[version], packet[_SOURCE_AT[version]]), 0))
