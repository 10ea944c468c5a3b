"""Bulk transfer with LibreSpeed's protocol, in the manners of its PHP, Go and Rust backends, with and without TLS."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from bulk_rig import BOTH, MIB, Scripted, failure_of, order_of, run, says, terms, values_of
from certificates import Certificates, make_certificates
from librespeed_server import LibreSpeedServer, Manner

from probe.flows.bulk.librespeed import POST_BYTES_MAX
from probe.flows.bulk.stream import Direction
from probe.messages import FailureKind, Operation

MANNERS: tuple[Manner, ...] = ("php", "go", "rust")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Good ones."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


wanted = partial(order_of, "librespeed")


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("direction", BOTH)
async def test_every_backend_is_measured(direction: Direction, manner: Manner) -> None:
    """No stream fails; what we count is what it gave or took, but for what was under way and chunks' 10 bytes a MiB."""
    with LibreSpeedServer(manner) as server:
        done = await run(wanted(server.port, direction, max_duration_s=1))
        moved = server.garbage_bytes if direction == "download" else server.posted_bytes
    assert (done.streams, done.streams_failed) == (2, 0)
    assert done.transferred_bytes > 20 * MIB
    under_way_bytes = 2 * (POST_BYTES_MAX if direction == "upload" else 16 * MIB)
    assert moved - under_way_bytes <= done.transferred_bytes <= moved * 1.00002 + under_way_bytes


@pytest.mark.parametrize("direction", BOTH)
async def test_the_task_measures_within_tls(certificates: Certificates, direction: Direction) -> None:
    """A peer of the instruction with `protocol: librespeed` and `tls: true`."""
    with LibreSpeedServer("go", certificates.good) as server:
        values = await values_of(direction, server.port, certificates.ca, protocol="librespeed", tls=True)
    assert values.transferred_bytes > 20 * MIB
    assert values.streams_failed == 0
    assert values.tls_version is not None


async def test_a_download_is_asked_for_by_http_1_0_and_never_from_a_cache() -> None:
    """So that no sizes of chunks stand between the bytes; each request has a word of its own."""
    with LibreSpeedServer("go") as server:
        await run(wanted(server.port))
    lines = [line.split(" ") for line in server.requests]
    assert {(method, version) for method, _, version in lines} == {("GET", "HTTP/1.0")}
    assert all(target.startswith("/backend/garbage.php?ckSize=1024&r=") for _, target, _ in lines)
    assert len({target for _, target, _ in lines}) == len(lines) >= 2


@pytest.mark.parametrize("manner", MANNERS)
async def test_posts_follow_each_other_on_one_connection(manner: Manner) -> None:
    """Each as large as the project's own clients send them; the end of an answer's body is not taken for an answer."""
    with LibreSpeedServer(manner) as server:
        done = await run(wanted(server.port, "upload", streams_max=1, post_bytes=MIB, max_duration_s=1))
        assert (done.streams_failed, server.accepted) == (0, 1)
    assert len(server.requests) > 3


@pytest.mark.parametrize("direction", BOTH)
async def test_a_cap_holds(direction: Direction) -> None:
    """Without parts to ask for, the receive windows keep it."""
    with LibreSpeedServer("go") as server:
        done = await run(wanted(server.port, direction, max_bytes=64 * MIB, max_duration_s=3))
    assert 48 * MIB < done.transferred_bytes <= 64 * MIB


FAULTS: list[tuple[str, bytes, tuple[Operation, FailureKind]]] = [
    ("404", b"HTTP/1.1 404 Not Found\r\n\r\n", (Operation.REQUEST, FailureKind.HTTP_STATUS)),
    ("413", b"HTTP/1.1 413 Too Large\r\n\r\n", (Operation.REQUEST, FailureKind.HTTP_STATUS)),
    ("503", b"HTTP/1.1 503 Busy\r\n\r\n", (Operation.REQUEST, FailureKind.PEER_BUSY)),
    (
        "a portal's redirect",
        b"HTTP/1.1 302 Found\r\nLocation: http://portal/\r\n\r\n",
        (Operation.REQUEST, FailureKind.REDIRECTED),
    ),
    ("garbage", b"\x16\x03\x03\x00\x00", (Operation.REQUEST, FailureKind.MALFORMED)),
]
DOWNLOAD_FAULTS: list[tuple[str, bytes, tuple[Operation, FailureKind]]] = [
    (
        "a portal's page",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>",
        (Operation.REQUEST, FailureKind.INTERCEPTED),
    ),
    (
        "an error of PHP",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nno openssl",
        (Operation.REQUEST, FailureKind.MALFORMED),
    ),
    (
        "a compressed body",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        (Operation.REQUEST, FailureKind.MALFORMED),
    ),
    ("nothing", b"", (Operation.REQUEST, FailureKind.TIMED_OUT)),
    ("a stall", b"HTTP/1.1 200 OK\r\n\r\n" + bytes(100_000), (Operation.TRANSFER, FailureKind.STALLED)),
]


@pytest.mark.parametrize(("name", "answer", "expected"), FAULTS, ids=[row[0] for row in FAULTS])
@pytest.mark.parametrize("direction", BOTH)
async def test_a_server_that_fails(
    name: str, answer: bytes, expected: tuple[Operation, FailureKind], direction: Direction
) -> None:
    """Each in the contract's words, within its time-out."""
    del name
    with Scripted(says(answer)) as server:
        # A POST of a mebibyte, so that it ends and the answer is waited for.
        failure = await failure_of(wanted(server.port, direction, max_duration_s=2, post_bytes=MIB))
    assert failure == expected


@pytest.mark.parametrize(("name", "answer", "expected"), DOWNLOAD_FAULTS, ids=[row[0] for row in DOWNLOAD_FAULTS])
async def test_a_download_that_fails(name: str, answer: bytes, expected: tuple[Operation, FailureKind]) -> None:
    """What is no random data is not measured."""
    del name
    with Scripted(says(answer)) as server:
        assert await failure_of(wanted(server.port, max_duration_s=2)) == expected


async def test_an_upload_that_nobody_confirms() -> None:
    """All of the POST was taken and no answer comes: the stream stands still."""
    with Scripted(says(b"")) as server:
        outcome = await failure_of(
            wanted(server.port, "upload", post_bytes=MIB, max_duration_s=2, request_time_out_s=2)
        )
    assert outcome == (Operation.TRANSFER, FailureKind.STALLED)


async def test_a_certificate_that_is_not_trusted(certificates: Certificates) -> None:
    """(tls, certificate_invalid), as over plain HTTP."""
    with LibreSpeedServer("go", certificates.self_signed) as server:
        outcome = await failure_of(wanted(server.port, tls=terms(Path(certificates.ca))))
    assert outcome == (Operation.TLS, FailureKind.CERTIFICATE_INVALID)
