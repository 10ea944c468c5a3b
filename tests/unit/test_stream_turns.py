"""One stream's turn: it ends, however much there is."""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from probe.flows.bulk.stream import Order, StreamState
from probe.flows.bulk.stream_download import DownloadStream
from probe.flows.bulk.stream_upload import UploadStream
from probe.flows.bulk.upload_source import UploadSource

ORDER = Order(
    direction="download", address="127.0.0.1", port=1, host="p", path="/", max_duration_s=1.0, max_bytes=None,
    streams_max=1,
)  # fmt: skip
NO_BUFFER = memoryview(b"")


class Endless(DownloadStream):
    """Decrypts more slowly than the line brings: there is always more, never as much as the last time."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, ORDER)
        self._left = itertools.count(1)
        self.moves = 0

    @property
    def _pending_bytes(self) -> int:
        return next(self._left)

    def _move(self, events: int, buffer: memoryview) -> None:
        del events, buffer
        self.moves += 1


class Swallowed:
    """A body that finds room for whatever is offered: the line takes it as fast as it comes."""

    def __init__(self) -> None:
        self.offers = 0

    def fill(self) -> int:
        """A megabyte."""
        return 1 << 20

    def send(self, sock: int, length_bytes: int) -> int:
        """All of it."""
        del sock
        self.offers += 1
        return length_bytes

    def close(self) -> None:
        """It holds nothing."""


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    """A socket that nobody uses."""
    with socket.socket() as one:
        yield one


def test_a_turn_ends_though_there_is_always_more(sock: socket.socket) -> None:
    """A stream that never runs dry is left after some passes: the others have their turn, and a stop is seen."""
    stream = Endless(sock)
    stream.state = StreamState.MOVING
    stream.serve(select.EPOLLIN, memoryview(bytearray(1)))
    assert 1 < stream.moves < 20
    assert stream.state is StreamState.MOVING


def uploading(sock: socket.socket, body: Swallowed, rest_bytes: int) -> UploadStream:
    """A stream in the middle of its POST."""
    stream = UploadStream(sock, replace(ORDER, direction="upload"), UploadSource())
    stream.state, stream._body, stream._rest_bytes = StreamState.MOVING, body, rest_bytes
    return stream


def test_a_look_ends_though_there_is_always_room(sock: socket.socket) -> None:
    """An upload that the line takes as fast as it comes is left after some megabytes."""
    body = Swallowed()
    uploading(sock, body, 1 << 40).flow(NO_BUFFER)
    assert 1 < body.offers < 20


def test_a_look_ends_with_the_post(sock: socket.socket) -> None:
    """Nothing is sent that the request did not announce."""
    body = Swallowed()
    stream = uploading(sock, body, (2 << 20) + 5)
    stream.flow(NO_BUFFER)
    assert (body.offers, stream._rest_bytes, stream.state) == (3, 0, StreamState.WAITING)
