"""HTTP to bytes and back: what h11 and h2 say and complain of, in the contract's words."""

from __future__ import annotations

import inspect
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.exceptions
import h11
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import MeasurementFailedError
from probe.flows.http.messages import KIND_OF_ERROR, End, Event, Head, HttpRequest, HttpWire, check_beginning
from probe.flows.http.wires import Http1, Http2, new_wire
from probe.messages import FailureKind, Operation

GET = HttpRequest("https", "page.test", "/a?b=c", (("accept", "*/*"),))
POST = HttpRequest("https", "page.test", "/dns-query", body=b"question")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"


def all_of(wire: HttpWire, *contents: bytes) -> list[Event]:
    """Everything that these bytes say."""
    return [event for content in contents for event in wire.feed(content)]


def failure_of(wire: HttpWire, *contents: bytes) -> FailureKind:
    """How they fail."""
    with pytest.raises(MeasurementFailedError) as caught:
        all_of(wire, *contents)
    assert caught.value.failure.operation is Operation.REQUEST
    return caught.value.failure.kind


class Server:
    """The other end of HTTP/2, by the same library."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.connection = h2.connection.H2Connection(config=config)
        self.connection.initiate_connection()
        self.heads: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    def take(self, content: bytes) -> None:
        """Read what the client sent."""
        for event in self.connection.receive_data(content):
            if hasattr(event, "headers"):
                self.heads.append(dict(event.headers))
            if hasattr(event, "data"):
                self.bodies.append(event.data)

    def answer(self, stream: int, body: bytes, status: str = "200") -> bytes:
        """A whole response."""
        self.connection.send_headers(stream, [(":status", status), ("x-by", "lab")])
        self.connection.send_data(stream, body, end_stream=True)
        return self.sent()

    def sent(self) -> bytes:
        """What goes to the client."""
        return self.connection.data_to_send()


@pytest.mark.parametrize("library", ["h11", "h2"])
def test_every_exception_of_the_libraries_has_its_word(library: str) -> None:
    """A class that a new version brings must be given a kind here before it can be used."""
    module = {"h11": h11, "h2": h2.exceptions}[library]
    known = {
        f"{library}.{name}"
        for name, member in vars(module).items()
        if inspect.isclass(member) and issubclass(member, Exception)
    }
    assert known == {name for name in KIND_OF_ERROR if name.startswith(f"{library}.")}


def test_http_1_says_what_it_is_asked() -> None:
    """A request's bytes, and a second one on the same connection."""
    wire = new_wire("1.1")
    assert wire.begin(GET) == b"GET /a?b=c HTTP/1.1\r\nhost: page.test\r\naccept: */*\r\n\r\n"
    assert all_of(wire, HEAD + b"body") == [Head(200, {"content-length": "4"}), b"body", End()]
    assert wire.begin(POST).endswith(b"content-length: 8\r\n\r\nquestion")
    assert all_of(wire, HEAD, b"bo", b"dy")[1:] == [b"bo", b"dy", End()]
    assert wire.pending() == b""


def test_http_2_says_what_it_is_asked() -> None:
    """Two requests on one connection, their answers, and windows that a page fits into."""
    wire, server = new_wire("2"), Server()
    server.take(wire.begin(GET))
    assert server.heads[0] == {
        ":method": "GET",
        ":authority": "page.test",
        ":scheme": "https",
        ":path": "/a?b=c",
        "accept": "*/*",
    }
    assert server.connection.local_flow_control_window(1) > 1_000_000
    events = all_of(wire, server.answer(1, b"body"))
    assert events == [Head(200, {"x-by": "lab"}), b"body", End()]
    assert wire.pending() != b""  # the acknowledgement of its settings
    server.take(wire.begin(POST))
    assert server.bodies == [b"question"]
    assert all_of(wire, server.answer(3, b"", "204"))[0] == Head(204, {"x-by": "lab"})


def test_interim_heads_are_passed_over() -> None:
    """RFC 9110 section 15.2."""
    wire = Http1()
    wire.begin(GET)
    assert all_of(wire, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", HEAD)[0] == Head(200, {"content-length": "4"})


def test_what_came_before_the_mistake_is_told() -> None:
    """A good head in the same segment as a bad body: the failure is the body's."""
    wire = Http1()
    wire.begin(GET)
    events = wire.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert isinstance(next(events), Head)
    with pytest.raises(MeasurementFailedError):
        next(events)


def test_another_protocol_is_noticed_by_its_first_bytes() -> None:
    """Nobody waits for the end of an SSH banner, or of a frame of 4 MB that is a line of HTTP/1.1."""
    check_beginning(b"HT", b"HTTP/1.")
    for wire, content in ((Http1(), b"SSH"), (Http1(), b"\x00"), (Http2(), b"HTTP"), (Http2(), b"\x00\x00\x00\x07")):
        wire.begin(GET)
        assert failure_of(wire, content) is FailureKind.MALFORMED


def test_a_connection_that_ends_early_is_closed() -> None:
    """Before, in and after the head; a body whose end is the connection's is whole."""
    for contents in ((b"",), (HEAD[:20], b""), (HEAD + b"bo", b"")):
        wire = Http1()
        wire.begin(GET)
        assert failure_of(wire, *contents) is FailureKind.CLOSED
    wire = Http1()
    wire.begin(GET)
    assert all_of(wire, b"HTTP/1.0 200 OK\r\n\r\nwhole", b"")[-1] == End()
    second = Http2()
    second.begin(GET)
    assert failure_of(second, b"") is FailureKind.CLOSED


def test_a_stream_that_is_reset() -> None:
    """REFUSED_STREAM and the like."""
    wire, server = Http2(), Server()
    server.take(wire.begin(GET))
    server.connection.reset_stream(1, h2.errors.ErrorCodes.REFUSED_STREAM)
    assert failure_of(wire, server.sent()) is FailureKind.RESET


@pytest.mark.parametrize(("last_stream", "code", "is_over"), [(0, 0, True), (1, 0, False), (1, 11, True)])
def test_a_server_that_says_goodbye(last_stream: int, code: int, *, is_over: bool) -> None:
    """Before it took our request, or for a reason, the answer will not come; else it may still."""
    wire, server = Http2(), Server()
    server.take(wire.begin(GET))
    server.connection.close_connection(error_code=code, last_stream_id=last_stream)
    if is_over:
        assert failure_of(wire, server.sent()) is FailureKind.CLOSED
    else:
        assert all_of(wire, server.sent()) == []


def goodbye(last_stream: int) -> bytes:
    """What a server says that is reloaded, or has answered as often as it will; our other end could say no more."""
    return GoAwayFrame(0, last_stream_id=last_stream).serialize()


@pytest.mark.parametrize("is_one_piece", [True, False])
@pytest.mark.parametrize("last_streams", [(1,), (2**31 - 1, 1)])
def test_the_answer_after_a_goodbye_is_read(last_streams: tuple[int, ...], *, is_one_piece: bool) -> None:
    """Before the head, and again in the middle of the body, with a ping to answer: the page is whole all the same."""
    wire, server = Http2(), Server()
    server.take(wire.begin(GET))
    farewell = b"".join(goodbye(last_stream) for last_stream in last_streams)
    settings = server.sent()
    server.connection.send_headers(1, [(":status", "200")])
    server.connection.send_data(1, b"bo")
    beginning = server.sent()
    server.connection.send_data(1, b"dy", end_stream=True)
    pieces = [settings, farewell, beginning, goodbye(1) + PingFrame(0, opaque_data=b"are you?").serialize()]
    pieces = [*pieces, server.sent()]
    events = all_of(wire, *([b"".join(pieces)] if is_one_piece else pieces))
    assert events == [Head(200, {}), b"bo", b"dy", End()]
    assert b"are you?" in wire.pending()


def test_a_goodbye_and_then_nothing() -> None:
    """The answer was promised and did not come: closed, in the middle of the body too."""
    for part in (b"", b"bo"):
        wire, server = Http2(), Server()
        server.take(wire.begin(GET))
        if part:
            server.connection.send_headers(1, [(":status", "200")])
            server.connection.send_data(1, part)
        assert failure_of(wire, server.sent(), goodbye(1), b"") is FailureKind.CLOSED


def begin_fails(wire: HttpWire) -> str:
    """Why no further request can be made; that is a failure of the contract, and no fault of the program."""
    with pytest.raises(MeasurementFailedError) as caught:
        wire.begin(POST)
    assert (caught.value.failure.operation, caught.value.failure.kind) == (Operation.REQUEST, FailureKind.CLOSED)
    return caught.value.failure.detail


@pytest.mark.parametrize("is_read_to_its_end", [True, False])
def test_after_a_goodbye_nothing_more_is_asked(*, is_read_to_its_end: bool) -> None:
    """RFC 9113 section 6.8; also where the answer before it was all that somebody read."""
    wire, server = Http2(), Server()
    server.take(wire.begin(GET))
    for event in wire.feed(server.answer(1, b"body") + goodbye(1)):
        if isinstance(event, End) and not is_read_to_its_end:
            break
    assert "goodbye" in begin_fails(wire)


@pytest.mark.parametrize(
    ("setting", "words"),
    [(SettingCodes.MAX_CONCURRENT_STREAMS, "streams"), (SettingCodes.INITIAL_WINDOW_SIZE, "window")],
)
def test_a_server_that_lets_no_second_request_in(setting: SettingCodes, words: str) -> None:
    """It says so in its settings, which arrive with the first answer."""
    wire, server = Http2(), Server()
    server.take(wire.begin(GET))
    server.connection.update_settings({setting: 0})
    settings = server.sent()
    assert all_of(wire, settings + server.answer(1, b""))[-1] == End()
    assert words in begin_fails(wire)


@pytest.mark.parametrize(
    ("contents", "events"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"], 2),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"], 2),
        ([HEAD + b"bo"], 2),
        ([], 0),
    ],
)
def test_http_1_that_takes_no_second_request(contents: list[bytes], events: int) -> None:
    """A server that closes after its answer, an older one, and one that still owes the answer or half of it."""
    wire = Http1()
    wire.begin(POST)
    assert len(all_of(wire, *contents)) == events
    assert "reusable" in begin_fails(wire)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_break_the_wires(noise: bytes, is_2: Any) -> None:
    """Noise, bare or behind a good beginning, gives events or a failure of the contract, never anything else."""
    beginning = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" if is_2 else b"HTTP/1.1 200 OK\r\n"
    for content in (noise, beginning + noise):
        wire = new_wire("2" if is_2 else "1.1")
        wire.begin(GET)
        try:
            all_of(wire, content, b"")
        except MeasurementFailedError:
            continue
