"""HTTP heads, ours and other people's: what is accepted, what is refused, and that nothing else happens."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import HEAD_BYTES_MAX, check_status, find_head, host_header, request_head
from probe.messages import FailureKind, Operation
from probe.peer.http_request import REQUEST_HEAD_BYTES_MAX, RefusedRequestError, find_request


def test_a_response_head_is_read_and_the_body_left_alone() -> None:
    """Status, length, persistence and the head's own size; what follows is not its business."""
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\nX-Congestion-Control: cubic\r\n\r\n"
    head = find_head(wire + b"\r\n\r\nbody")
    assert head is not None
    assert (head.status, head.content_bytes, head.keeps_alive) == (200, 67108864, True)
    assert head.headers["x-congestion-control"] == "cubic"
    assert head.wire_bytes == len(wire)
    assert not head.is_interim


@pytest.mark.parametrize(
    ("first", "connection", "expected"),
    [
        ("HTTP/1.1 200 OK", "", True),
        ("HTTP/1.1 204", "", True),
        ("HTTP/1.1 200 OK", "Connection: close\r\n", False),
        ("HTTP/1.1 200 OK", "Connection: Foo, Close\r\n", False),
        ("HTTP/1.0 200 OK", "", False),
        ("HTTP/1.0 200 OK", "Connection: keep-alive\r\n", True),
    ],
)
def test_persistence_follows_version_and_header(first: str, connection: str, *, expected: bool) -> None:
    """RFC 9112 section 9.3."""
    head = find_head(f"{first}\r\n{connection}\r\n".encode())
    assert head is not None
    assert head.keeps_alive is expected


def test_a_head_in_pieces_is_waited_for() -> None:
    """Every prefix of a good head is "not yet", never an error."""
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n"
    assert all(find_head(wire[:length]) is None for length in range(len(wire)))


def test_a_chunked_body_has_no_known_length() -> None:
    """Transfer-Encoding overrides Content-Length (RFC 9112 section 6.3)."""
    head = find_head(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n")
    assert head is not None
    assert head.content_bytes is None


@pytest.mark.parametrize(
    "wire",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"<html>",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: nameless\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * HEAD_BYTES_MAX,
    ],
)
def test_garbage_is_malformed_at_once(wire: bytes) -> None:
    """What can never become a head is (request, malformed), and is not waited for."""
    with pytest.raises(MeasurementFailedError) as caught:
        find_head(wire)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.REQUEST, FailureKind.MALFORMED)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, FailureKind.REDIRECTED),
        (511, FailureKind.HTTP_STATUS),
        (503, FailureKind.PEER_BUSY),
        (429, FailureKind.PEER_BUSY),
        (404, FailureKind.HTTP_STATUS),
        (500, FailureKind.HTTP_STATUS),
    ],
)
def test_a_status_other_than_2xx_is_a_failure(status: int, kind: FailureKind) -> None:
    """Each has its kind; a redirect says where to."""
    head = find_head(f"HTTP/1.1 {status} No\r\nLocation: http://portal.test/\r\n\r\n".encode())
    assert head is not None
    with pytest.raises(MeasurementFailedError) as caught:
        check_status(head)
    assert caught.value.failure.kind is kind
    assert kind is not FailureKind.REDIRECTED or "portal.test" in caught.value.failure.detail


@given(st.binary(max_size=300))
def test_no_bytes_break_either_parser(noise: bytes) -> None:
    """Arbitrary bytes are a head, not yet one, or refused: nothing else is ever raised."""
    for wire in (noise, b"HTTP/1.1 200 OK\r\n" + noise + b"\r\n\r\n"):
        with contextlib.suppress(MeasurementFailedError):
            find_head(wire)
    for wire in (noise, b"GET / HTTP/1.1\r\n" + noise + b"\r\n\r\n"):
        with contextlib.suppress(RefusedRequestError):
            find_request(wire)


def test_our_own_request_is_read_by_our_own_peer() -> None:
    """What the probe writes, the peer understands, byte for byte."""
    wire = request_head("POST", host_header("peer.test", 8080), "/upload", agent="t", content_bytes=1 << 30)
    request = find_request(wire + b"body")
    assert request is not None
    assert (request.method, request.path, request.content_bytes) == ("POST", "/upload", 1 << 30)
    assert request.keeps_alive
    assert request.wire_bytes == len(wire)


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [("peer.test", 80, "peer.test"), ("192.0.2.1", 8080, "192.0.2.1:8080"), ("2001:db8::1", 80, "[2001:db8::1]")],
)
def test_the_host_header_has_brackets_and_port_where_needed(host: str, port: int, expected: str) -> None:
    """RFC 9110 section 7.2."""
    assert host_header(host, port) == expected


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * REQUEST_HEAD_BYTES_MAX, 431),
    ],
)
def test_a_bad_request_is_refused_with_its_status(wire: bytes, status: int) -> None:
    """The peer stands on the Internet: it guesses nothing."""
    with pytest.raises(RefusedRequestError) as caught:
        find_request(wire)
    assert caught.value.status == status


def test_a_part_is_asked_for_from_the_beginning() -> None:
    """The first 1,000 bytes are 0 to 999 (RFC 9110 section 14.1.2)."""
    head = request_head("GET", "peer.test", "/download", agent="a", part_bytes=1000)
    assert b"\r\nRange: bytes=0-999\r\n" in head
    assert b"Range" not in request_head("GET", "peer.test", "/download", agent="a")
