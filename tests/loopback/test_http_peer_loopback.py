"""The peer stands on the Internet: what it serves, and where it says no."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from probe import __version__
from probe.flows.echo.stamp_packets import PACKET_BYTES, ReflectorPacket, SenderPacket
from probe.peer.http_connection import Limits
from probe.peer.http_peer import HttpPeer, client_of
from probe.peer.serve import PeerSettings, PortError, serve

MIB = 1 << 20


@pytest.fixture
def start() -> Iterator[Callable[..., HttpPeer]]:
    """Start a peer with these limits; all are stopped in the end."""
    with contextlib.ExitStack() as stack:

        def begin(**limits: Any) -> HttpPeer:
            peer = HttpPeer(Limits(**limits), "1.2.3")
            peer.start("127.0.0.1", 0)
            stack.callback(peer.stop)
            return peer

        yield begin


def connect(peer: HttpPeer) -> socket.socket:
    """A client that waits 5 s at most."""
    return socket.create_connection(("127.0.0.1", peer.port), timeout=5)


def say(peer: HttpPeer, *parts: bytes) -> bytes:
    """Send, and read until the peer closes."""
    with connect(peer) as sock:
        for part in parts:
            sock.sendall(part)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end, however it ends."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := sock.recv(65536):
            received += part
    return received


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait 5 s at most for what a thread of the peer does."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 5 s"
        time.sleep(0.005)


def test_info_tells_version_and_limits(start: Callable[..., HttpPeer]) -> None:
    """As JSON, on a connection that goes on."""
    peer = start(connections=7)
    with httpx.Client(trust_env=False) as client:
        said = [client.get(f"http://127.0.0.1:{peer.port}/info").json() for _ in range(2)]
    assert said[0] == said[1]
    assert said[0]["version"] == "1.2.3"
    assert said[0]["limits"]["connections"] == 7
    assert peer.counters.accepted == 1


def test_an_upload_is_swallowed_and_counted(start: Callable[..., HttpPeer]) -> None:
    """204 after the whole body, and the connection serves the next one."""
    peer = start()
    with httpx.Client(trust_env=False) as client:
        for _ in range(2):
            answer = client.post(f"http://127.0.0.1:{peer.port}/upload", content=bytes(3 * MIB))
            assert answer.status_code == 204
    wait_until(lambda: peer.connections == 0)
    assert (peer.counters.accepted, peer.counters.received_bytes) == (1, 6 * MIB)


def test_a_client_that_asks_first_is_told_to_go_on(start: Callable[..., HttpPeer]) -> None:
    """`Expect: 100-continue`, as curl sends for a large body."""
    peer = start()
    with connect(peer) as sock:
        sock.sendall(b"POST /upload HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"body")
        assert sock.recv(100).startswith(b"HTTP/1.1 204")


def test_a_download_is_as_long_as_it_says_and_random(start: Callable[..., HttpPeer]) -> None:
    """Exactly a connection's share, nothing that compresses, and the sender's algorithm named."""
    peer = start(bytes_per_connection=3 * MIB)
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"http://127.0.0.1:{peer.port}/download?x=1")
    assert len(answer.content) == 3 * MIB
    assert len(set(answer.content[:4096])) > 200
    assert answer.headers["x-congestion-control"] in {"cubic", "reno", "bbr"}
    wait_until(lambda: peer.connections == 0)
    assert peer.counters.sent_bytes == 3 * MIB


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /../info HTTP/1.1\r\n\r\n", 404),
        (b"POST /download HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"DELETE /upload HTTP/1.1\r\n\r\n", 405),
        (b"POST /upload HTTP/1.1\r\n\r\n", 411),
        (b"POST /upload HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /upload HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /info HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
    ],
)
def test_what_it_does_not_serve_gets_its_status(start: Callable[..., HttpPeer], wire: bytes, status: int) -> None:
    """One line of refusal, then the connection ends."""
    assert say(start(), wire).startswith(f"HTTP/1.1 {status} ".encode())


def test_a_refused_body_does_not_reset_the_refusal_away(start: Callable[..., HttpPeer]) -> None:
    """A megabyte follows the head that was refused; the client still reads why."""
    answer = say(start(), b"POST /upload HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", bytes(MIB))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_slow_head_is_not_waited_for(start: Callable[..., HttpPeer]) -> None:
    """Slowloris: a byte now and then does not prolong the time for a head."""
    peer = start(head_s=0.3)
    began = time.monotonic()
    with connect(peer) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(b"GET /info HTTP/1.1\r\n")
        sock.settimeout(0.05)
        while time.monotonic() - began < 4:
            sock.sendall(b"X")
            with contextlib.suppress(TimeoutError):
                if not sock.recv(10):
                    break
    assert time.monotonic() - began < 3
    wait_until(lambda: peer.connections == 0)


def test_an_idle_connection_ends(start: Callable[..., HttpPeer]) -> None:
    """Connected and silent."""
    peer = start(head_s=0.2)
    assert say(peer) == b""


@pytest.mark.parametrize("limits", [{"connections": 2}, {"connections_per_address": 2}])
def test_the_connection_too_many_is_told_busy(start: Callable[..., HttpPeer], limits: dict[str, int]) -> None:
    """503 at once for the third; when one goes, there is room again."""
    peer = start(**limits)
    with connect(peer), connect(peer) as second:
        wait_until(lambda: peer.connections == 2)
        assert say(peer).startswith(b"HTTP/1.1 503 ")
        assert peer.counters.refused == 1
        second.close()
        wait_until(lambda: peer.connections == 1)
        with connect(peer) as third:
            third.sendall(b"GET /info HTTP/1.1\r\n\r\n")
            assert third.recv(100).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_vanishes_frees_its_place(start: Callable[..., HttpPeer], how: str) -> None:
    """In the middle of a download, with or without a word."""
    peer = start()
    with connect(peer) as sock:
        sock.sendall(b"GET /download HTTP/1.1\r\n\r\n")
        assert sock.recv(65536)
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: peer.connections == 0)


def test_a_client_that_stands_still_is_let_go(start: Callable[..., HttpPeer]) -> None:
    """It asked for a download and reads nothing; it announced an upload and sends nothing."""
    peer = start(stall_s=0.2)
    with connect(peer) as reader, connect(peer) as writer:
        reader.sendall(b"GET /download HTTP/1.1\r\n\r\n")
        writer.sendall(b"POST /upload HTTP/1.1\r\nContent-Length: 1000\r\n\r\nbegin")
        wait_until(lambda: peer.counters.accepted == 2 and peer.connections == 0)


def test_a_connections_time_is_over_whatever_it_does(start: Callable[..., HttpPeer]) -> None:
    """A download at full speed ends after its seconds."""
    peer = start(seconds_per_connection=0.3, bytes_per_connection=1 << 50)
    began = time.monotonic()
    with connect(peer) as sock:
        sock.sendall(b"GET /download HTTP/1.1\r\n\r\n")
        buffer = bytearray(MIB)
        with contextlib.suppress(ConnectionError):
            while sock.recv_into(buffer, MIB, socket.MSG_TRUNC):
                assert time.monotonic() - began < 4
    wait_until(lambda: peer.connections == 0)


def test_it_stops_at_once_with_clients_at_work(start: Callable[..., HttpPeer]) -> None:
    """Under a second, no thread left, the port free again; stopping twice is harmless."""
    peer = start()
    with connect(peer) as reader, connect(peer):
        reader.sendall(b"GET /download HTTP/1.1\r\n\r\n")
        wait_until(lambda: peer.connections == 2)
        began = time.monotonic()
        peer.stop()
        assert time.monotonic() - began < 1
        assert not [thread for thread in threading.enumerate() if thread.name == "http-peer"]
    peer.stop()
    again = HttpPeer()
    again.start("127.0.0.1", peer.port)
    again.stop()


def test_a_port_in_use_is_said() -> None:
    """Two peers on one port: the second does not start, and leaves nothing behind."""
    first, second = HttpPeer(), HttpPeer()
    first.start("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        second.start("127.0.0.1", first.port)
    second.stop()
    first.stop()


@pytest.mark.parametrize(
    ("address", "client"),
    [("192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::/64"), ("fe80::1%eth0", "fe80::/64")],
)
def test_an_ipv6_client_is_its_network(address: str, client: str) -> None:
    """Else one client would have 2^64 shares."""
    assert client_of(address) == client


async def test_serve_answers_both_protocols_until_cancelled() -> None:
    """HTTP and STAMP on the ports that `ready` hears, over IPv4 and IPv6; a second after the end both are free."""
    loop = asyncio.get_running_loop()
    ports: asyncio.Future[tuple[int, int]] = loop.create_future()
    running = asyncio.create_task(
        serve(PeerSettings(http_port=0, stamp_port=0), lambda http, stamp: ports.set_result((http, stamp)))
    )
    http_port, stamp_port = await ports
    async with httpx.AsyncClient(trust_env=False) as client:
        for host in ("127.0.0.1", "[::1]"):
            assert (await client.get(f"http://{host}:{http_port}/info")).json()["version"] == __version__
    for host in ("127.0.0.1", "::1"):
        assert await reflected(host, stamp_port) == 7
    running.cancel()
    async with asyncio.timeout(1):
        with pytest.raises(asyncio.CancelledError):
            await running
    for kind, port in ((socket.SOCK_STREAM, http_port), (socket.SOCK_DGRAM, stamp_port)):
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))


async def reflected(host: str, port: int) -> int:
    """Send one STAMP packet with sequence 7; give the sequence that comes back in the answer."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.connect((host, port))
        sock.send(SenderPacket(7, 1, 1, 1).encode())
        async with asyncio.timeout(2):
            answer = ReflectorPacket.decode(await loop.sock_recv(sock, 4 * PACKET_BYTES))
    assert answer is not None
    return answer.sender_sequence


async def test_serve_says_when_it_cannot_start() -> None:
    """The HTTP port is taken: an error, not a peer that only reflects."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = PeerSettings(host="127.0.0.1", http_port=taken.getsockname()[1], stamp_port=0)
        with pytest.raises(PortError, match=f"HTTP port {settings.http_port} of 127.0.0.1: .*in use .*--http-port"):
            await serve(settings)


def test_a_part_is_served_as_a_part(start: Callable[..., HttpPeer]) -> None:
    """206 with the range that it is (RFC 9110 section 15.3.7), exactly as long, on a connection that goes on."""
    peer = start()
    with httpx.Client(trust_env=False) as client:
        for first, last in ((0, 99_999), (5_000_000, 12_345_678)):
            answer = client.get(f"http://127.0.0.1:{peer.port}/download", headers={"Range": f"bytes={first}-{last}"})
            assert answer.status_code == 206
            assert answer.headers["content-range"] == f"bytes {first}-{last}/*"
            assert len(answer.content) == last - first + 1
    wait_until(lambda: peer.connections == 0)
    assert (peer.counters.accepted, peer.counters.sent_bytes) == (1, 100_000 + 7_345_679)


def test_parts_that_are_asked_for_at_once_come_one_after_the_other(start: Callable[..., HttpPeer]) -> None:
    """Pipelined requests (RFC 9112 section 9.3.2)."""
    peer = start()
    ask = b"GET /download HTTP/1.1\r\nRange: bytes=0-999\r\n\r\n"
    end = b"GET /info HTTP/1.1\r\nConnection: close\r\n\r\n"
    said = say(peer, ask * 3 + end)
    assert said.count(b"HTTP/1.1 206") == 3
    assert len(said) > 3000


def test_a_share_that_runs_out_ends_with_what_was_promised(start: Callable[..., HttpPeer]) -> None:
    """The last part is said to be the last, arrives whole, and requests beyond it do not reset it away."""
    peer = start(bytes_per_connection=3 * MIB)
    said = say(peer, b"GET /download HTTP/1.1\r\nRange: bytes=0-999999\r\n\r\n" * 6)
    assert said.count(b"HTTP/1.1 206") == 3
    assert said.count(b"Connection: close") == 1
    assert 3_000_000 < len(said) < 3 * MIB


@pytest.mark.parametrize("asked", ["bytes=5-", "bytes=-5", "bytes=0-1,4-5", "bytes=9-1", "lines=1-2", "bytes=a-b"])
def test_other_ranges_are_ignored(start: Callable[..., HttpPeer], asked: str) -> None:
    """The whole comes, as RFC 9110 section 14.2 allows."""
    peer = start(bytes_per_connection=2 * MIB)
    with httpx.Client(trust_env=False) as client:
        answer = client.get(f"http://127.0.0.1:{peer.port}/download", headers={"Range": asked})
    assert (answer.status_code, len(answer.content)) == (200, 2 * MIB)
