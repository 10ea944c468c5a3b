"""Following a server's frames: bulk is counted and dropped, everything else read, whatever the parts it comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.bulk.ndt7_frames import EndedError, Frames, Told
from probe.flows.bulk.websocket import Opcode
from probe.flows.tcp_info import TcpInfo
from probe.messages import FailureKind

BUFFER = memoryview(bytearray(1 << 20))
ALL = 1 << 20


class PartsWire:
    """A wire on which bytes come in these parts, then nothing or the end."""

    tls = None
    pending_bytes = 0

    def __init__(self, parts: list[bytes], *, ends: bool = True) -> None:
        self._parts, self._ends = [part for part in parts if part], ends

    def secure(self) -> int:
        """Nothing to do."""
        return 0

    def receive(self, length_bytes: int) -> bytes:
        """Of the next part, at most so many."""
        if not self._parts:
            if self._ends:
                return b""
            raise BlockingIOError
        part = self._parts.pop(0)
        if len(part) > length_bytes:
            self._parts.insert(0, part[length_bytes:])
        return part[:length_bytes]

    def discard(self, buffer: memoryview, length_bytes: int) -> int:
        """The same, without content."""
        assert length_bytes <= len(buffer)
        return len(self.receive(length_bytes))

    def send(self, content: bytes) -> int:
        """Takes all."""
        return len(content)

    def send_source(self, source: int, offset_bytes: int, length_bytes: int) -> int:
        """Takes all."""
        del source, offset_bytes
        return length_bytes

    def received_bytes(self, info: TcpInfo) -> int:
        """Of no interest here."""
        del info
        return 0

    acked_bytes = received_bytes

    def close(self) -> None:
        """Nothing to do."""


def server_frame(opcode: Opcode, payload: bytes, *, is_final: bool = True) -> bytes:
    """As a server sends it."""
    first = bytes([(0x80 if is_final else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    return first + b"\x7e" + len(payload).to_bytes(2, "big") + payload


def follow(frames: Frames, limit_bytes: int = ALL) -> tuple[int, list[Told]]:
    """Step to the end; the bulk bytes, and what was told."""
    bulk_bytes = 0
    told: list[Told] = []
    for _ in range(100_000):
        try:
            came = frames.step(BUFFER, limit_bytes)
        except (EndedError, BlockingIOError):
            return bulk_bytes, told
        if isinstance(came, Told):
            told.append(came)
        else:
            bulk_bytes += came
    raise AssertionError("it never ends")


def cut(content: bytes, places: list[int]) -> list[bytes]:
    """`content` in parts."""
    edges = sorted({0, len(content), *(place % (len(content) + 1) for place in places)})
    return [content[begin:end] for begin, end in itertools.pairwise(edges)]


CONTENT = (
    server_frame(Opcode.BINARY, bytes(1000))
    + server_frame(Opcode.TEXT, b'{"a":1}')
    + server_frame(Opcode.BINARY, bytes(100), is_final=False)
    + server_frame(Opcode.PING, b"now")
    + server_frame(Opcode.CONTINUATION, bytes(200))
    + server_frame(Opcode.BINARY, b"")
    + server_frame(Opcode.TEXT, b"", is_final=False)
    + server_frame(Opcode.CONTINUATION, b"of a text")
    + server_frame(Opcode.CLOSE, b"\x03\xe8")
)
TOLD = [
    Told(Opcode.TEXT, b'{"a":1}'),
    Told(Opcode.PING, b"now"),
    Told(Opcode.TEXT, b""),
    Told(Opcode.CONTINUATION, b""),
    Told(Opcode.CLOSE, b"\x03\xe8"),
]


@given(st.lists(st.integers(0, 5000), max_size=40), st.integers(0, 300), st.integers(1, 700))
def test_frames_are_the_same_in_any_parts(places: list[int], ahead: int, limit_bytes: int) -> None:
    """Cut anywhere, some of it fed ahead, bulk in small bites: the counts are exact."""
    frames = Frames(PartsWire(cut(CONTENT[ahead:], places)), may_be_bulk=True)
    frames.feed(CONTENT[:ahead])
    assert follow(frames, limit_bytes) == (1300, TOLD)
    assert frames.overhead_bytes == len(CONTENT) - 1300


def test_nothing_there_is_no_end() -> None:
    """In the middle of a header, and between frames."""
    frames = Frames(PartsWire([CONTENT[:1]], ends=False), may_be_bulk=True)
    assert frames.step(BUFFER, ALL) == 0
    with pytest.raises(BlockingIOError):
        frames.step(BUFFER, ALL)


def test_a_text_that_is_too_long_is_not_kept() -> None:
    """More than 64 KiB of text is passed over."""
    text = b"\x81\x7f" + (200_000).to_bytes(8, "big") + bytes(200_000)
    frames = Frames(PartsWire([text]), may_be_bulk=True)
    assert follow(frames) == (0, [Told(Opcode.TEXT, b"")])
    assert frames.overhead_bytes == len(text)


@pytest.mark.parametrize(
    ("content", "may_be_bulk"),
    [
        pytest.param(b"\x82\x7f" + (1 << 25).to_bytes(8, "big"), True, id="longer than any ndt7 message"),
        pytest.param(b"\x82\x7f" + b"\xff" * 8, True, id="longer than anything"),
        pytest.param(server_frame(Opcode.BINARY, b"x"), False, id="data from the side that should take it"),
    ],
)
def test_frames_that_no_ndt7_server_sends(content: bytes, may_be_bulk: bool) -> None:
    """(transfer, malformed)."""
    with pytest.raises(MeasurementFailedError) as caught:
        follow(Frames(PartsWire([content]), may_be_bulk=may_be_bulk))
    assert caught.value.failure.kind is FailureKind.MALFORMED
