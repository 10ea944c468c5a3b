"""One stream's turn: it ends, however much there is."""

from __future__ import annotations

import itertools
import select
import socket
from collections.abc import Iterator

import pytest

from probe.flows.bulk.stream import Order, StreamState
from probe.flows.bulk.stream_download import DownloadStream

ORDER = Order(
    direction="download", address="127.0.0.1", port=1, host="p", path="/", max_duration_s=1.0, max_bytes=None,
    streams_max=1,
)  # fmt: skip


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
