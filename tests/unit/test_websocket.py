"""WebSocket's handshake and frames against the examples of RFC 6455 and of the ndt7 specification."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.bulk.http_head import find_head
from probe.flows.bulk.ndt7 import FRAME_BYTES, HEADER_BYTES
from probe.flows.bulk.websocket import (
    FrameHeader,
    Opcode,
    accept_of,
    check_upgrade,
    client_frame,
    client_header,
    header_bytes,
    new_key,
    parse_header,
    upgrade_request,
)
from probe.messages import FailureKind, Operation

NDT7 = "net.measurementlab.ndt.v7"
KEY = "DOdm+5/Cm3WwvhfcAlhJoQ=="
# The specification's own example.
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Sec-WebSocket-Protocol: net.measurementlab.ndt.v7\r\n"
    b"Sec-WebSocket-Accept: Nhz+x95YebD6Uvd4nqPC2fomoUQ=\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"\r\n"
)


def judge(answer: bytes) -> tuple[Operation, FailureKind] | None:
    """How an answer to `KEY` is refused; None when it is accepted."""
    head = find_head(answer)
    assert head is not None
    try:
        check_upgrade(head, key=KEY, protocol=NDT7)
    except MeasurementFailedError as error:
        return error.failure.operation, error.failure.kind
    return None


def test_the_handshake_is_the_specifications_example_byte_by_byte() -> None:
    """Its lines, and the User-Agent that v0.8 and later demand."""
    said = upgrade_request("localhost", "/ndt/v7/download", agent="fleet-probe", key=KEY, protocol=NDT7)
    assert said == (
        b"GET /ndt/v7/download HTTP/1.1\r\n"
        b"Host: localhost\r\n"
        b"User-Agent: fleet-probe\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n"
        b"Sec-WebSocket-Key: DOdm+5/Cm3WwvhfcAlhJoQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: net.measurementlab.ndt.v7\r\n"
        b"\r\n"
    )


def test_a_path_cannot_end_its_line() -> None:
    """No request within the request."""
    with pytest.raises(ValueError, match="no request may have"):
        upgrade_request("h", "/x HTTP/1.1\r\nHost: y", agent="a", key=KEY, protocol=NDT7)


def test_the_key_is_answered_as_the_documents_say() -> None:
    """RFC 6455 section 1.3, and the ndt7 specification."""
    assert accept_of("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert judge(ANSWER) is None
    assert new_key(bytes(16)) == "AAAAAAAAAAAAAAAAAAAAAA=="


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (b"101 Switching Protocols", b"200 OK", FailureKind.MALFORMED),
        (b"101 Switching Protocols", b"400 Bad Request", FailureKind.HTTP_STATUS),
        (b"101 Switching Protocols", b"302 Found\r\nLocation: http://portal/", FailureKind.REDIRECTED),
        (b"101 Switching Protocols", b"503 Busy", FailureKind.PEER_BUSY),
        (b"ndt.v7", b"ndt.v8", FailureKind.MALFORMED),
        (b"Sec-WebSocket-Protocol: net.measurementlab.ndt.v7\r\n", b"", FailureKind.MALFORMED),
        (b"Nhz+", b"Nhz-", FailureKind.MALFORMED),
        (b"Upgrade: websocket", b"Upgrade: h2c", FailureKind.MALFORMED),
        (b"Connection: Upgrade", b"Connection: close", FailureKind.MALFORMED),
        (b"Upgrade: w", b"Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade: w", FailureKind.MALFORMED),
    ],
)
def test_another_answer_is_refused(old: bytes, new: bytes, kind: FailureKind) -> None:
    """Each of the client's checks of RFC 6455 section 4.1, and what HTTP itself says."""
    assert judge(ANSWER.replace(old, new)) == (Operation.REQUEST, kind)


@pytest.mark.parametrize(
    ("raw", "header"),
    [
        ("8105", FrameHeader(Opcode.TEXT, is_final=True, payload_bytes=5, wire_bytes=2)),
        ("0103", FrameHeader(Opcode.TEXT, is_final=False, payload_bytes=3, wire_bytes=2)),
        ("8002", FrameHeader(Opcode.CONTINUATION, is_final=True, payload_bytes=2, wire_bytes=2)),
        ("8905", FrameHeader(Opcode.PING, is_final=True, payload_bytes=5, wire_bytes=2)),
        ("827e0100", FrameHeader(Opcode.BINARY, is_final=True, payload_bytes=256, wire_bytes=4)),
        ("827f0000000000010000", FrameHeader(Opcode.BINARY, is_final=True, payload_bytes=65536, wire_bytes=10)),
    ],
)
def test_headers_are_read_as_in_the_rfcs_examples(raw: str, header: FrameHeader) -> None:
    """RFC 6455 section 5.7; and no earlier than they are whole."""
    whole = bytes.fromhex(raw)
    assert parse_header(whole) == header
    for length in range(len(whole)):
        assert length < header_bytes(whole[:length]) <= len(whole)
    assert header_bytes(whole) == len(whole)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param("8185", id="masked by a server"),
        pytest.param("c105", id="reserved bit"),
        pytest.param("8305", id="unknown opcode"),
        pytest.param("0905", id="ping in parts"),
        pytest.param("897e0080", id="ping over 125 bytes"),
        pytest.param("4854", id="HTTP"),
    ],
)
def test_what_no_server_may_send_is_malformed(raw: str) -> None:
    """(transfer, malformed)."""
    with pytest.raises(MeasurementFailedError) as caught:
        parse_header(bytes.fromhex(raw))
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.TRANSFER, FailureKind.MALFORMED)


def test_a_clients_frame_is_masked_and_its_payload_as_it_was() -> None:
    """The mask is 0, so XOR changes nothing; the layout is that of RFC 6455 section 5.7's masked frames."""
    assert client_frame(Opcode.PONG, b"Hello").hex() == "8a85" + "00000000" + "48656c6c6f"
    assert client_frame(Opcode.CLOSE, b"\x03\xe8").hex() == "8882" + "00000000" + "03e8"
    assert client_header(Opcode.BINARY, 256).hex() == "82fe0100" + "00000000"
    assert client_header(Opcode.BINARY, 1 << 16).hex() == "82ff0000000000010000" + "00000000"
    assert len(client_header(Opcode.BINARY, FRAME_BYTES - HEADER_BYTES)) == HEADER_BYTES


@given(st.binary(min_size=10, max_size=10))
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    """Any ten bytes are a header, or malformed."""
    try:
        header = parse_header(raw[: header_bytes(raw)])
    except MeasurementFailedError as error:
        kind = error.failure.kind
    else:
        assert header.wire_bytes == header_bytes(raw)
        return
    assert kind is FailureKind.MALFORMED
