"""What HTTP says, whatever its version: requests, heads, ends, and what the libraries that speak it complain of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from probe.errors import MeasurementFailedError
from probe.messages import FailureKind, Operation

# Every exception class of h11 and h2, by name, and what it says of the other side. What we did wrong ourselves is a
# fault of the program and is not translated.
KIND_OF_ERROR: Final[dict[str, FailureKind | None]] = {
    "h11.ProtocolError": FailureKind.MALFORMED,
    "h11.RemoteProtocolError": FailureKind.MALFORMED,
    "h11.LocalProtocolError": None,
    "h2.H2Error": FailureKind.MALFORMED,
    "h2.ProtocolError": FailureKind.MALFORMED,
    "h2.FrameTooLargeError": FailureKind.MALFORMED,
    "h2.FrameDataMissingError": FailureKind.MALFORMED,
    "h2.TooManyStreamsError": FailureKind.PEER_BUSY,
    "h2.FlowControlError": FailureKind.MALFORMED,
    "h2.StreamIDTooLowError": FailureKind.MALFORMED,
    "h2.NoAvailableStreamIDError": None,
    "h2.NoSuchStreamError": FailureKind.MALFORMED,
    "h2.StreamClosedError": FailureKind.RESET,
    "h2.InvalidSettingsValueError": FailureKind.MALFORMED,
    "h2.InvalidBodyLengthError": FailureKind.MALFORMED,
    "h2.UnsupportedFrameError": FailureKind.MALFORMED,
    "h2.RFC1122Error": None,
    "h2.DenialOfServiceError": FailureKind.MALFORMED,
}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What to ask: GET without a body, POST with one. `target` is path and query; `headers` are in lower case."""

    scheme: str
    authority: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    @property
    def method(self) -> str:
        """By the body."""
        return "POST" if self.body else "GET"


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a final response. Of a header that came twice the last one counts."""

    status: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class End:
    """The response is complete."""


Event = Head | bytes | End


class HttpWire(Protocol):
    """One connection's requests and responses, in turn."""

    def begin(self, request: HttpRequest) -> bytes:
        """The bytes of a request.

        Raises:
            MeasurementFailedError: (request, closed) after earlier ones on this connection, it takes no more.
        """

    def feed(self, content: bytes) -> Iterator[Event]:
        """What arrived, said piece by piece; empty content is the end of the connection.

        Raises:
            MeasurementFailedError: (request, malformed | closed | reset | peer_busy).
        """

    def pending(self) -> bytes:
        """What the protocol itself has to send now: acknowledgements, windows."""


@contextmanager
def translated(library: str, *, has_ended: bool) -> Iterator[None]:
    """What a library raises about the other side, in the contract's words.

    Bytes that it could not make sense of may surface as a ValueError of Python's own.
    """
    try:
        yield
    except MeasurementFailedError:
        raise
    except Exception as error:
        name = type(error).__name__
        kind = KIND_OF_ERROR.get(f"{library}.{name}", FailureKind.MALFORMED if isinstance(error, ValueError) else None)
        if kind is None:
            raise
        if has_ended:
            raise closed_early() from error
        raise malformed(str(error), kind) from error


def check_beginning(received: bytes, wanted: bytes) -> None:
    """Notice at once what will never become an answer.

    Raises:
        MeasurementFailedError: (request, malformed).
    """
    if not wanted.startswith(received[: len(wanted)]):
        raise malformed(f"it begins with {received[:40]!r}")


def malformed(detail: str, kind: FailureKind = FailureKind.MALFORMED) -> MeasurementFailedError:
    """The other side does not speak HTTP as it should."""
    return MeasurementFailedError(Operation.REQUEST, kind, f"not HTTP as it should be: {detail}")


def takes_no_more(detail: str) -> MeasurementFailedError:
    """The other side has answered on this connection, and is open to no further request."""
    return MeasurementFailedError(
        Operation.REQUEST, FailureKind.CLOSED, f"the server takes no further request on this connection: {detail}"
    )


def closed_early() -> MeasurementFailedError:
    """The other side closed in the middle."""
    detail = "the server closed the connection before its answer was complete"
    return MeasurementFailedError(Operation.REQUEST, FailureKind.CLOSED, detail)
