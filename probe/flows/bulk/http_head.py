"""HTTP/1.1 heads (RFC 9112), just enough for a bulk transfer: write a request, read a response's head.

Everything here is bounded: the other side may be anything from the peer to a captive portal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from probe.errors import MeasurementFailedError
from probe.messages import FailureKind, Operation

# nginx and Apache take heads of 8 KiB; twice that is generous.
HEAD_BYTES_MAX: Final = 16 * 1024
HEAD_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"^HTTP/1\.([01]) ([1-5][0-9][0-9])(?: |$)")
_DIGITS: Final = re.compile(r"^[0-9]{1,18}$")
_OK: Final = range(200, 300)
_REDIRECT: Final = range(300, 400)
_UNAVAILABLE: Final = 503  # RFC 9110 section 15.6.4: how the peer says that it is busy
_TOO_MANY: Final = 429  # RFC 6585 section 4


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """The head of a response.

    `content_bytes` is absent where the server does not say how long the body is. `wire_bytes` is the head's own
    length.
    """

    status: int
    headers: dict[str, str]
    keeps_alive: bool
    content_bytes: int | None
    wire_bytes: int

    @property
    def is_interim(self) -> bool:
        """Whether another head follows (RFC 9110 section 15.2)."""
        return self.status < _OK.start


def request_head(
    method: str,
    host: str,
    path: str,
    *,
    agent: str,
    content_bytes: int | None = None,
    part_bytes: int | None = None,
    version: str = "1.1",
) -> bytes:
    """The head of a request; `part_bytes` asks for the beginning of the object only (RFC 9110 section 14.2).

    Raises:
        ValueError: `host` or `path` could end the line that it stands in.
    """
    if any(character.isspace() or not character.isprintable() for character in host + path):
        raise ValueError(f"{host!r} or {path!r} has characters that no request may have")
    lines = [
        f"{method} {path} HTTP/{version}",
        f"Host: {host}",
        f"User-Agent: {agent}",
        # A body that was compressed on the way would measure the compression.
        "Accept: */*",
        "Accept-Encoding: identity",
        "Cache-Control: no-store",
    ]
    if part_bytes is not None:
        lines.append(f"Range: bytes=0-{part_bytes - 1}")
    if content_bytes is not None:
        lines += ["Content-Type: application/octet-stream", f"Content-Length: {content_bytes}"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def host_header(host: str, port: int, *, tls: bool = False) -> str:
    """The Host header's value (RFC 9110 section 7.2), without the scheme's own port."""
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if tls else 80) else f"{name}:{port}"


def find_head(received: bytes) -> ResponseHead | None:
    """Read the head that `received` begins with; None while it is not complete.

    Raises:
        MeasurementFailedError: (request, malformed) it is not a response's head, or longer than 16 KiB.
    """
    end = received.find(HEAD_END, 0, HEAD_BYTES_MAX)
    if end < 0:
        _check_beginning(received)
        return None
    first, *rest = received[:end].split(b"\r\n")
    status_line = _STATUS_LINE.match(first)
    if status_line is None:
        raise _malformed(f"not an HTTP/1.1 answer: {first[:60]!r}")
    headers = dict(_header(line) for line in rest)
    return ResponseHead(
        status=int(status_line[2]),
        headers=headers,
        keeps_alive=_keeps_alive(status_line[1], headers.get("connection", "")),
        content_bytes=_content_bytes(headers),
        wire_bytes=end + len(HEAD_END),
    )


def check_status(head: ResponseHead) -> None:
    """Accept 2xx only.

    Raises:
        MeasurementFailedError: (request, redirected | peer_busy | http_status).
    """
    if head.status in _OK:
        return
    if head.status in _REDIRECT:
        target = head.headers.get("location", "nowhere")
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.REDIRECTED, f"{head.status} to {target}")
    if head.status in {_UNAVAILABLE, _TOO_MANY}:
        raise MeasurementFailedError(Operation.REQUEST, FailureKind.PEER_BUSY, f"the peer answered {head.status}")
    raise MeasurementFailedError(Operation.REQUEST, FailureKind.HTTP_STATUS, f"the peer answered {head.status}")


def _check_beginning(received: bytes) -> None:
    """Notice at once what will never become a head."""
    prefix = b"HTTP/1."
    if received[: len(prefix)] != prefix[: len(received)]:
        raise _malformed(f"not an HTTP/1.1 answer: {received[:60]!r}")
    if len(received) >= HEAD_BYTES_MAX:
        raise _malformed(f"a head of more than {HEAD_BYTES_MAX} bytes")


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not name or name != name.strip():
        raise _malformed(f"not a header: {line[:60]!r}")
    return name.decode("latin-1").lower(), value.strip().decode("latin-1")


def _keeps_alive(minor: bytes, connection: str) -> bool:
    """RFC 9112 section 9.3."""
    options = {option.strip().lower() for option in connection.split(",")}
    return "close" not in options and (minor == b"1" or "keep-alive" in options)


def _content_bytes(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None or "transfer-encoding" in headers:
        return None
    if _DIGITS.match(text) is None:
        raise _malformed(f"Content-Length {text[:30]!r}")
    return int(text)


def _malformed(detail: str) -> MeasurementFailedError:
    return MeasurementFailedError(Operation.REQUEST, FailureKind.MALFORMED, detail)
