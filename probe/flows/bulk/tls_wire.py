"""TLS under a bulk stream: OpenSSL on the stream's own socket, driven by the same epoll loop.

There is no zero-copy over TLS: a record (16 KiB at most, RFC 8446 section 5.1) is decrypted into a buffer, or encrypted
out of the memory map of the random source. The kernel counts the bytes of records; what those carried is known here.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import select
import socket
import ssl
import struct
import termios
from dataclasses import dataclass
from typing import Final, Protocol

from probe.clock import SystemClock
from probe.errors import MeasurementFailedError
from probe.flows.bulk.wire import ANOTHER_CONNECTION, TlsAgreement
from probe.flows.faults import kind_of
from probe.flows.http.tls_client import handshake_failed
from probe.flows.tcp_info import TcpInfo, read_tcp_info
from probe.messages import FailureKind, Operation

RECORD_BYTES: Final = 16 * 1024
# What one turn of the loop encrypts, so that one stream cannot keep the others waiting.
SEND_BYTES_MAX: Final = 1 << 20
# Header of 5 bytes and a tag of 16; TLS 1.3 hides the content type inside (RFC 8446 section 5.2), TLS 1.2 sends 8 bytes
# of an AES-GCM nonce (RFC 5288 section 3) and none of a ChaCha20 one (RFC 7905 section 2).
_OVERHEAD_TLS_1_3: Final = 5 + 16 + 1
_OVERHEAD_GCM: Final = 5 + 16 + 8
_OVERHEAD_CHACHA20: Final = 5 + 16
_READINGS_MAX: Final = 8
_TCP_CLOSE: Final = 7  # include/net/tcp_states.h; after an orderly end it would be CLOSE_WAIT


class TlsSide(Protocol):
    """One side's part in a handshake: the client's (`TlsContexts`), or a server's."""

    def context(self) -> ssl.SSLContext:
        """The context for the next connection."""

    def wrap(self, context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLSocket:
        """Lay TLS over a connected socket; the handshake is still to come."""

    def may_try_again(self, used: ssl.SSLContext, problem: FailureKind) -> bool:
        """Whether a connection whose handshake failed so with `used` may succeed when it is opened anew."""


@dataclass(slots=True)
class _Carried:
    """One direction: the records so far, what was in them, and the kernel's bytes that were no such record."""

    content_bytes: int = 0
    records: int = 0
    other_bytes: int = 0


class TlsWire:
    """TLS over a connected, non-blocking socket. Call `secure` until it answers 0.

    Attributes:
        tls: what the handshake agreed on.
    """

    def __init__(self, sock: socket.socket, side: TlsSide) -> None:
        self.tls: TlsAgreement | None = None
        self._sock, self._side = sock, side
        self._context = side.context()
        self._secured: ssl.SSLSocket | None = None
        self._source: mmap.mmap | None = None
        self._overhead_bytes = 0
        self._is_ended = False
        self._received, self._sent = _Carried(), _Carried()

    def secure(self) -> int:
        """Go on with the handshake; the epoll events to wait for, 0 once it is done, or `ANOTHER_CONNECTION`.

        Raises:
            MeasurementFailedError: (tls, certificate_invalid | handshake_failed | closed | reset | ...).
            NotRunError: a certificate's dates cannot be judged, because our clock is not synchronised (`clock`).
        """
        try:
            if self._secured is None:
                self._secured = self._wrap()
            self._secured.do_handshake()
        except ssl.SSLWantReadError:
            return select.EPOLLIN
        except ssl.SSLWantWriteError:
            return select.EPOLLOUT
        except (OSError, ValueError) as error:  # ValueError: a host that can stand in no certificate
            if self._side.may_try_again(self._context, kind_of(error)):
                return ANOTHER_CONNECTION
            raise handshake_failed(error, SystemClock()) from error
        self._begin(self._secured)
        return 0

    def receive(self, length_bytes: int) -> bytes:
        """Some bytes, at most so many; empty at the end of the connection."""
        secured = self._need()
        try:
            content = secured.recv(length_bytes)
        except ssl.SSLEOFError as error:
            self._check_end(error)
            return b""
        except ssl.SSLError as error:
            raise _in_words(error) from error
        if content:
            self._note_received(secured, len(content))
        return content

    def discard(self, buffer: memoryview, length_bytes: int) -> int:
        """Decrypt at most so many bytes and forget them; 0 at the end of the connection."""
        secured, taken_bytes = self._need(), 0
        # What is left of a record waits inside OpenSSL, where epoll does not see it: take whole ones.
        while not taken_bytes or length_bytes - taken_bytes >= RECORD_BYTES:
            try:
                part_bytes = secured.recv_into(buffer, min(length_bytes, RECORD_BYTES))
            except ssl.SSLEOFError as error:
                self._check_end(error)
                break
            except ssl.SSLError as error:
                if taken_bytes and isinstance(error, _WANTS):
                    break
                raise _in_words(error) from error
            if not part_bytes:
                break
            self._note_received(secured, part_bytes)
            taken_bytes += part_bytes
        return taken_bytes

    @property
    def pending_bytes(self) -> int:
        """What is decrypted and waits inside OpenSSL, where epoll does not see it."""
        return 0 if self.tls is None or self._secured is None else self._secured.pending()

    def send(self, content: bytes | memoryview) -> int:
        """Hand over what fits; what did not must be offered again as it was."""
        try:
            sent_bytes = self._need().send(content)
        except ssl.SSLEOFError as error:
            self._check_end(error)
            raise
        except ssl.SSLError as error:
            raise _in_words(error) from error
        self._sent.content_bytes += sent_bytes
        self._sent.records += -(-sent_bytes // RECORD_BYTES)
        return sent_bytes

    def send_source(self, source: int, offset_bytes: int, length_bytes: int) -> int:
        """Hand over what fits of a memory file's part, a record at a time."""
        if self._source is None:
            self._source = mmap.mmap(source, 0, prot=mmap.PROT_READ)
        sent_bytes, wanted_bytes = 0, min(length_bytes, SEND_BYTES_MAX)
        with memoryview(self._source) as view:
            while sent_bytes < wanted_bytes:
                begin = offset_bytes + sent_bytes
                record = view[begin : begin + min(RECORD_BYTES, length_bytes - sent_bytes)]
                try:
                    sent_bytes += self.send(record)
                except BlockingIOError:
                    if not sent_bytes:
                        raise
                    break
                finally:
                    record.release()
        return sent_bytes

    def received_bytes(self, info: TcpInfo) -> int:
        """What the records carried, and the same share of what the kernel has beyond those; 0 before the first one."""
        if not self._received.records:
            return 0  # the handshake's, and session tickets
        rest_bytes = (info.received_bytes or 0) - self._wire_bytes(self._received)
        return self._received.content_bytes + int(max(0, rest_bytes) * self._content_ratio(self._received))

    def acked_bytes(self, info: TcpInfo) -> int:
        """What the records carried, less the same share of what the other side has not confirmed yet."""
        if not self._sent.records:
            return 0
        rest_bytes = self._wire_bytes(self._sent) - (info.acked_bytes or 0)
        return self._sent.content_bytes - int(max(0, rest_bytes) * self._content_ratio(self._sent))

    def close(self) -> None:
        """Close OpenSSL's own handle of the socket, without a word to the other side."""
        if self._secured is not None:
            self._secured.close()
        if self._source is not None:
            self._source.close()

    def _wrap(self) -> ssl.SSLSocket:
        """OpenSSL gets a handle of its own: wrapping a socket takes it away from whoever has it."""
        handle = self._sock.dup()
        try:
            handle.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            return self._side.wrap(self._context, handle)
        except BaseException:
            handle.close()
            raise

    def _need(self) -> ssl.SSLSocket:
        if self._secured is None:
            raise RuntimeError("the handshake comes first")
        return self._secured

    def _check_end(self, error: ssl.SSLEOFError) -> None:
        """Python calls every broken connection an end. OpenSSL gives a reason for a real one, the kernel for others.

        Raises:
            ConnectionResetError: it was reset.
        """
        self._is_ended = self._is_ended or error.reason is not None
        state = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _TCP_CLOSE and not self._is_ended:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def _begin(self, secured: ssl.SSLSocket) -> None:
        """Note what was agreed, and what the handshake cost in bytes of TCP."""
        name, version, _ = secured.cipher() or ("", "", 0)
        self.tls = TlsAgreement(secured.version() or version, name)
        self._overhead_bytes = overhead_bytes(self.tls)
        info, waiting_bytes = self._settled(termios.TIOCOUTQ)
        self._sent.other_bytes = (info.acked_bytes or 0) + waiting_bytes
        self._note_others_received()

    def _note_received(self, secured: ssl.SSLSocket, content_bytes: int) -> None:
        self._received.content_bytes += content_bytes
        if not secured.pending():
            self._received.records += 1
            if self._received.records == 1:
                self._note_others_received()  # session tickets came between the handshake and the first content

    def _note_others_received(self) -> None:
        """Whatever has left the kernel so far and is no content was the handshake's, because nothing is half read."""
        info, waiting_bytes = self._settled(termios.FIONREAD)
        self._received.other_bytes = 0
        known_bytes = self._wire_bytes(self._received)
        self._received.other_bytes = max(0, (info.received_bytes or 0) - waiting_bytes - known_bytes)

    def _settled(self, request: int) -> tuple[TcpInfo, int]:
        """TCP_INFO and the length of a queue (tcp(7)) at one moment, though packets come and go."""
        info = read_tcp_info(self._sock)
        for _ in range(_READINGS_MAX):
            before = info
            (waiting_bytes,) = struct.unpack("i", fcntl.ioctl(self._sock, request, bytes(4)))
            info = read_tcp_info(self._sock)
            if (info.received_bytes, info.acked_bytes) == (before.received_bytes, before.acked_bytes):
                break
        return info, waiting_bytes

    def _wire_bytes(self, carried: _Carried) -> int:
        return carried.other_bytes + carried.content_bytes + carried.records * self._overhead_bytes

    def _content_ratio(self, carried: _Carried) -> float:
        """The share of content in the records so far, of which there is one at least."""
        return carried.content_bytes / (carried.content_bytes + carried.records * self._overhead_bytes)


_WANTS: Final = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def overhead_bytes(tls: TlsAgreement) -> int:
    """What a record of an AEAD cipher adds to its content."""
    if tls.version == "TLSv1.3":
        return _OVERHEAD_TLS_1_3
    return _OVERHEAD_CHACHA20 if "CHACHA20" in tls.cipher else _OVERHEAD_GCM


def _in_words(error: ssl.SSLError) -> Exception:
    """What an error after the handshake means: wait, the connection's end, or a fault of TLS itself."""
    if isinstance(error, _WANTS):
        return BlockingIOError()
    if isinstance(error, ssl.SSLZeroReturnError):
        return error
    # In TLS 1.3 a server's word on the handshake comes after it, as an alert (RFC 8446 section 4.4.2.4).
    kind = FailureKind.HANDSHAKE_FAILED if "ALERT" in (error.reason or "") else FailureKind.MALFORMED
    return MeasurementFailedError(Operation.TLS, kind, error.reason or str(error))
