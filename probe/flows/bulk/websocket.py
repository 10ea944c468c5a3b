"""WebSocket (RFC 6455), just what ndt7 needs of a client: the opening handshake, frame headers, control frames."""

from __future__ import annotations

import base64
import hashlib
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import ResponseHead, check_status
from probe.messages import FailureKind, Operation

KEY_BYTES: Final = 16
SWITCHING: Final = 101
# Two bytes, eight more for a long payload's length; a server masks nothing (section 5.1).
HEADER_BYTES_MAX: Final = 10
CONTROL_BYTES_MAX: Final = 125
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_LENGTH: Final = 0x7F
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127


class Opcode(IntEnum):
    """What a frame is (section 5.2)."""

    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10

    @property
    def is_control(self) -> bool:
        """Whether it may stand between the fragments of a message."""
        return self >= Opcode.CLOSE


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of a frame from a server."""

    opcode: Opcode
    is_final: bool
    payload_bytes: int
    wire_bytes: int


def upgrade_request(host: str, path: str, *, agent: str, key: str, protocol: str) -> bytes:
    """The opening handshake (section 4.1). `key` is `new_key`'s.

    Raises:
        ValueError: `host` or `path` could end the line that it stands in.
    """
    if any(character.isspace() or not character.isprintable() for character in host + path):
        raise ValueError(f"{host!r} or {path!r} has characters that no request may have")
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        f"User-Agent: {agent}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Protocol: {protocol}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def new_key(random_bytes: bytes) -> str:
    """The key of a handshake, from 16 random bytes."""
    return base64.b64encode(random_bytes).decode("ascii")


def check_upgrade(head: ResponseHead, *, key: str, protocol: str) -> None:
    """Accept the answer to `upgrade_request` only if it is one (section 4.1, the client's list of checks).

    Raises:
        MeasurementFailedError: (request, ...) another status than 101; (request, malformed) not the answer to this key,
            or not in this protocol.
    """
    if head.status != SWITCHING:
        check_status(head)
        raise _malformed(f"the peer answered {head.status} to a WebSocket handshake")
    headers = head.headers
    if headers.get("upgrade", "").lower() != "websocket" or "upgrade" not in _words(headers.get("connection", "")):
        raise _malformed("the peer switches to something that is no WebSocket")
    if headers.get("sec-websocket-accept") != accept_of(key):
        raise _malformed("the answer is not to our WebSocket key")
    if headers.get("sec-websocket-protocol") != protocol:
        raise _malformed(f"the peer speaks {headers.get('sec-websocket-protocol')!r}, not {protocol!r}")
    if headers.get("sec-websocket-extensions"):
        raise _malformed("the peer uses WebSocket extensions that nobody asked for")


def accept_of(key: str) -> str:
    """What a server makes of a key (section 4.2.2)."""
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def header_bytes(received: bytes) -> int:
    """How long the header is that `received` begins with, as far as that can be said yet: at least 2."""
    if len(received) < 2:  # noqa: PLR2004 - the header's fixed part
        return 2
    return {_LENGTH_16: 4, _LENGTH_64: 10}.get(received[1] & _LENGTH, 2)


def parse_header(raw: bytes) -> FrameHeader:
    """Read a whole frame header from a server.

    Raises:
        MeasurementFailedError: (transfer, malformed) no server may send this.
    """
    try:
        opcode = Opcode(raw[0] & 0x0F)
    except ValueError:
        raise _broken(f"frame of an unknown kind: {raw.hex()}") from None
    if raw[0] & _RESERVED or raw[1] & _MASKED:
        raise _broken(f"frame with reserved bits or a mask: {raw.hex()}")
    length_bytes = raw[1] & _LENGTH
    if length_bytes == _LENGTH_16:
        (length_bytes,) = struct.unpack_from("!H", raw, 2)
    elif length_bytes == _LENGTH_64:
        (length_bytes,) = struct.unpack_from("!Q", raw, 2)
    is_final = bool(raw[0] & _FIN)
    if opcode.is_control and (not is_final or length_bytes > CONTROL_BYTES_MAX):
        raise _broken(f"control frame in parts or over 125 bytes: {raw.hex()}")
    return FrameHeader(opcode, is_final, length_bytes, len(raw))


def client_header(opcode: Opcode, payload_bytes: int) -> bytes:
    """The header of a frame that we send, in one piece, masked with 0.

    A client must mask (section 5.3). The mask keeps a web page from choosing what bytes a proxy sees (section 10.3);
    our payload is random and nobody chose it. Masking with 0 leaves it as it is, so the kernel can send it from a file.
    """
    if payload_bytes < _LENGTH_16:
        length = bytes([_MASKED | payload_bytes])
    elif payload_bytes < 1 << 16:
        length = struct.pack("!BH", _MASKED | _LENGTH_16, payload_bytes)
    else:
        length = struct.pack("!BQ", _MASKED | _LENGTH_64, payload_bytes)
    return bytes([_FIN | opcode]) + length + bytes(4)


def client_frame(opcode: Opcode, payload: bytes) -> bytes:
    """A short frame that we send."""
    return client_header(opcode, len(payload)) + payload


def _words(text: str) -> set[str]:
    return {word.strip().lower() for word in text.split(",")}


def _malformed(detail: str) -> MeasurementFailedError:
    return MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)


def _broken(detail: str) -> MeasurementFailedError:
    return MeasurementFailedError(Operation.TRANSFER, FailureKind.MALFORMED, detail)
