"""Requests beside a load over TLS: a CPU without AES instructions, and peers that do not want what suits it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest
from bulk_rig import HOST, Scripted, says, server_context, stays, terms
from certificates import Certificates, make_certificates

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.flows.bulk import tls_contexts
from probe.flows.bulk.tls_contexts import TlsContexts
from probe.flows.load.foreign_probe import Target, probe_once
from probe.links import Link
from probe.messages import FailureKind, Operation, Peer
from probe.peer.http_peer import HttpPeer
from probe.peer.server_tls import ServerTls
from probe.tasks.base import Context, Usage
from probe.tasks.responsiveness import TASK, ResponsivenessParameters, ResponsivenessValues

LINK = Link(LinkConfig(name="wan", interface="lo", source_address=HOST))
SMALL = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones and bad ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def only_tls_1_3(certificates: Certificates) -> ssl.SSLContext:
    """A server that refuses TLS 1.2."""
    context = server_context(certificates.good)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def only_aes(certificates: Certificates) -> ssl.SSLContext:
    """A server of TLS 1.2 that refuses ChaCha20."""
    context = server_context(certificates.good)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AES128+AESGCM")
    return context


async def ask(port: int, contexts: TlsContexts, usage: Usage, host: str = HOST) -> float | None:
    """One request; gives what its TLS handshake took."""
    target = Target(HOST, port, host, "/small", contexts)
    return (await probe_once(target, lambda: LINK.socket(4, socket.SOCK_STREAM), 2.0, usage)).tls_s


@pytest.mark.parametrize("context_of", [only_tls_1_3, only_aes])
async def test_a_peer_that_refuses_what_suits_the_cpu_is_asked_again(
    certificates: Certificates, context_of: Callable[[Certificates], ssl.SSLContext]
) -> None:
    """The first request finds it out, on a second connection; from then on one connection is enough."""
    contexts = TlsContexts(terms(certificates.ca), has_aes=False)
    with Scripted(SMALL, context_of(certificates)) as server:
        assert 0 < (await ask(server.port, contexts, Usage()) or 0.0) < 1.0
        assert server.accepted == 2
        assert await ask(server.port, contexts, Usage()) is not None
        assert server.accepted == 3


async def test_requests_at_once_find_it_out_together(certificates: Certificates) -> None:
    """Each of them was refused, and each is answered on its second connection."""
    contexts = TlsContexts(terms(certificates.ca), has_aes=False)
    with Scripted(SMALL, only_tls_1_3(certificates)) as server:
        answers = await asyncio.gather(*(ask(server.port, contexts, Usage()) for _ in range(5)))
        assert server.accepted == 10
    assert all(tls_s is not None for tls_s in answers)


async def test_a_peer_that_takes_neither_fails_after_two_connections(certificates: Certificates) -> None:
    """(tls, handshake_failed), and with nothing left to try the next request makes one connection alone."""
    contexts = TlsContexts(terms(certificates.ca), has_aes=False)
    with Scripted(says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as server:
        for accepted in (2, 3):
            with pytest.raises(MeasurementFailedError) as caught:
                await ask(server.port, contexts, Usage())
            failure = caught.value.failure
            assert (failure.operation, failure.kind) == (Operation.TLS, FailureKind.HANDSHAKE_FAILED)
            assert server.accepted == accepted


async def test_a_bad_certificate_is_not_asked_for_twice(certificates: Certificates) -> None:
    """Another cipher would not make it better: (tls, certificate_invalid) after one connection."""
    contexts = TlsContexts(terms(certificates.ca), has_aes=False)
    with Scripted(SMALL, server_context(certificates.wrong_name)) as server:
        with pytest.raises(MeasurementFailedError) as caught:
            await ask(server.port, contexts, Usage())
        assert server.accepted == 1
    assert caught.value.failure.kind is FailureKind.CERTIFICATE_INVALID


async def test_two_connections_have_one_time_out(certificates: Certificates) -> None:
    """A peer that refuses the first handshake and is silent in the second: (request, timed_out) after all of it."""

    def script(sock: socket.socket, number: int) -> None:
        sock.recv(65536)
        if number:
            stays(sock)
        sock.sendall(bytes.fromhex("15030300020228"))  # RFC 8446 section 6: fatal, handshake_failure
        sock.shutdown(socket.SHUT_RDWR)

    contexts = TlsContexts(terms(certificates.ca), has_aes=False)
    with Scripted(script) as server:
        target = Target(HOST, server.port, HOST, "/small", contexts)
        with pytest.raises(MeasurementFailedError) as caught:
            await probe_once(target, lambda: LINK.socket(4, socket.SOCK_STREAM), 0.5, Usage())
        assert server.accepted == 2
    failure = caught.value.failure
    assert (failure.operation, failure.kind) == (Operation.REQUEST, FailureKind.TIMED_OUT)


async def test_the_roots_dot_stands_in_no_certificate(certificates: Certificates) -> None:
    """A peer written `peer.test.` is verified as `peer.test`."""
    contexts = TlsContexts(terms(certificates.ca, "peer.test."), has_aes=True)
    with Scripted(SMALL, server_context(certificates.good)) as server:
        assert await ask(server.port, contexts, Usage(), "peer.test.") is not None


async def test_the_task_measures_a_peer_of_tls_1_3_without_aes_instructions(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load's streams and the requests both fall back, and no request counts as failed."""
    monkeypatch.setattr(tls_contexts, "cpu_has_aes", lambda: False)
    tls = ServerTls(certificates.good.certificate, certificates.good.key)
    tls.context().minimum_version = ssl.TLSVersion.TLSv1_3
    http = HttpPeer(tls=tls)
    http.start(HOST, 0)
    peer = Peer(name="near", host=HOST, http_port=http.port, tls=True, stamp_port=1)
    context = Context(SystemClock(), 60, LINK, peer, peer_ca_file=str(certificates.ca))
    parameters = ResponsivenessParameters(interval_s=0.2, max_duration_s=2, streams_max=2)
    try:
        values = await TASK.measure(context, parameters)
    finally:
        await asyncio.to_thread(http.stop)
    assert isinstance(values, ResponsivenessValues)
    assert values.probes > 0
    assert values.probes_failed == 0
    assert values.tls_s is not None
    assert values.rpm is not None
