"""Reading HTTP/1.1 request heads from anybody (RFC 9112): bounded in size, and nothing is guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# A probe's request is 200 bytes; browsers and load generators stay below this.
REQUEST_HEAD_BYTES_MAX: Final = 8 * 1024
HEAD_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"^([A-Z]{1,10}) (/[!-~]*) HTTP/1\.([01])$")
_HEADER: Final = re.compile(rb"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\x00]*)$")
# One part from a first byte on (RFC 9110 section 14.2); any other set of ranges may be ignored, and is.
_RANGE: Final = re.compile(r"^bytes=([0-9]{1,15})-([0-9]{1,15})$")
_DIGITS: Final = re.compile(r"^[0-9]{1,15}$")


class RefusedRequestError(Exception):
    """A request that gets an error status instead of an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; `path` is without its query. `wire_bytes` is the head's own length.

    `part` is the first and the last byte that a client asks for, where it does not want everything.
    """

    method: str
    path: str
    keeps_alive: bool
    expects_continue: bool
    content_bytes: int | None
    wire_bytes: int
    part: tuple[int, int] | None = None


def find_request(received: bytes) -> Request | None:
    """Read the head that `received` begins with; None while it is not complete.

    Raises:
        RefusedRequestError: 400 it is no request, 411 its body has no length, 431 its head is too long.
    """
    end = received.find(HEAD_END)
    if end > REQUEST_HEAD_BYTES_MAX or (end < 0 and len(received) > REQUEST_HEAD_BYTES_MAX):
        raise RefusedRequestError(431)
    if end < 0:
        return None
    first, *rest = received[:end].split(b"\r\n")
    line = _REQUEST_LINE.match(first)
    if line is None:
        raise RefusedRequestError(400)
    headers = _headers(rest)
    options = {option.strip() for option in headers.get("connection", "").lower().split(",")}
    return Request(
        method=line[1].decode("ascii"),
        path=line[2].decode("ascii").partition("?")[0],
        keeps_alive="close" not in options and (line[3] == b"1" or "keep-alive" in options),
        expects_continue=headers.get("expect", "").lower() == "100-continue",
        content_bytes=_content_bytes(headers),
        wire_bytes=end + len(HEAD_END),
        part=_part(headers.get("range", "")),
    )


def _part(text: str) -> tuple[int, int] | None:
    found = _RANGE.match(text)
    if found is None or int(found[1]) > int(found[2]):
        return None
    return int(found[1]), int(found[2])


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.match(line)
        if found is None:
            raise RefusedRequestError(400)
        name = found[1].decode("ascii").lower()
        if name == "content-length" and name in headers:
            raise RefusedRequestError(400)  # two lengths: RFC 9112 section 6.3
        headers[name] = found[2].decode("latin-1").strip()
    return headers


def _content_bytes(headers: dict[str, str]) -> int | None:
    if "transfer-encoding" in headers:
        raise RefusedRequestError(411)
    text = headers.get("content-length")
    if text is None:
        return None
    if _DIGITS.match(text) is None:
        raise RefusedRequestError(400)
    return int(text)
