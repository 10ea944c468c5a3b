"""Echoes of packets of a chosen size that nobody may cut into pieces: what `path_mtu` asks by."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
from collections.abc import Callable
from typing import Final

from probe.flows.echo.engine import ANCILLARY_BYTES, DATAGRAM_BYTES_MAX, ByteCount, EchoProtocol
from probe.flows.error_queue import NetworkError, ask_for_errors, next_error
from probe.flows.ipv6.path_mtu import Answer
from probe.flows.moments import now
from probe.links import IpVersion

# What every Ethernet carries, and what servers send. Larger frames are for local networks.
FULL_BYTES: Final = 1500
# Headers of IP and UDP; ICMP's is as long as UDP's.
HEADER_BYTES: Final = {4: 28, 6: 48}

_SIOCGIFMTU: Final = 0x8921  # linux/sockios.h
_IFNAMSIZ: Final = 16
_IP_MTU_DISCOVER: Final = 10  # linux/in.h
_IPV6_MTU_DISCOVER: Final = 23  # linux/in6.h
_PMTUDISC_PROBE: Final = 3  # linux/in.h: don't fragment, and do not go by what is known of the path
_TOO_BIG: Final = {4: (3, 4), 6: (2, 0)}
_READS_PER_WAKE: Final = 64
# The first may be told of an error that an earlier packet met.
_SEND_TRIES: Final = 3
# An ICMP header and what tells one echo request from another; STAMP needs less.
_QUOTED_BYTES_MIN: Final = 24


class SizedEchoes:
    """Asks for echoes of one size at a time over a connected, non-blocking socket.

    Args:
        sock: of the link; it is prepared here.
        version: of IP.
        protocol_of: gives the packets of a kind of echo whose UDP payload, or what follows the ICMP header, has so
            many bytes.
        tries: a lost packet must not pass for one too large.
        time_out_s: how long each try may take.
    """

    def __init__(
        self,
        sock: socket.socket,
        version: IpVersion,
        protocol_of: Callable[[int], EchoProtocol],
        usage: ByteCount,
        tries: int,
        time_out_s: float,
    ) -> None:
        self._sock = sock
        self._version = version
        self._protocol_of = protocol_of
        self._usage = usage
        self._tries = tries
        self._time_out_s = time_out_s
        self._sequence = 0
        self._size_bytes = 0
        self._earlier = 0
        self._prepare()

    def full_bytes(self, interface: str) -> int:
        """The largest packet that the interface sends, 1500 at most.

        Raises:
            OSError: there is no such interface.
        """
        answer = fcntl.ioctl(self._sock.fileno(), _SIOCGIFMTU, struct.pack("40s", interface.encode()))
        return min(int(struct.unpack_from("=i", answer, _IFNAMSIZ)[0]), FULL_BYTES)

    async def ask(self, size_bytes: int) -> Answer:
        """Send packets of this size until one is answered, whatever the answer."""
        protocol = self._protocol_of(size_bytes - HEADER_BYTES[self._version])
        self._size_bytes, self._earlier = size_bytes, self._sequence
        for _ in range(self._tries):
            self._sequence += 1
            answer = self._send(protocol) or await self._wait(protocol)
            if answer is not None:
                return answer
        return Answer(echoed=False)

    def _prepare(self) -> None:
        ask_for_errors(self._sock)
        if self._version == 4:  # noqa: PLR2004 - an IP version
            self._sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            self._sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DONTFRAG, 1)

    def _send(self, protocol: EchoProtocol) -> Answer | None:
        """Send one packet. An answer only when one to an earlier packet stood in its way."""
        packet = protocol.request(self._sequence, now())
        for _ in range(_SEND_TRIES):
            try:
                self._sock.send(packet)
            except OSError:
                # An error that an earlier packet met is told here instead of sending.
                answer = self._read_report(protocol)
                if answer is not None:
                    return answer
            else:
                self._usage.sent_bytes += len(packet)
                break
        return None

    async def _wait(self, protocol: EchoProtocol) -> Answer | None:
        """Wait for what becomes of the packet that was sent last."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()
        loop.add_reader(self._sock.fileno(), self._on_readable, protocol, answered)
        try:
            async with asyncio.timeout(self._time_out_s):
                return await answered
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self._sock.fileno())

    def _on_readable(self, protocol: EchoProtocol, answered: asyncio.Future[Answer]) -> None:
        answer = self._read_echo(protocol) or self._read_report(protocol)
        if answer is not None and not answered.done():
            answered.set_result(answer)

    def _read_echo(self, protocol: EchoProtocol) -> Answer | None:
        for _ in range(_READS_PER_WAKE):
            try:
                datagram = self._sock.recvmsg(DATAGRAM_BYTES_MAX, ANCILLARY_BYTES)[0]
            except OSError:
                return None
            self._usage.received_bytes += len(datagram)
            # An echo of an earlier try is as good; one of another size is not of this protocol's packets.
            if protocol.reply(datagram) is not None:
                return Answer(echoed=True)
        return None

    def _read_report(self, protocol: EchoProtocol) -> Answer | None:
        for _ in range(_READS_PER_WAKE):
            error = next_error(self._sock)
            if error is None:
                return None
            if _is_too_big(error) and error.info < self._size_bytes and self._is_about(protocol, error):
                return Answer(echoed=False, mtu_bytes=error.info)
        return None

    def _is_about(self, protocol: EchoProtocol, error: NetworkError) -> bool:
        """Whether a report is about this size. One that quotes too little to tell is taken for it."""
        if len(error.quoted) < _QUOTED_BYTES_MIN:
            return True
        sequence = protocol.quoted_sequence(error.quoted)
        return sequence is not None and sequence > self._earlier


def _is_too_big(error: NetworkError) -> bool:
    return error.icmp_version is not None and (error.icmp_type, error.icmp_code) == _TOO_BIG[error.icmp_version]
