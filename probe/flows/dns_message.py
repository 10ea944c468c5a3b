"""DNS messages to bytes and back (RFC 1035): the only place that knows dnspython.

dnspython is imported inside the functions: it costs 6 MB of memory, and a probe that resolves nothing need not pay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from probe.errors import MeasurementFailedError
from probe.messages import FailureKind, Operation

if TYPE_CHECKING:
    import dns.message

RecordType = Literal["A", "AAAA"]

_NO_ERROR: Final = "NOERROR"
# RFC 1035 section 4.1.1. What is not here is a server that cannot cope with a plain question.
_KIND_OF_RCODE: Final[dict[str, FailureKind]] = {
    "NXDOMAIN": FailureKind.NAME_NOT_FOUND,
    "SERVFAIL": FailureKind.SERVER_FAILURE,
    "REFUSED": FailureKind.QUERY_REFUSED,
}


class NotTheAnswerError(Exception):
    """The bytes are an answer to something else: another id, another question. Keep waiting."""


class UnreadableError(Exception):
    """The bytes are no DNS message at all."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one message says: its response code, the addresses asked for, and whether it was cut short."""

    rcode: str
    addresses: tuple[str, ...]
    truncated: bool
    wire_bytes: int


class Question:
    """One question with an id of its own. Every try asks a new one, so that a late or forged answer cannot fit.

    Raises:
        ValueError: `name` is not a domain name.
    """

    def __init__(self, name: str, record_type: RecordType) -> None:
        import dns.exception  # noqa: PLC0415 - 6 MB, only when needed
        import dns.message  # noqa: PLC0415 - as above

        try:
            # Without EDNS, as the C library asks: some home routers answer an EDNS question with FORMERR or not at
            # all. The id is random (dnspython draws it from the system's generator).
            self._query = dns.message.make_query(_absolute(name), record_type)
        except (dns.exception.DNSException, UnicodeError) as error:
            raise ValueError(f"{name!r} is not a domain name: {error}") from error
        self.wire: bytes = self._query.to_wire()

    def read(self, wire: bytes) -> Reply:
        """Read the answer to this question.

        Raises:
            NotTheAnswerError: it answers something else.
            UnreadableError: it is no DNS message.
        """
        import dns.exception  # noqa: PLC0415 - 6 MB, only when needed
        import dns.flags  # noqa: PLC0415 - as above
        import dns.message  # noqa: PLC0415 - as above
        import dns.rcode  # noqa: PLC0415 - as above

        try:
            # A message cut short may end inside a record, so errors are collected instead of raised.
            message = dns.message.from_wire(wire, continue_on_error=True, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError) as error:
            raise UnreadableError(_one_word(error)) from error
        if not self._query.is_response(message):
            raise NotTheAnswerError
        truncated = bool(message.flags & dns.flags.TC)
        if message.errors and not truncated:
            raise UnreadableError(_one_word(message.errors[0].exception))
        return Reply(
            rcode=dns.rcode.to_text(message.rcode()),
            addresses=() if truncated else _addresses(message),
            truncated=truncated,
            wire_bytes=len(wire),
        )


def check_rcode(rcode: str, server: str) -> None:
    """Accept NOERROR only.

    Raises:
        MeasurementFailedError: (resolve, name_not_found | server_failure | query_refused).
    """
    if rcode != _NO_ERROR:
        kind = _KIND_OF_RCODE.get(rcode, FailureKind.SERVER_FAILURE)
        raise MeasurementFailedError(Operation.RESOLVE, kind, f"{server} answered {rcode}")


def _addresses(message: dns.message.Message) -> tuple[str, ...]:
    """The addresses at the end of the answer's CNAME chain (RFC 1034 section 3.6.2)."""
    import dns.exception  # noqa: PLC0415 - 6 MB, only when needed
    import dns.message  # noqa: PLC0415 - as above

    if not isinstance(message, dns.message.QueryMessage) or not message.question:
        return ()
    try:
        found = message.resolve_chaining().answer
    except dns.exception.DNSException as error:
        raise UnreadableError(_one_word(error)) from error
    return () if found is None else tuple(record.to_text() for record in found)


def _absolute(name: str) -> str:
    """The probe has no search list: every name is complete."""
    return name if name.endswith(".") else name + "."


def _one_word(error: BaseException) -> str:
    return type(error).__name__
