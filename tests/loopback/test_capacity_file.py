"""A file is whole when its last byte is there, whatever became of single streams on the way."""

from __future__ import annotations

import ctypes
import itertools
import re
import socket
import struct
import threading

import pytest
from bulk_rig import BOTH, HOST, Scripted, order, order_of, run, stays

from probe.flows.bulk.estimate import StopReason
from probe.flows.bulk.stream import Direction
from probe.flows.bulk.transfer import transfer
from probe.peer.http_peer import HttpPeer

_SO_ATTACH_FILTER = 26
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0 bytes of whatever comes
FILE_BYTES = 2_400_000


def deaf_socket() -> socket.socket:
    """One that no packet reaches: it never hears that it was accepted."""
    sock = socket.socket()
    program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    return sock


@pytest.mark.parametrize("direction", BOTH)
async def test_a_stream_that_never_connects_is_not_waited_for(direction: Direction) -> None:
    """The second of four hears nothing: the others move it all, and there it ends, long before that one fails."""
    peer = HttpPeer()
    peer.start(HOST, 0)
    numbers = itertools.count()

    def open_socket() -> socket.socket:
        sock = deaf_socket() if next(numbers) == 1 else socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        return sock

    patient = {"connect_time_out_s": 8, "stall_time_out_s": 8, "max_duration_s": 9, "streams_max": 4}
    done = await transfer(order(peer.port, direction, file_bytes=400_000_001, **patient), open_socket)
    peer.stop()
    assert (done.stopped_by, done.transferred_bytes, done.streams_failed) == (StopReason.WHOLE_FILE, 400_000_001, 0)
    assert next(numbers) > 1
    assert done.transfer_s < 8


def answer(sock: socket.socket, request: bytes, object_bytes: int) -> None:
    """The part that it asks for, of an object that may be shorter."""
    asked = re.search(rb"Range: bytes=0-(\d+)", request)
    assert asked is not None
    body = bytes(min(int(asked[1]) + 1, object_bytes))
    sock.sendall(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


def serve_parts(sock: socket.socket, object_bytes: int, before_second: threading.Barrier | None = None) -> None:
    """One after the other; the second only when everybody has come to the barrier."""
    received, answered = b"", 0
    while part := sock.recv(65536):
        received += part
        while b"\r\n\r\n" in received:
            request, _, received = received.partition(b"\r\n\r\n")
            if answered == 1 and before_second is not None:
                before_second.wait(5)
            answer(sock, request, object_bytes)
            answered += 1


async def test_others_ask_for_what_a_refused_stream_had_asked_for() -> None:
    """A server that takes two connections of four and says 503 to the others: the file comes over those two."""
    refused = threading.Barrier(4)

    def script(sock: socket.socket, number: int) -> None:
        if number < 2:
            serve_parts(sock, 1 << 30, refused)
            return
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        try:
            stays(sock)
        finally:  # the refused resets
            refused.wait(5)

    with Scripted(script) as listening:
        done = await run(order(listening.port, file_bytes=FILE_BYTES, max_duration_s=10, streams_max=4))
    assert (done.stopped_by, done.transferred_bytes) == (StopReason.WHOLE_FILE, FILE_BYTES)
    assert (done.streams, done.streams_failed) == (2, 2)


async def test_a_part_that_comes_with_its_head_is_whole() -> None:
    """The server's object is shorter than a part, so that a few bytes are left to ask for at last."""
    with Scripted(lambda sock, _: serve_parts(sock, 33_000)) as listening:
        done = await run(order(listening.port, file_bytes=200_001, max_duration_s=10, streams_max=1))
    assert (done.stopped_by, done.transferred_bytes, done.streams_failed) == (StopReason.WHOLE_FILE, 200_001, 0)


async def test_an_upload_to_a_server_that_ends_each_connection_is_whole() -> None:
    """LibreSpeed's POSTs of 20 MiB end within what a stream has taken: the next one takes the rest."""
    lock, total = threading.Lock(), [0]

    def script(sock: socket.socket, _number: int) -> None:
        received = b""
        while b"\r\n\r\n" not in received:
            received += sock.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        rest_bytes = int(length[1]) - len(body)
        with lock:
            total[0] += len(body)
        while rest_bytes and (part := sock.recv(min(1 << 20, rest_bytes))):
            rest_bytes -= len(part)
            with lock:
                total[0] += len(part)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        stays(sock)

    file_bytes = 90_000_000
    with Scripted(script) as listening:
        wanted = order_of("librespeed", listening.port, "upload", file_bytes=file_bytes, max_duration_s=20)
        done = await run(wanted)
    assert (done.stopped_by, done.transferred_bytes, done.streams_failed) == (StopReason.WHOLE_FILE, file_bytes, 0)
    assert total[0] >= file_bytes
