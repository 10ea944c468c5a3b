"""What an upload sends: endless random bytes that the kernel has already."""

from __future__ import annotations

import os
import resource
import select
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from probe.flows.bulk import page_pipe
from probe.flows.bulk.page_pipe import PIPE_BYTES, PagePipe, RandomPages
from probe.flows.bulk.random_source import PERIOD_BYTES
from probe.flows.bulk.upload_source import Body, FileBody, UploadSource

MakeBody = Callable[[UploadSource], Body]
SOCKET_BYTES = 256 * 1024


def from_pipe(source: UploadSource) -> Body:
    """As a host gives it that has pipes to give."""
    body = source.body()
    assert isinstance(body, PagePipe)
    return body


def from_file(source: UploadSource) -> Body:
    """The other kind."""
    return FileBody(source.file(), source.length_bytes)


@pytest.fixture
def source() -> Iterator[UploadSource]:
    """Of one transfer."""
    with closing(UploadSource()) as one:
        yield one


@pytest.fixture(params=[from_pipe, from_file], ids=["pipe", "file"])
def make_body(request: pytest.FixtureRequest) -> MakeBody:
    """Both kinds: nobody may notice which one it is."""
    make: MakeBody = request.param
    return make


@contextmanager
def wire() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets over loopback, the first of which never blocks and holds little."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        near.settimeout(0)
        far, _ = server.accept()
        with far:
            yield near, far


def push(body: Body, sock: socket.socket, most_bytes: int) -> int:
    """One call, as a stream makes it; 0 when there is no room."""
    try:
        return body.send(sock.fileno(), min(body.fill(), most_bytes))
    except BlockingIOError:
        return 0


def pull(sock: socket.socket, length_bytes: int) -> bytes:
    """Exactly so many bytes."""
    return sock.recv(length_bytes, socket.MSG_WAITALL)


def carry(body: Body, near: socket.socket, far: socket.socket, length_bytes: int) -> bytes:
    """Send and receive so many bytes of one stream, in pieces that fit no page."""
    came = b""
    while len(came) < length_bytes:
        came += pull(far, push(body, near, 41_111))
    return came


def repeats_itself(content: bytes) -> bool:
    """Whether each byte stands `PERIOD_BYTES` further on again."""
    return content[PERIOD_BYTES:] == content[:-PERIOD_BYTES]


def open_files() -> int:
    """How many files this process has open, and the one that tells."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_there_is_no_end_to_it(source: UploadSource, make_body: MakeBody) -> None:
    """Three times what it holds is carried, in its order: no piece is missing, or sent twice, where it begins anew."""
    with closing(make_body(source)) as body, wire() as (near, far):
        content = carry(body, near, far, 3 * PIPE_BYTES)
    assert repeats_itself(content)


def test_it_does_not_compress(source: UploadSource, make_body: MakeBody) -> None:
    """What a line or a proxy compresses would be measured as faster than it is."""
    with closing(make_body(source)) as body, wire() as (near, far):
        content = carry(body, near, far, 2 * PIPE_BYTES)
    assert len(zlib.compress(content)) > len(content)


def test_streams_do_not_disturb_each_other(source: UploadSource, make_body: MakeBody) -> None:
    """Each goes on where it stopped, whatever the other has taken meanwhile: else parts would repeat too early."""
    with (
        closing(make_body(source)) as body,
        closing(make_body(source)) as other,
        wire() as (near, far),
        wire() as (other_near, other_far),
    ):
        content = b""
        for round_trip in range(30):
            content += carry(body, near, far, 50_000 + round_trip)
            carry(other, other_near, other_far, 70_001)
    assert repeats_itself(content)


def test_what_found_no_room_is_sent_later(source: UploadSource, make_body: MakeBody) -> None:
    """A full socket takes a part of what is offered, and then none; nothing is lost by the asking."""
    with closing(make_body(source)) as body, wire() as (near, far):
        sent_bytes = 0
        while (more_bytes := push(body, near, PIPE_BYTES)) > 0:
            sent_bytes += more_bytes
        sent_bytes += push(body, near, PIPE_BYTES)
        content = pull(far, sent_bytes) + carry(body, near, far, 2 * PIPE_BYTES)
    assert repeats_itself(content)


def test_a_reset_is_told(source: UploadSource, make_body: MakeBody) -> None:
    """The socket's own error reaches whoever sends."""
    with closing(make_body(source)) as body, wire() as (near, far):
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert select.select([near], [], [], 5.0)[0]  # the reset has come
        with pytest.raises(ConnectionError):
            body.send(near.fileno(), body.fill())


def test_two_transfers_differ() -> None:
    """What was sent once must not be known to whoever carries it the next time."""
    first_parts = []
    for _ in range(2):
        with closing(UploadSource()) as source, closing(source.body()) as body, wire() as (near, far):
            first_parts.append(carry(body, near, far, 1024))
    assert first_parts[0] != first_parts[1]


def test_nothing_is_left_open() -> None:
    """A probe transfers for years: no descriptor stays behind, whatever was made."""
    before = open_files()
    source = UploadSource()
    bodies = [source.body(), source.body(), from_file(source)]
    assert open_files() > before
    for body in bodies:
        body.close()
    source.close()
    assert open_files() == before


def test_without_pipes_it_comes_out_of_the_file(source: UploadSource) -> None:
    """A host that lets no more files be opened, or no more pipes, still uploads."""
    source.file()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with wire() as (near, far):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            body = source.body()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(body, FileBody)
        assert repeats_itself(carry(body, near, far, 2 * PIPE_BYTES))


@pytest.mark.parametrize("refused", ["its size", "its pages"])
def test_a_host_without_large_pipes_uploads_too(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """A user may have only so many of them; and what was begun is given back."""

    def refuse(*_: object) -> int:
        raise PermissionError

    before = open_files()
    if refused == "its size":
        monkeypatch.setattr(page_pipe, "fcntl", SimpleNamespace(fcntl=refuse, F_SETPIPE_SZ=0, F_GETPIPE_SZ=0))
    else:
        monkeypatch.setattr(RandomPages, "hand_on", refuse)
    with closing(UploadSource()) as source, closing(source.body()) as body, wire() as (near, far):
        assert isinstance(body, FileBody)
        assert repeats_itself(carry(body, near, far, 2 * PIPE_BYTES))
    assert open_files() == before


def test_a_file_that_could_not_be_prepared_is_made_anew() -> None:
    """The next stream must not send what has no frames; and nothing stays open."""
    before, tries = open_files(), iter([True, False])

    def prepare(file: int, length_bytes: int) -> None:
        del file, length_bytes
        if next(tries):
            raise MemoryError

    with closing(UploadSource(prepare)) as source:
        with pytest.raises(MemoryError):
            source.file()
        assert open_files() == before
        assert source.file() == source.file()
    assert open_files() == before


def test_what_a_dialect_writes_stands_in_the_file() -> None:
    """It is prepared once, when it is first asked for, over its whole length."""
    asked = []

    def prepare(file: int, length_bytes: int) -> None:
        asked.append(length_bytes)
        os.pwrite(file, b"frame", 7)

    with closing(UploadSource(prepare)) as source:
        assert asked == []
        assert os.pread(source.file(), 5, 7) == b"frame"
        assert os.fstat(source.file()).st_size == source.length_bytes
        assert asked == [source.length_bytes]
