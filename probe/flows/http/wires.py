"""HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113) to bytes and back, one request at a time.

Alone knows h11 and, with `goodbye`, h2. Neither library touches a socket or a clock, so both stay ours. Each is
imported when the first wire of its version is made, which is before the request's clock starts: a probe that fetches
nothing holds neither, and one whose servers speak HTTP/1.1 alone does not hold h2 (1 MB with hpack).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from probe.errors import MeasurementFailedError
from probe.flows.http.messages import (
    End,
    Event,
    Head,
    HttpRequest,
    HttpWire,
    check_beginning,
    closed_early,
    takes_no_more,
    translated,
)
from probe.messages import FailureKind, Operation

if TYPE_CHECKING:
    import h2.events

# nginx and Apache take heads of 8 KiB; four times that is generous.
_HEAD_BYTES_MAX: Final = 32 * 1024
# How much an HTTP/2 server may have on the way to us: with the default of 64 KiB a page on a long path would measure
# the round trip. Browsers use some megabytes.
_WINDOW_BYTES: Final = 4 * 1024 * 1024
_HTTP_1: Final = b"HTTP/1."
# A server begins with a SETTINGS frame (RFC 9113 section 3.4), whose type is the fourth byte (section 4.1).
_FRAME_TYPE_AT: Final = 3
_SETTINGS: Final = b"\x04"


def new_wire(version: str) -> HttpWire:
    """For a connection on which ALPN settled `version`: `2`, or else `1.1`."""
    return Http2() if version == "2" else Http1()


class Http1:
    """HTTP/1.1 by h11."""

    def __init__(self) -> None:
        import h11  # noqa: PLC0415 - see the module's docstring

        self._connection = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        self._beginning = b""

    def begin(self, request: HttpRequest) -> bytes:
        """The bytes of a request."""
        import h11  # noqa: PLC0415 - see the module's docstring

        if self._connection.our_state is not h11.IDLE:
            try:
                self._connection.start_next_cycle()
            except h11.LocalProtocolError as error:  # the server closes after its answer, or has not given it yet
                raise takes_no_more(str(error)) from error
            self._beginning = b""
        headers = [("host", request.authority), *request.headers]
        if request.body:
            headers.append(("content-length", str(len(request.body))))
        content = self._connection.send(
            h11.Request(method=request.method, target=request.target, headers=_in_latin(headers))
        )
        if request.body:
            content = (content or b"") + (self._connection.send(h11.Data(data=request.body)) or b"")
        return (content or b"") + (self._connection.send(h11.EndOfMessage()) or b"")

    def feed(self, content: bytes) -> Iterator[Event]:
        """What arrived. What came before something malformed is still told."""
        if len(self._beginning) < len(_HTTP_1):
            self._beginning += content
            check_beginning(self._beginning, _HTTP_1)
        with translated("h11", has_ended=not content):
            self._connection.receive_data(content)
            yield from self._events()

    def pending(self) -> bytes:
        """Nothing ever."""
        return b""

    def _events(self) -> Iterator[Event]:
        import h11  # noqa: PLC0415 - see the module's docstring

        while True:
            event = self._connection.next_event()
            if isinstance(event, h11.Response):
                yield Head(event.status_code, _in_text(event.headers))
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                yield End()
                return
            elif not isinstance(event, h11.InformationalResponse):  # NEED_DATA, PAUSED, ConnectionClosed
                return


class Http2:
    """HTTP/2 by h2."""

    def __init__(self) -> None:
        import h2.config  # noqa: PLC0415 - see the module's docstring
        import h2.connection  # noqa: PLC0415 - as above

        from probe.flows.http.goodbye import PatientMachine  # noqa: PLC0415 - as above

        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self._connection = h2.connection.H2Connection(config=config)
        self._machine = PatientMachine()
        self._connection.state_machine = self._machine
        self._stream = 0
        self._beginning = b""

    def begin(self, request: HttpRequest) -> bytes:
        """The bytes of a request, and the preface before the first."""
        import h2.exceptions  # noqa: PLC0415 - see the module's docstring
        import h2.settings  # noqa: PLC0415 - as above

        if self._machine.has_goodbye:
            raise takes_no_more("it said goodbye")
        if not self._stream:
            self._connection.local_settings = h2.settings.Settings(
                client=True,
                initial_values={
                    h2.settings.SettingCodes.ENABLE_PUSH: 0,
                    h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES,
                    h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: _HEAD_BYTES_MAX,
                },
            )
            self._connection.initiate_connection()
            self._connection.increment_flow_control_window(_WINDOW_BYTES)
        self._stream = self._connection.get_next_available_stream_id()
        headers = [
            (":method", request.method),
            (":authority", request.authority),
            (":scheme", request.scheme),
            (":path", request.target),
            *request.headers,
        ]
        if request.body:
            headers.append(("content-length", str(len(request.body))))
        try:
            self._connection.send_headers(self._stream, headers, end_stream=not request.body)
            if request.body:  # a DNS question: far smaller than any window, but for one that a server has shut
                self._connection.send_data(self._stream, request.body, end_stream=True)
        except h2.exceptions.ProtocolError as error:  # no more streams, no window, closed for an error
            raise takes_no_more(str(error)) from error
        return self.pending()

    def feed(self, content: bytes) -> Iterator[Event]:
        """What arrived."""
        if not content:
            raise closed_early()
        if len(self._beginning) <= _FRAME_TYPE_AT:
            self._beginning += content
            check_beginning(self._beginning[_FRAME_TYPE_AT:], _SETTINGS)
        with translated("h2", has_ended=False):
            for event in self._connection.receive_data(content):
                said = self._event(event)
                if said is not None:
                    yield said

    def pending(self) -> bytes:
        """Acknowledgements and windows."""
        return self._connection.data_to_send() or b""

    def _event(self, event: h2.events.Event) -> Event | None:
        import h2.events as known  # noqa: PLC0415 - see the module's docstring

        if isinstance(event, known.ConnectionTerminated):
            self._check_goaway(event)
        if getattr(event, "stream_id", None) != self._stream:
            return None
        if isinstance(event, known.StreamReset):
            detail = f"the server reset the stream: {_code(event.error_code)}"
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.RESET, detail)
        if isinstance(event, known.ResponseReceived):
            headers = _in_text(event.headers)
            return Head(int(headers.pop(":status", "")), headers)
        if isinstance(event, known.DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length, self._stream)
            return event.data
        return End() if isinstance(event, known.StreamEnded) else None

    def _check_goaway(self, event: h2.events.ConnectionTerminated) -> None:
        """GOAWAY. A server may say so while it still answers what it has taken (RFC 9113 section 6.8)."""
        if event.error_code or (event.last_stream_id or 0) < self._stream:
            detail = f"the server ended the connection: {_code(event.error_code)}"
            raise MeasurementFailedError(Operation.REQUEST, FailureKind.CLOSED, detail)


def _code(error_code: Any) -> str:
    return str(getattr(error_code, "name", error_code))


def _in_latin(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _in_text(headers: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    return {bytes(name).decode("latin-1").lower(): bytes(value).decode("latin-1") for name, value in headers}
