"""How a bulk stream's bytes get on and off its socket: plainly, with the kernel doing the work, or through TLS.

A stream says what to transfer; its wire says how, and how many of the bytes that the kernel counted are payload.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final, Protocol

from probe.flows.tcp_info import TcpInfo

TLS_TIME_OUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class TlsTerms:
    """Who must be at the other end of a TLS connection, and who vouches for it.

    `ca_file` is a PEM file of authorities; absent, the system's are trusted. `handshake_time_out_s` is for one stream.
    """

    server_name: str
    ca_file: str | None = None
    handshake_time_out_s: float = TLS_TIME_OUT_S


@dataclass(frozen=True, slots=True)
class TlsAgreement:
    """What a handshake agreed on, in OpenSSL's words: `TLSv1.2` and `ECDHE-RSA-CHACHA20-POLY1305`."""

    version: str
    cipher: str


# What `secure` answers when this connection is of no use, but one opened anew may be.
ANOTHER_CONNECTION: Final = -1


class Wire(Protocol):
    """What a stream needs of its connection. `BlockingIOError` means: not now, wait for the socket.

    The other errors are `OSError`s of the socket; a wire with a layer of its own raises its failures as
    `MeasurementFailedError`.
    """

    @property
    def tls(self) -> TlsAgreement | None:
        """What the handshake agreed on; absent without one."""

    def secure(self) -> int:
        """Go on with the handshake; the epoll events to wait for, 0 once it is done, or `ANOTHER_CONNECTION`.

        Raises:
            MeasurementFailedError: (tls, ...) the handshake failed.
        """

    def receive(self, length_bytes: int) -> bytes:
        """Some bytes, at most so many; empty at the end of the connection."""

    def discard(self, buffer: memoryview, length_bytes: int) -> int:
        """Take at most so many bytes off the connection, their content lost; 0 at its end."""

    @property
    def pending_bytes(self) -> int:
        """What has left the socket and was not taken yet: epoll does not see it."""

    def send(self, content: bytes) -> int:
        """Hand over what fits; what does not must be offered again as it was."""

    def send_source(self, source: int, offset_bytes: int, length_bytes: int) -> int:
        """Hand over what fits of a memory file's part; what does not must be offered again as it was."""

    def received_bytes(self, info: TcpInfo) -> int:
        """How much has been received by the kernel, of what this wire carries (its own overhead left out)."""

    def acked_bytes(self, info: TcpInfo) -> int:
        """How much the other side has confirmed, of what this wire carries (its own overhead left out)."""

    def close(self) -> None:
        """Give back what the wire has beside the socket, which is the stream's."""


class PlainWire:
    """Plain TCP: the kernel drops what comes (`MSG_TRUNC`) and sends out of the memory file (`sendfile`)."""

    tls: Final = None
    pending_bytes: Final = 0

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def secure(self) -> int:
        """Nothing to do."""
        return 0

    def receive(self, length_bytes: int) -> bytes:
        """Some bytes, at most so many; empty at the end of the connection."""
        return self._sock.recv(length_bytes)

    def discard(self, buffer: memoryview, length_bytes: int) -> int:
        """Take at most so many bytes off the connection without copying them; 0 at its end."""
        return self._sock.recv_into(buffer, length_bytes, socket.MSG_TRUNC)

    def send(self, content: bytes) -> int:
        """Hand over what fits."""
        return self._sock.send(content)

    def send_source(self, source: int, offset_bytes: int, length_bytes: int) -> int:
        """Hand over what fits of a memory file's part, without copying it."""
        return os.sendfile(self._sock.fileno(), source, offset_bytes, length_bytes)

    def received_bytes(self, info: TcpInfo) -> int:
        """All that the kernel received in order."""
        return info.received_bytes or 0

    def acked_bytes(self, info: TcpInfo) -> int:
        """All that the other side has confirmed; the kernel counts the SYN as a byte (RFC 9293 section 3.4)."""
        return max(0, (info.acked_bytes or 0) - 1)

    def close(self) -> None:
        """Nothing to do."""
