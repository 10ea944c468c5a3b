"""Bulk transfer over TLS: real servers, exact counts, the cipher that suits the CPU, and everything that goes wrong."""

from __future__ import annotations

import dataclasses
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bulk_rig import BOTH, HOST, MIB, Scripted, failure_of, order, run, says, server_context, stays, terms, values_of
from certificates import Certificates, make_certificates

from fleet_controller.lab.services import Service, answers, find_program, free_port
from probe.clock import SystemClock
from probe.errors import NotRunError
from probe.flows.bulk import tls_contexts
from probe.flows.bulk.stream import Direction
from probe.messages import ClockReading, ClockState, FailureKind, NotRunReason, Operation
from probe.peer.http_peer import HttpPeer
from probe.peer.server_tls import ServerTls

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
NGINX_CONF = """\
daemon off;
user root;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {directory};
  proxy_temp_path {directory};
  fastcgi_temp_path {directory};
  uwsgi_temp_path {directory};
  scgi_temp_path {directory};
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pair.certificate};
    ssl_certificate_key {pair.key};
    ssl_protocols {protocols};
    ssl_ciphers {ciphers};
    root {directory};
    location = /upload {{ return 204; }}
  }}
}}
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones and bad ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def peer(certificates: Certificates) -> Iterator[HttpPeer]:
    """Our own peer, with TLS."""
    server = HttpPeer(tls=ServerTls(certificates.good.certificate, certificates.good.key))
    server.start(HOST, 0)
    yield server
    server.stop()


@pytest.fixture(params=[True, False], ids=["AES", "no AES"])
def has_aes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU of either kind."""
    monkeypatch.setattr(tls_contexts, "cpu_has_aes", lambda: request.param)
    return bool(request.param)


@pytest.fixture
def good_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a certificate's dates can be judged."""
    monkeypatch.setattr(SystemClock, "reading", lambda _: ClockReading(state=ClockState.SYNCHRONISED))


@pytest.mark.parametrize("direction", BOTH)
async def test_the_task_measures_over_tls(
    peer: HttpPeer, certificates: Certificates, direction: Direction, *, has_aes: bool
) -> None:
    """And says by which cipher: ChaCha20 where the CPU has no AES instructions."""
    values = await values_of(direction, peer.port, certificates.ca, tls=True)
    assert values.transferred_bytes > MIB
    assert values.streams_failed == 0
    expected = ("TLSv1.3", "AES") if has_aes else ("TLSv1.2", "CHACHA20")
    assert values.tls_version == expected[0]
    assert expected[1] in (values.tls_cipher or "")


@pytest.mark.parametrize("direction", BOTH)
@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.usefixtures("has_aes")
async def test_nginx_with_aes_alone_is_measured_all_the_same(
    certificates: Certificates, tmp_path: Path, direction: Direction, protocols: str
) -> None:
    """A server that refuses ChaCha20, or TLS 1.2, is asked again for whatever it has; nothing counts as failed."""
    port = free_port()
    (tmp_path / "download").write_bytes(os.urandom(8 * MIB))
    text = NGINX_CONF.format(
        directory=tmp_path,
        port=port,
        pair=certificates.good,
        protocols=protocols,
        ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
    )
    (tmp_path / "nginx.conf").write_text(text)
    command = [find_program("nginx", "nginx-light"), "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]
    with Service(tmp_path / "nginx", command, lambda: answers(HOST, port)):
        done = await run(order(port, direction, tls=terms(certificates.ca), max_duration_s=0.8))
    assert done.transferred_bytes > 2 * 8 * MIB
    assert (done.streams, done.streams_failed) == (2, 0)
    assert done.tls is not None
    assert (done.tls.version, "AES" in done.tls.cipher) == (protocols, True)


@pytest.mark.parametrize("record_bytes", [16384, 1000])
@pytest.mark.usefixtures("has_aes")
async def test_a_download_counts_to_the_byte(certificates: Certificates, record_bytes: int) -> None:
    """What the kernel counted as records is exactly the body that they carried; handshake and tickets are left out.

    Records of 1,000 bytes have 2 % of overhead, and it is not counted either.
    """

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(65536)
        sock.sendall(OK)
        for _ in range(500):
            sock.sendall(bytes(record_bytes))
        stays(sock)

    with Scripted(script, server_context(certificates.good)) as server:
        done = await run(order(server.port, tls=terms(certificates.ca), streams_max=1))
    assert done.transferred_bytes == 500 * record_bytes


@pytest.mark.usefixtures("has_aes")
async def test_an_upload_counts_to_the_byte(certificates: Certificates) -> None:
    """What was acknowledged is exactly what has arrived, once all of it has."""
    heads: list[int] = []
    received: list[int] = []

    def script(sock: socket.socket, _number: int) -> None:
        head = sock.recv(65536)
        heads.append(head.index(b"\r\n\r\n") + 4)
        received.append(len(head))
        while part := sock.recv(65536):
            received.append(len(part))

    with Scripted(script, server_context(certificates.good)) as server:
        more = {"max_bytes": 64 * MIB + 1, "max_duration_s": 10.0}
        wanted = order(server.port, "upload", tls=terms(certificates.ca), streams_max=1, **more)
        done = await run(wanted)
    assert done.transferred_bytes == sum(received) - sum(heads) == 64 * MIB + 1


@pytest.mark.parametrize("direction", BOTH)
async def test_a_cap_holds_over_tls(peer: HttpPeer, certificates: Certificates, direction: Direction) -> None:
    """Not a byte of payload more, as the peer counts it too."""
    done = await run(order(peer.port, direction, tls=terms(certificates.ca), max_bytes=64 * MIB, max_duration_s=3))
    peer.stop()
    assert done.transferred_bytes <= 64 * MIB
    assert done.transferred_bytes > 56 * MIB
    assert peer.counters.sent_bytes + peer.counters.received_bytes <= 64 * MIB


def alert(sock: socket.socket, _number: int) -> None:
    """A fatal alert instead of a ServerHello (RFC 8446 section 6: 21, version, length, fatal, internal_error)."""
    sock.recv(65536)
    sock.sendall(bytes.fromhex("15030300020250"))
    stays(sock)


def resets(sock: socket.socket, _number: int) -> None:
    """A reset instead of a ServerHello."""
    sock.recv(65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def closes(sock: socket.socket, _number: int) -> None:
    """The end instead of a ServerHello."""
    sock.recv(65536)
    sock.shutdown(socket.SHUT_RDWR)


HANDSHAKES: list[tuple[str, Callable[[socket.socket, int], None], FailureKind]] = [
    ("an alert", alert, FailureKind.HANDSHAKE_FAILED),
    ("a reset", resets, FailureKind.RESET),
    ("the end", closes, FailureKind.CLOSED),
    ("plain HTTP", says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), FailureKind.HANDSHAKE_FAILED),
    ("garbage", says(os.urandom(4096)), FailureKind.HANDSHAKE_FAILED),
    ("silence", stays, FailureKind.TIMED_OUT),
]


@pytest.mark.parametrize(("name", "script", "kind"), HANDSHAKES, ids=[row[0] for row in HANDSHAKES])
@pytest.mark.usefixtures("has_aes")
async def test_a_handshake_that_fails(
    certificates: Certificates,
    name: str,
    script: Callable[[socket.socket, int], None],
    kind: FailureKind,
) -> None:
    """(tls, ...) within the handshake's time, whichever cipher was asked for first."""
    del name
    with Scripted(script) as server:
        assert await failure_of(order(server.port, tls=terms(certificates.ca))) == (Operation.TLS, kind)


@pytest.mark.parametrize("which", ["expired", "wrong_name", "self_signed", "other_ca"])
@pytest.mark.usefixtures("good_clock")
@pytest.mark.usefixtures("has_aes")
async def test_a_bad_certificate(certificates: Certificates, which: str) -> None:
    """(tls, certificate_invalid); it is not tried again with another cipher."""
    pair = certificates.good if which == "other_ca" else getattr(certificates, which)
    ca = certificates.other_ca if which == "other_ca" else certificates.ca
    with Scripted(says(b""), server_context(pair)) as server:
        outcome = await failure_of(order(server.port, tls=terms(ca), streams_max=1))
        assert outcome == (Operation.TLS, FailureKind.CERTIFICATE_INVALID)
        assert server.accepted == 1


async def test_by_a_clock_that_nobody_vouches_for_no_date_is_judged(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that believes it is 1970 says nothing about the peer: not_run(clock)."""
    monkeypatch.setattr(SystemClock, "reading", lambda _: ClockReading(state=ClockState.UNSYNCHRONISED))
    with Scripted(says(b""), server_context(certificates.expired)) as server, pytest.raises(NotRunError) as caught:
        await run(order(server.port, tls=terms(certificates.ca)))
    assert caught.value.not_run.reason is NotRunReason.CLOCK


async def test_a_name_is_verified_too(certificates: Certificates) -> None:
    """`peer.test` is in the certificate, `other.test` is not."""
    server = HttpPeer(tls=ServerTls(certificates.good.certificate, certificates.good.key))
    server.start(HOST, 0)
    try:
        good = order(server.port, host="peer.test", tls=terms(certificates.ca, "peer.test"))
        assert (await run(good)).transferred_bytes > MIB
        bad = dataclasses.replace(good, host="other.test", tls=terms(certificates.ca, "other.test"))
        assert await failure_of(bad) == (Operation.TLS, FailureKind.CERTIFICATE_INVALID)
    finally:
        server.stop()


def breaks(sock: socket.socket, _number: int) -> None:
    """Some data, then bytes that are no record."""
    assert isinstance(sock, ssl.SSLSocket)
    sock.recv(65536)
    sock.sendall(OK + bytes(100_000))
    os.write(sock.fileno(), os.urandom(4096))
    stays(sock)


def says_and_resets(sock: socket.socket, _number: int) -> None:
    """Some data, then a reset."""
    sock.recv(65536)
    sock.sendall(OK + bytes(100_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def says_and_ends(sock: socket.socket, _number: int) -> None:
    """Some data, then the end of TCP without a word of TLS."""
    sock.recv(65536)
    sock.sendall(OK + bytes(100_000))
    sock.shutdown(socket.SHUT_RDWR)


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\nContent-Length: 0\r\n\r\n"
TRANSFERS: list[tuple[str, Callable[[socket.socket, int], None], tuple[Operation, FailureKind]]] = [
    ("a redirect", says(REDIRECT), (Operation.REQUEST, FailureKind.REDIRECTED)),
    ("404", says(b"HTTP/1.1 404 Not Found\r\n\r\n"), (Operation.REQUEST, FailureKind.HTTP_STATUS)),
    ("garbage", says(os.urandom(4096)), (Operation.REQUEST, FailureKind.MALFORMED)),
    ("silence", stays, (Operation.REQUEST, FailureKind.TIMED_OUT)),
    ("a stall", says(OK, bytes(100_000)), (Operation.TRANSFER, FailureKind.STALLED)),
    ("no record", breaks, (Operation.TLS, FailureKind.MALFORMED)),
    ("a reset", says_and_resets, (Operation.TRANSFER, FailureKind.RESET)),
    ("the end", says_and_ends, (Operation.TRANSFER, FailureKind.CLOSED)),
]


@pytest.mark.parametrize(("name", "script", "expected"), TRANSFERS, ids=[row[0] for row in TRANSFERS])
@pytest.mark.usefixtures("has_aes")
async def test_a_transfer_that_fails_within_tls(
    certificates: Certificates, name: str, script: Any, expected: tuple[Operation, FailureKind]
) -> None:
    """What the peer says inside the connection is told as it is without TLS."""
    del name
    with Scripted(script, server_context(certificates.good)) as server:
        wanted = order(server.port, tls=terms(certificates.ca), max_duration_s=2, streams_max=1)
        assert await failure_of(wanted) == expected


async def test_a_server_that_wants_our_certificate_refuses_us(certificates: Certificates) -> None:
    """In TLS 1.3 its alert comes after the handshake: still (tls, handshake_failed)."""
    context = server_context(certificates.good)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificates.ca)
    with Scripted(stays, context) as server:
        outcome = await failure_of(order(server.port, tls=terms(certificates.ca), streams_max=1))
        assert outcome == (Operation.TLS, FailureKind.HANDSHAKE_FAILED)


async def test_a_plain_client_gets_nothing_from_a_peer_with_tls(peer: HttpPeer) -> None:
    """No word in the clear, and the peer goes on."""
    assert (await failure_of(order(peer.port)))[0] is Operation.REQUEST
    assert peer.connections <= 1
