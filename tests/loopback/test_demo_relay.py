"""The demo's way in from this host: bytes go both ways, halves close, and it ends when told."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from fleet_controller.demo.relay import _CONNECTIONS_MAX, Relay
from fleet_controller.lab.services import free_port

TIME_OUT_S = 10.0


class Echo:
    """A server that sends everything back, then closes when the client's half is closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self._echo, args=(connection,)))
            self.threads[-1].start()

    @staticmethod
    def _echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        """End it."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(TIME_OUT_S)


@pytest.fixture
def echo() -> Iterator[Echo]:
    """An echo server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def relay(echo: Echo) -> Iterator[Relay]:
    """A relay to it, without a namespace."""
    running = Relay(None, "127.0.0.1", echo.port).start()
    yield running
    running.stop()


def connect(relay: Relay) -> socket.socket:
    """A connection through the relay."""
    host, port = relay.address.split(":")
    return socket.create_connection((host, int(port)), timeout=TIME_OUT_S)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_megabyte_goes_there_and_back(relay: Relay) -> None:
    """More than any buffer on the way, and the closed half is passed on."""
    sent = bytes(range(256)) * 4096
    with connect(relay) as sock:

        def send() -> None:
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=send)
        writer.start()
        assert read_all(sock) == sent
        writer.join(TIME_OUT_S)


def test_connections_do_not_wait_for_each_other(relay: Relay) -> None:
    """One that is silent does not hold up another."""
    with connect(relay), connect(relay) as second:
        second.sendall(b"x")
        assert second.recv(1) == b"x"


def test_a_dead_target_closes_the_connection() -> None:
    """Nobody behind it: the client is told by a close, and the relay goes on."""
    relay = Relay(None, "127.0.0.1", free_port()).start()
    try:
        for _ in range(2):
            with connect(relay) as sock:
                assert sock.recv(1) == b""
    finally:
        relay.stop()


def test_one_too_many_is_closed_at_once(relay: Relay) -> None:
    """The bound on connections holds, and a freed place can be taken."""
    kept = []
    for _ in range(_CONNECTIONS_MAX):
        kept.append(connect(relay))
        kept[-1].sendall(b"x")
        assert kept[-1].recv(1) == b"x"
    with connect(relay) as refused:
        assert refused.recv(1) == b""
    for sock in kept:
        sock.close()


def test_stopping_closes_what_is_open(relay: Relay) -> None:
    """A client in mid-connection sees the end; stopping twice is harmless."""
    with connect(relay) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        relay.stop()
        assert sock.recv(1) == b""
        relay.stop()
