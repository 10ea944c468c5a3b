"""Authenticated STAMP over loopback: the sender, the reflector, and who tries to speak for either."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import NotRunError
from probe.flows.echo.stamp import StampProtocol
from probe.flows.echo.stamp_authenticated import decode_reflector
from probe.flows.moments import Moment
from probe.links import IpVersion, Link
from probe.messages import NotRunReason, Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import Context
from probe.tasks.round_trip import RoundTripParameters, RoundTripValues, measure

LO = Link(LinkConfig(name="lo", interface="lo", source_address="127.0.0.1", source_address_v6="::1"))
HOST = {4: "127.0.0.1", 6: "::1"}
KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
READING = SystemClock().reading()
TIME_OUT_S = 20.0


@contextlib.asynccontextmanager
async def reflector(*keys: bytes, host: str = "127.0.0.1") -> AsyncIterator[Reflector]:
    """A reflector with these keys."""
    server = Reflector(keys=keys)
    await server.start(host, 0)
    try:
        yield server
    finally:
        await server.stop()


def key_file(folder: Path, key: bytes = KEY, mode: int = 0o600) -> str:
    """A file with a key, as the device has it."""
    path = folder / "stamp.key"
    path.write_text(key.hex() + "\n")
    path.chmod(mode)
    return str(path)


async def measured(
    port: int, keys: dict[str, str], stamp_key: str = "fleet", version: IpVersion = 4, payload_bytes: int = 44
) -> RoundTripValues:
    """Measure with five packets."""
    peer = Peer(name="peer", host=HOST[version], stamp_port=port, stamp_key=stamp_key)
    context = Context(clock=SystemClock(), time_out_s=30, link=LO, peer=peer, stamp_keys=keys)
    parameters = RoundTripParameters(
        packets=5, interval_s=0.02, time_out_s=0.3, ip_version=version, payload_bytes=payload_bytes
    )
    return await measure(context, parameters)


@pytest.mark.parametrize(("version", "payload_bytes"), [(4, 44), (4, 300), (6, 44)])
async def test_a_clean_path(tmp_path: Path, version: IpVersion, payload_bytes: int) -> None:
    """Every packet is answered and vouched for, and the result says so."""
    async with reflector(KEY, host=HOST[version]) as server:
        values = await measured(server.port, {"fleet": key_file(tmp_path)}, "fleet", version, payload_bytes)
    assert (values.packets_received, values.authenticated, values.replies_not_authentic) == (5, True, 0)
    assert (values.packets_lost_forward, values.packets_lost_backward) == (0, 0)
    assert (server.counters.reflected, server.counters.not_authentic) == (5, 0)


async def test_a_key_is_replaced_without_a_gap(tmp_path: Path) -> None:
    """The reflector knows the new key and the old one: probes of both kinds are answered, each with its own."""
    async with reflector(OTHER_KEY, KEY) as server:
        for key in (KEY, OTHER_KEY):
            assert (await measured(server.port, {"fleet": key_file(tmp_path, key)})).packets_received == 5


@pytest.mark.parametrize("key", [OTHER_KEY, None])
async def test_who_has_not_the_key_gets_no_answer(tmp_path: Path, key: bytes | None) -> None:
    """Another key, or none: dropped in silence and counted. For the probe it is a loss of everything."""
    async with reflector(KEY) as server:
        keys = {} if key is None else {"fleet": key_file(tmp_path, key)}
        values = await measured(server.port, keys, stamp_key="" if key is None else "fleet")
    assert (values.packets_sent, values.packets_received) == (5, 0)
    assert values.authenticated == (key is not None)
    assert (server.counters.reflected, server.counters.not_authentic) == (0, 5)


async def test_a_forgers_answers_are_counted_and_not_used(tmp_path: Path) -> None:
    """Somebody at the peer's address sends our packets back, authentic but no answers, or unsealed: not used."""

    def answer(sock: socket.socket) -> None:
        datagram, source = sock.recvfrom(2048)
        sock.sendto(datagram, source)
        sock.sendto(datagram[:96] + bytes(16), source)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        asyncio.get_running_loop().add_reader(sock, answer, sock)
        values = await measured(sock.getsockname()[1], {"fleet": key_file(tmp_path)})
        asyncio.get_running_loop().remove_reader(sock)
    assert (values.packets_sent, values.packets_received, values.replies_not_authentic) == (5, 0, 5)


async def test_the_reflector_drops_without_a_word() -> None:
    """Garbage, an unauthenticated packet and one with a flipped bit: no answer; the next good one is the first."""
    async with reflector(KEY) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            sock.connect(("127.0.0.1", server.port))
            good = StampProtocol(READING, key=KEY).request(1, Moment(1, 1))
            flipped = good[:60] + bytes([good[60] ^ 1]) + good[61:]
            plain = StampProtocol(READING, 112).request(1, Moment(1, 1))
            for datagram in (b"", b"x", plain, flipped, good[:111], good):
                sock.send(datagram)
            async with asyncio.timeout(TIME_OUT_S):
                answer = decode_reflector(await asyncio.get_running_loop().sock_recv(sock, 9000), KEY)
    assert answer is not None
    assert (answer.sequence, answer.sender_sequence) == (0, 1)
    assert (server.counters.reflected, server.counters.not_authentic) == (1, 5)


async def test_reflectors_with_one_key_do_not_answer_each_other() -> None:
    """An answer, sent on to another reflector that has the key: authentic, and ignored."""
    async with reflector(KEY) as one, reflector(KEY) as other:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            loop = asyncio.get_running_loop()
            await loop.sock_sendto(
                sock, StampProtocol(READING, key=KEY).request(1, Moment(1, 1)), ("127.0.0.1", one.port)
            )
            async with asyncio.timeout(TIME_OUT_S):
                answer, _ = await loop.sock_recvfrom(sock, 9000)
                await loop.sock_sendto(sock, answer, ("127.0.0.1", other.port))
                while not other.counters.ignored:  # noqa: ASYNC110 - counters have no event
                    await asyncio.sleep(0.001)
    assert (other.counters.reflected, other.counters.not_authentic) == (0, 0)


async def test_without_its_key_a_measurement_is_not_run(tmp_path: Path) -> None:
    """The device has no such key, its file is gone, or others may read it: nothing is sent, and the remedy is told."""
    reasons = {}
    async with reflector(KEY) as server:
        for name, keys in (
            ("unknown", {}),
            ("gone", {"fleet": str(tmp_path / "gone")}),
            ("open", {"fleet": key_file(tmp_path, mode=0o644)}),
        ):
            with pytest.raises(NotRunError) as caught:
                await measured(server.port, keys)
            assert caught.value.not_run.reason is NotRunReason.TOOL_MISSING
            reasons[name] = caught.value.not_run.detail
        assert server.counters == type(server.counters)()
    assert "'fleet': name its file in [stamp_keys]" in reasons["unknown"]
    assert "No such file" in reasons["gone"]
    assert "chmod 600" in reasons["open"]


async def test_the_peer_takes_its_key_from_a_file(tmp_path: Path) -> None:
    """`fleet-probe peer --stamp-key-file`: answers who has the key, on both IP versions; a bad file is told at once."""
    path = key_file(tmp_path)
    command = [sys.executable, "-m", "probe.cli", "peer", "--http-port", "0", "--stamp-port", "0"]
    process = await asyncio.create_subprocess_exec(*command, "--stamp-key-file", path, stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(TIME_OUT_S):
            port = int((await process.stdout.readline()).split()[-1])
            versions: tuple[IpVersion, ...] = (4, 6)
            for version in versions:
                values = await measured(port, {"fleet": path}, version=version)
                assert (values.packets_received, values.authenticated) == (5, True)
    finally:
        process.terminate()
        await process.communicate()
    process = await asyncio.create_subprocess_exec(*command, "--stamp-key-file", "/none", stdout=PIPE, stderr=PIPE)
    async with asyncio.timeout(TIME_OUT_S):
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"the STAMP key cannot be read" in errors
