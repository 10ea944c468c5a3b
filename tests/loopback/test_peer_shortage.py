"""A peer on a host that lacks something: it says so once, turns nobody away for ever, and goes on."""

from __future__ import annotations

import logging
import os
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from agent_rig import serving_peer
from certificates import Certificates, make_certificates

from probe.peer.http_peer import HttpPeer
from probe.peer.server_tls import ServerTls

WAIT_S = 10.0
SMALL = b"GET /small HTTP/1.1\r\nHost: peer.test\r\nConnection: close\r\n\r\n"
RESET = struct.pack("ii", 1, 0)
# More than any host has: a thread with such a stack cannot be made.
HUGE_STACK_BYTES = 1 << 46


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what a thread of the peer does."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"it did not happen within {WAIT_S:g} s"
        time.sleep(0.01)


def answer(port: int) -> bytes:
    """What a new connection is answered; empty when it is closed without a word."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        try:
            sock.sendall(SMALL)
            return sock.recv(65536)
        except ConnectionError:
            return b""


@pytest.fixture
def peer() -> Iterator[HttpPeer]:
    """Our own."""
    server = HttpPeer()
    server.start("127.0.0.1", 0)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_a_peer_without_descriptors_waits_for_some() -> None:
    """The connections it has go on, the others wait in the kernel and are served in the end; the log has one line."""
    with serving_peer() as (process, port), ExitStack() as stack:
        highest = max(int(name) for name in os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208 - names are enough
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (highest + 3, highest + 3))
        held = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)) for _ in range(8)]
        time.sleep(1.0)  # several pauses of the acceptor
        held[0].sendall(SMALL)
        assert held[0].recv(65536).startswith(b"HTTP/1.1 200")
        for sock in held:
            sock.close()
        assert answer(port).startswith(b"HTTP/1.1 200")
        process.terminate()
        _, told = process.communicate(timeout=WAIT_S)
    assert told.count("cannot be served") == 1
    assert "Too many open files" in told


@contextmanager
def no_more_threads() -> Iterator[None]:
    """In here no thread can be started: its stack would not fit into the address space."""
    before = threading.stack_size(HUGE_STACK_BYTES)
    try:
        yield
    finally:
        threading.stack_size(before)


def test_a_peer_without_threads_closes_and_goes_on(
    peer: HttpPeer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be served is closed and not counted as open; with threads again, the next one is served."""
    caplog.set_level(logging.INFO, "probe.peer.http_peer")
    with no_more_threads():
        for _ in range(3):
            assert answer(peer.port) == b""
        assert peer.connections == 0
    assert answer(peer.port).startswith(b"HTTP/1.1 200")
    monkeypatch.setattr("probe.peer.http_peer._CALM_S", 0.0)
    assert answer(peer.port).startswith(b"HTTP/1.1 200")
    assert peer.counters.accepted == 5
    wait_until(lambda: "connections are served again" in caplog.messages)
    assert [record.levelname for record in caplog.records if "served" in record.getMessage()] == ["WARNING", "INFO"]


# Python's ssl forgets its own handle of a socket whose client left before it was wrapped; the interpreter then closes
# it at once, and says so.
@pytest.mark.filterwarnings("ignore:unclosed <ssl:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("within_tls", [False, True], ids=["plain", "tls"])
def test_clients_that_leave_at_once_leave_nothing_behind(certificates: Certificates, *, within_tls: bool) -> None:
    """Reset before a word, in the middle of a handshake, and with garbage for one: no thread, no share stays taken."""
    server = HttpPeer(tls=ServerTls(certificates.good.certificate, certificates.good.key) if within_tls else None)
    server.start("127.0.0.1", 0)
    try:
        hello = client_hello()
        for said in (b"", hello[:3], hello[: len(hello) // 2], hello, b"\x16\x03\x01\xff\xff" + bytes(100)):
            for _ in range(20):
                leave_at_once(server.port, said)
        # None has to be refused: 64 of one client may be open at once, and those that left do not count for long.
        wait_until(lambda: server.counters.accepted + server.counters.refused == 100)
        wait_until(lambda: server.connections == 0)
        assert not server._per_address
    finally:
        server.stop()


def client_hello() -> bytes:
    """How a client of TLS begins."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="peer.test")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def leave_at_once(port: int, said: bytes) -> None:
    """Say this, and reset the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as sock:
        sock.sendall(said)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def test_a_certificate_without_its_key_is_told(certificates: Certificates, tmp_path: Path) -> None:
    """Before anything listens: which file, and why."""
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(Exception, match=r"cannot use .*\.pem with .*key\.pem: "):
        ServerTls(certificates.good.certificate, tmp_path / "key.pem")
