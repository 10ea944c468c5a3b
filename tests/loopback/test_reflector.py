from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator

import pytest

from probe.flows.echo.stamp_packets import ReflectorPacket, SenderPacket, ntp_of, unix_ns_of
from probe.peer import reflector as reflector_module
from probe.peer.reflector import Reflector

FAMILY = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}
ANSWER_TIME_OUT_S = 5.0


def sender_packet(sequence: int, session: int = 7) -> bytes:
    """A well-formed packet."""
    return SenderPacket(sequence, ntp_of(time.time_ns()), 0x8001, session).encode()


@contextlib.asynccontextmanager
async def running(host: str = "127.0.0.1", packets_per_s_max: float = 1000.0) -> AsyncIterator[Reflector]:
    """A reflector on a free port."""
    reflector = Reflector(packets_per_s_max=packets_per_s_max)
    await reflector.start(host, 0)
    try:
        yield reflector
    finally:
        await reflector.stop()


def client(port: int, host: str = "127.0.0.1") -> socket.socket:
    """A socket that talks to the reflector alone."""
    sock = socket.socket(FAMILY[host], socket.SOCK_DGRAM)
    sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
    sock.connect((host, port))
    return sock


async def ask(sock: socket.socket, packet: bytes) -> bytes:
    """Send and read the answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, packet)
    async with asyncio.timeout(ANSWER_TIME_OUT_S):
        return await loop.sock_recv(sock, 9000)


async def ask_stamp(sock: socket.socket, packet: bytes) -> ReflectorPacket:
    """Send and decode the answer."""
    answer = ReflectorPacket.decode(await ask(sock, packet))
    assert answer is not None
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_answer_says_what_rfc_8762_asks(host: str) -> None:
    """Everything of the sender's comes back, with the reflector's count, times and the TTL that it saw."""
    async with running(host) as reflector:
        with client(reflector.port, host) as sock:
            before = time.time_ns()
            packet = sender_packet(41)
            answer = await ask_stamp(sock, packet)
            after = time.time_ns()
    asked = SenderPacket.decode(packet)
    assert asked is not None
    assert (answer.sender_sequence, answer.sender_timestamp) == (41, asked.timestamp)
    assert (answer.sender_error_estimate, answer.session, answer.sender_ttl) == (0x8001, 7, 64)
    assert before <= unix_ns_of(answer.receive_timestamp) <= unix_ns_of(answer.timestamp) <= after
    assert answer.error_estimate & 0xFF


async def test_it_counts_for_each_session() -> None:
    """The count is the reflector's own: by source and session identifier, from 0, whatever the sender's numbers."""
    async with running() as reflector:
        with client(reflector.port) as one, client(reflector.port) as two:
            counts = [(await ask_stamp(one, sender_packet(sequence))).sequence for sequence in (5, 9, 100)]
            other_source = (await ask_stamp(two, sender_packet(5))).sequence
            other_session = (await ask_stamp(one, sender_packet(5, session=8))).sequence
    assert (counts, other_source, other_session) == ([0, 1, 2], 0, 0)


@pytest.mark.parametrize("size", [41, 44, 45, 160, 1452])
async def test_the_answer_is_as_long_as_the_question(size: int) -> None:
    """Not a byte more, so that nobody gains by a forged source; what follows the 44 bytes comes back as it was."""
    async with running() as reflector:
        with client(reflector.port) as sock:
            packet = sender_packet(1) + bytes(range(256)) * 6
            answer = await ask(sock, packet[:size])
    assert len(answer) == size
    assert answer[44:] == packet[44:size]


async def test_garbage_is_not_answered_and_does_no_harm() -> None:
    """Short, foreign and endless datagrams, and the packets of other reflectors: counted, no answer, still alive."""
    async with running() as reflector:
        with client(reflector.port) as sock:
            of_reflector = await ask(sock, sender_packet(1))
            garbage = [b"", b"x", sender_packet(1)[:40], b"\xff" * 44, bytes(44), of_reflector, bytes(60_000)]
            for datagram in garbage:
                sock.send(datagram)
            # Answers come in order: if garbage were answered, this would not be the first answer.
            answer = await ask_stamp(sock, sender_packet(2))
    assert answer.sender_sequence == 2
    assert answer.sequence == 1
    assert (reflector.counters.ignored, reflector.counters.reflected) == (len(garbage), 2)


async def test_a_source_has_a_rate() -> None:
    """Over its rate a source gets no answer, and what was not answered is not numbered."""
    async with running(packets_per_s_max=5) as reflector:
        with client(reflector.port) as sock:
            for sequence in range(50):
                sock.send(sender_packet(sequence))
            async with asyncio.timeout(ANSWER_TIME_OUT_S):
                while reflector.counters.reflected + reflector.counters.limited < 50:  # noqa: ASYNC110 - counters have no event
                    await asyncio.sleep(0)
            answers = [ReflectorPacket.decode(sock.recv(9000)) for _ in range(reflector.counters.reflected)]
    # One second's worth at once; the fifty were sent in far less than another second.
    assert 5 <= reflector.counters.reflected <= 10
    assert reflector.counters.limited == 50 - reflector.counters.reflected
    assert [answer.sequence for answer in answers if answer] == list(range(len(answers)))


async def test_the_tables_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more sessions than there is room for, the one that was silent the longest starts again at 0."""
    monkeypatch.setattr(reflector_module, "SESSIONS_MAX", 3)
    async with running() as reflector:
        with client(reflector.port) as sock:
            for session in (1, 2, 3, 1, 4):
                await ask(sock, sender_packet(1, session))
            kept = (await ask_stamp(sock, sender_packet(1, 1))).sequence
            forgotten = (await ask_stamp(sock, sender_packet(1, 2))).sequence
    assert (kept, forgotten) == (2, 0)
    assert reflector.counters.evicted == 2


async def test_an_idle_session_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is silent for longer than REFWAIT has ended; the next packet is the first of a new one."""
    async with running() as reflector:
        with client(reflector.port) as sock:
            await ask(sock, sender_packet(1))
            assert (await ask_stamp(sock, sender_packet(2))).sequence == 1
            monkeypatch.setattr(reflector_module, "SESSION_IDLE_S", -1.0)
            assert (await ask_stamp(sock, sender_packet(3))).sequence == 0


async def test_it_answers_from_the_address_that_was_asked() -> None:
    """Listening on every address, it does not let the routing choose the answer's source."""
    async with running("0.0.0.0") as reflector:  # noqa: S104 - inside the test's own host
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            sock.bind(("127.0.0.1", 0))
            # A connected socket takes answers from that address alone.
            sock.connect(("127.0.0.77", reflector.port))
            assert (await ask_stamp(sock, sender_packet(1))).sequence == 0


async def test_many_packets_at_once_are_all_answered() -> None:
    """More than one wake-up reads, in a burst: each is answered once, in order."""
    async with running(packets_per_s_max=10_000) as reflector:
        with client(reflector.port) as sock:
            for sequence in range(200):
                sock.send(sender_packet(sequence))
            loop = asyncio.get_running_loop()
            answers = []
            for _ in range(200):
                async with asyncio.timeout(ANSWER_TIME_OUT_S):
                    answers.append(ReflectorPacket.decode(await loop.sock_recv(sock, 9000)))
    assert [(answer.sequence, answer.sender_sequence) for answer in answers if answer] == [(n, n) for n in range(200)]


async def test_start_and_stop() -> None:
    """A port in use is told; after a stop it is free; stopping twice does nothing."""
    async with running() as first:
        second = Reflector()
        with pytest.raises(OSError, match="in use"):
            await second.start("127.0.0.1", first.port)
        await second.stop()
    await first.stop()
    await second.start("127.0.0.1", first.port)
    assert second.port == first.port
    await second.stop()
