"""Bulk transfer with ndt7 servers: an independent WebSocket implementation, and servers that fail on purpose."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from functools import partial

import pytest
from bulk_rig import (
    BOTH,
    MIB,
    Scripted,
    failure_of,
    order,
    order_of,
    run,
    says,
    server_context,
    stays,
    terms,
    values_of,
)
from certificates import Certificates, make_certificates
from ndt7_server import Ndt7Server
from websockets.typing import Subprotocol

from probe.clock import SystemClock
from probe.flows.bulk import ndt7_session
from probe.flows.bulk.estimate import StopReason
from probe.flows.bulk.ndt7 import FRAME_BYTES
from probe.flows.bulk.stream import Direction
from probe.messages import FailureKind, Operation

Outcome = tuple[Operation, FailureKind]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones and bad ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


wanted = partial(order_of, "ndt7")


@pytest.mark.parametrize("within_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("direction", BOTH)
async def test_the_task_measures(certificates: Certificates, direction: Direction, *, within_tls: bool) -> None:
    """What we count is the payload of the server's own count, but for what was under way; its Pings are answered."""
    with Ndt7Server(tls=certificates.good if within_tls else None) as server:
        values = await values_of(direction, server.port, certificates.ca, protocol="ndt7", tls=within_tls)
    assert values.streams_failed == 0
    assert server.tests == 2
    assert server.pongs > 0
    assert (values.tls_version is not None) is within_tls
    assert values.transferred_bytes == pytest.approx(server.bulk_bytes, abs=16 * MIB)
    assert values.transferred_bytes > 20 * MIB


async def test_the_servers_kernel_knows_the_smallest_round_trip() -> None:
    """As the sender of a download it has more samples than we: 3 µs is less than any loopback takes."""
    with Ndt7Server(min_rtt_us=3) as server:
        done = await run(wanted(server.port, max_duration_s=0.8))
    assert done.tcp.delay_min_s == pytest.approx(3e-6)


async def test_a_test_that_the_server_ends_is_followed_by_another() -> None:
    """After the server's Close a stream is replaced, none counts as failed."""
    with Ndt7Server(test_s=0.3) as server:
        done = await run(wanted(server.port, max_duration_s=1, streams_max=1))
    assert done.streams_failed == 0
    assert server.tests > 2


@pytest.mark.parametrize("direction", BOTH)
async def test_a_cap_holds(direction: Direction) -> None:
    """Without parts to ask for, the receive windows keep it; an upload stops in the middle of a frame."""
    with Ndt7Server() as server:
        done = await run(wanted(server.port, direction, max_bytes=64 * MIB + 7, max_duration_s=3))
    assert 48 * MIB < done.transferred_bytes <= 64 * MIB + 7


@pytest.mark.parametrize("within_tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("direction", BOTH)
async def test_a_file_is_transferred_to_its_last_byte(
    certificates: Certificates, direction: Direction, *, within_tls: bool
) -> None:
    """Of payload: the headers of an upload's frames are not taken from it."""
    file_bytes = 40 * MIB + 7
    with Ndt7Server(tls=certificates.good if within_tls else None) as server:
        tls = terms(certificates.ca) if within_tls else None
        asked = wanted(server.port, direction, max_bytes=None, file_bytes=file_bytes, max_duration_s=9, tls=tls)
        done = await run(asked)
    assert (done.stopped_by, done.transferred_bytes) == (StopReason.WHOLE_FILE, file_bytes)
    assert done.streams_failed == 0


async def test_another_subprotocol_is_no_ndt7() -> None:
    """(request, malformed)."""
    with Ndt7Server(subprotocol=Subprotocol("net.measurementlab.ndt.v8")) as server:
        assert await failure_of(wanted(server.port)) == (Operation.REQUEST, FailureKind.MALFORMED)


async def test_another_path_is_not_served() -> None:
    """(request, http_status)."""
    with Ndt7Server() as server:
        outcome = await failure_of(order(server.port, path="/ndt/v5", protocol="ndt7"))
        assert outcome == (Operation.REQUEST, FailureKind.HTTP_STATUS)


@pytest.mark.parametrize("which", ["expired", "wrong_name", "self_signed"])
async def test_a_bad_certificate(certificates: Certificates, which: str) -> None:
    """No WebSocket without a certificate that vouches for the server."""
    if which == "expired" and SystemClock().reading().state != "synchronised":
        which = "wrong_name"  # by this host's clock no date can be judged
    with Ndt7Server(tls=getattr(certificates, which)) as server:
        outcome = await failure_of(wanted(server.port, tls=terms(certificates.ca)))
        assert outcome == (Operation.TLS, FailureKind.CERTIFICATE_INVALID)


def upgrades(then: Callable[[socket.socket], None]) -> Callable[[socket.socket, int], None]:
    """Accept the handshake as RFC 6455 says, then do something."""

    def script(sock: socket.socket, _number: int) -> None:
        head = sock.recv(65536)
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
        assert key is not None
        accept = b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())  # noqa: S324
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: net.measurementlab.ndt.v7\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        then(sock)

    return script


def sends(*parts: bytes, then: str = "stays") -> Callable[[socket.socket], None]:
    """Send this, then stay, end or reset."""

    def act(sock: socket.socket) -> None:
        for part in parts:
            sock.sendall(part)
        if then == "stays":
            stays(sock)
        elif then == "resets":
            # Once an uploader waits for room: within a sendfile the kernel would lose the error, and say EPIPE later.
            time.sleep(_FULL_AFTER_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        else:
            sock.shutdown(socket.SHUT_RDWR)

    return act


# Nothing is read here, and the buffers of a loopback are full within milliseconds. A stream that was cut is replaced
# eight times: nine of these must fit into the two seconds of a test.
_FULL_AFTER_S = 0.1
BULK = b"\x82\x7f" + (1 << 16).to_bytes(8, "big") + bytes(1 << 16)
FAULTS: list[tuple[str, Callable[[socket.socket, int], None], Outcome]] = [
    ("400", says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), (Operation.REQUEST, FailureKind.HTTP_STATUS)),
    ("a redirect", says(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), (Operation.REQUEST, FailureKind.REDIRECTED)),
    ("busy", says(b"HTTP/1.1 503 Busy\r\n\r\n"), (Operation.REQUEST, FailureKind.PEER_BUSY)),
    ("a page", says(b"HTTP/1.1 200 OK\r\n\r\n<html>"), (Operation.REQUEST, FailureKind.MALFORMED)),
    ("garbage for an answer", says(b"\x00" * 100), (Operation.REQUEST, FailureKind.MALFORMED)),
    ("no answer", stays, (Operation.REQUEST, FailureKind.TIMED_OUT)),
    ("garbage for frames", upgrades(sends(b"\xff" * 100)), (Operation.TRANSFER, FailureKind.MALFORMED)),
    ("masked frames", upgrades(sends(b"\x82\x85" + bytes(9))), (Operation.TRANSFER, FailureKind.MALFORMED)),
    ("an error's Close", upgrades(sends(b"\x88\x02\x03\xf3")), (Operation.TRANSFER, FailureKind.CLOSED)),
    ("an early end", upgrades(sends(then="ends")), (Operation.TRANSFER, FailureKind.CLOSED)),
    ("an early reset", upgrades(sends(then="resets")), (Operation.TRANSFER, FailureKind.RESET)),
]
DOWNLOAD_FAULTS: list[tuple[str, Callable[[socket.socket, int], None], Outcome]] = [
    ("a stall", upgrades(sends(BULK, BULK[:100])), (Operation.TRANSFER, FailureKind.STALLED)),
    ("texts alone", upgrades(sends(b"\x81\x02{}")), (Operation.TRANSFER, FailureKind.STALLED)),
    ("an end in a frame", upgrades(sends(BULK[:1000], then="ends")), (Operation.TRANSFER, FailureKind.CLOSED)),
    ("a frame beyond reason", upgrades(sends(b"\x82\x7f\x7f" + bytes(7))), (Operation.TRANSFER, FailureKind.MALFORMED)),
]


@pytest.mark.parametrize(("name", "script", "expected"), FAULTS, ids=[row[0] for row in FAULTS])
@pytest.mark.parametrize("direction", BOTH)
async def test_a_server_that_fails(
    name: str, script: Callable[[socket.socket, int], None], expected: Outcome, direction: Direction
) -> None:
    """Each in the contract's words, within its time-out."""
    del name
    with Scripted(script) as server:
        assert await failure_of(wanted(server.port, direction, max_duration_s=2, streams_max=1)) == expected


@pytest.mark.parametrize(("name", "script", "expected"), DOWNLOAD_FAULTS, ids=[row[0] for row in DOWNLOAD_FAULTS])
async def test_a_download_that_fails(
    name: str, script: Callable[[socket.socket, int], None], expected: Outcome
) -> None:
    """The same for what only a sending server can do."""
    del name
    with Scripted(script) as server:
        assert await failure_of(wanted(server.port, max_duration_s=2, streams_max=1)) == expected


async def test_an_upload_to_a_server_that_stops_reading_stalls() -> None:
    """(transfer, stalled) once the buffers are full."""

    def stops(_sock: socket.socket) -> None:
        threading.Event().wait(1.5)

    with Scripted(upgrades(stops)) as server:
        outcome = await failure_of(wanted(server.port, "upload", max_duration_s=3, streams_max=1))
    assert outcome == (Operation.TRANSFER, FailureKind.STALLED)


@pytest.mark.parametrize("then", ["ends", "resets"])
async def test_an_end_after_the_tests_time_is_proper(monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    """The reference server cuts its last message in two: nothing counts as failed."""
    monkeypatch.setattr(ndt7_session, "_PROPER_END_S", 0.0)
    with Scripted(upgrades(sends(BULK, BULK[:100], then=then))) as server:
        done = await run(wanted(server.port, streams_max=1))
    assert done.streams_failed == 0
    assert server.accepted > 1


async def test_what_is_told_in_words_does_not_count() -> None:
    """Texts, Pings and headers are no payload: to the byte."""
    text = json.dumps({"TCPInfo": {"MinRTT": 5}, "BBRInfo": {"BW": 1}}).encode()
    said = b"\x81\x7e" + len(text).to_bytes(2, "big") + text if len(text) > 125 else b"\x81" + bytes([len(text)]) + text
    with Scripted(upgrades(sends(*[BULK, said, b"\x89\x02hi"] * 50))) as server:
        done = await run(wanted(server.port, streams_max=1))
    assert done.transferred_bytes == 50 * (1 << 16)
    assert done.congestion_control == "bbr"


@pytest.mark.parametrize("within_tls", [False, True], ids=["plain", "tls"])
async def test_an_upload_is_whole_frames_with_the_pong_between_them(
    certificates: Certificates, *, within_tls: bool
) -> None:
    """Byte by byte: masked binary frames of 64 KiB, and the answer to a Ping at a boundary."""
    received = bytearray()

    def pings(sock: socket.socket) -> None:
        sock.sendall(b"\x89\x02hi")
        while part := sock.recv(1 << 16):
            received.extend(part)

    context = server_context(certificates.good) if within_tls else None
    with Scripted(upgrades(pings), context) as server:
        tls = terms(certificates.ca) if within_tls else None
        done = await run(wanted(server.port, "upload", streams_max=1, tls=tls))
    offset = payload_bytes = pongs = 0
    while offset + 8 <= len(received):
        first, second = received[offset], received[offset + 1]
        if (first, second) == (0x8A, 0x82):
            assert received[offset + 2 : offset + 8] == bytes(4) + b"hi"
            pongs += 1
            offset += 8
            continue
        assert received[offset : offset + 8] == b"\x82\xfe\xff\xf8" + bytes(4)
        offset += FRAME_BYTES
        payload_bytes += min(FRAME_BYTES - 8, len(received) - offset + FRAME_BYTES - 8)
    assert pongs == 1
    assert done.transferred_bytes == pytest.approx(payload_bytes, abs=MIB)
