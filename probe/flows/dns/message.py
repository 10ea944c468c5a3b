"""DNS messages to bytes and back (RFC 1035): the only place that knows dnspython.

dnspython is imported inside the functions: it costs 6 MB of memory, and a probe that resolves nothing need not pay.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from probe.errors import MeasurementFailedError
from probe.messages import FailureKind, Operation

if TYPE_CHECKING:
    import dns.message

RecordType = Literal["A", "AAAA", "TXT"]

NO_ERROR: Final = "NOERROR"
SERVER_FAILURE: Final = "SERVFAIL"
# The size that fragments nowhere (DNS flag day 2020); also what dnspython and the resolvers use.
_EDNS_PAYLOAD_BYTES: Final = 1232
# A server's name of itself is for a person to read.
_TEXT_CHARACTERS_MAX: Final = 128
# RFC 1035 section 4.1.1. What is not here is a server that cannot cope with a plain question.
_KIND_OF_RCODE: Final[dict[str, FailureKind]] = {
    "NXDOMAIN": FailureKind.NAME_NOT_FOUND,
    SERVER_FAILURE: FailureKind.SERVER_FAILURE,
    "REFUSED": FailureKind.QUERY_REFUSED,
}


class NotTheAnswerError(Exception):
    """The bytes are an answer to something else: another id, another question. Keep waiting."""


class UnreadableError(Exception):
    """The bytes are no DNS message at all, or one that is cut where there is room for all of it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one message says: its response code, the records asked for, and whether it was cut short.

    `addresses` are the records at the end of the CNAME chain, as text; `ttl_s` is the smallest time that they may be
    kept, absent without records. `is_authenticated` is the AD bit (RFC 4035 section 3.2.3), `is_signed` whether
    signatures came along. `nsid` is the server's name of itself (RFC 5001), absent when it gave none.
    """

    rcode: str
    addresses: tuple[str, ...]
    truncated: bool
    wire_bytes: int
    ttl_s: int | None = None
    is_authenticated: bool = False
    is_signed: bool = False
    nsid: str | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to ask for beside the record.

    All off is a plain question without EDNS, as the C library asks: some home routers answer one with EDNS with
    FORMERR or not at all. A client subnet (RFC 7871) is never sent.

    `wants_signatures` is the DO bit (RFC 3225), `checks_disabled` the CD bit (RFC 4035 section 3.2.2), `wants_nsid`
    asks for the server's name of itself, `is_chaos` asks in class CHAOS, where servers tell of themselves (RFC 4892).
    """

    wants_signatures: bool = False
    checks_disabled: bool = False
    wants_nsid: bool = False
    is_chaos: bool = False


_PLAIN: Final = Wishes()


@functools.cache
def load() -> None:
    """Import dnspython now, so that no measurement waits for it: a tenth of a second on a small computer."""
    for kind in ("A", "AAAA"):
        # dnspython imports the code of a record type when it meets the first record.
        importlib.import_module(f"dns.rdtypes.IN.{kind}")
    with contextlib.suppress(NotTheAnswerError):
        question = Question(".", "A", Wishes(wants_nsid=True))
        question.read(question.wire)


class Question:
    """One question with an id of its own. Every try asks a new one, so that a late or forged answer cannot fit.

    Raises:
        ValueError: `name` is not a domain name.
    """

    def __init__(self, name: str, record_type: RecordType, wishes: Wishes = _PLAIN) -> None:
        import dns.exception  # noqa: PLC0415 - 6 MB, only when needed
        import dns.flags  # noqa: PLC0415 - as above
        import dns.message  # noqa: PLC0415 - as above

        try:
            # The id is random (dnspython draws it from the system's generator).
            self._query = dns.message.make_query(_absolute(name), record_type, "CH" if wishes.is_chaos else "IN")
        except (dns.exception.DNSException, UnicodeError) as error:
            raise ValueError(f"{name!r} is not a domain name: {error}") from error
        if wishes.wants_signatures or wishes.wants_nsid:
            self._add_edns(wishes)
        if wishes.checks_disabled:
            self._query.flags |= dns.flags.CD
        self.wire: bytes = self._query.to_wire()

    def wire_with_id_0(self) -> bytes:
        """As it goes over HTTP, where the same question is to be the same bytes (RFC 8484 section 4.1)."""
        self._query.id = 0
        self.wire = self._query.to_wire()
        return self.wire

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
        addresses, ttl_s = ((), None) if truncated else _records(message)
        return Reply(
            rcode=dns.rcode.to_text(message.rcode()),
            addresses=addresses,
            truncated=truncated,
            wire_bytes=len(wire),
            ttl_s=ttl_s,
            is_authenticated=bool(message.flags & dns.flags.AD),
            is_signed=_is_signed(message),
            nsid=_nsid(message),
        )

    def read_whole(self, wire: bytes) -> Reply:
        """Read an answer that came over a stream, which has room for all of it.

        One that is cut short there was cut elsewhere, by a forwarder that hands on what it got: what it leaves out is
        not "no such record", and nothing of it may be used (RFC 2181 section 9).

        Raises:
            NotTheAnswerError: it answers something else.
            UnreadableError: it is no DNS message, or cut short.
        """
        reply = self.read(wire)
        if reply.truncated:
            raise UnreadableError("cut short over a stream")
        return reply

    def _add_edns(self, wishes: Wishes) -> None:
        import dns.edns  # noqa: PLC0415 - 6 MB, only when needed
        import dns.flags  # noqa: PLC0415 - as above

        options: list[dns.edns.Option] = []
        if wishes.wants_nsid:
            options.append(dns.edns.GenericOption(dns.edns.OptionType.NSID, b""))
        self._query.use_edns(
            edns=0,
            ednsflags=dns.flags.DO if wishes.wants_signatures else 0,
            payload=_EDNS_PAYLOAD_BYTES,
            options=options,
        )


def check_rcode(rcode: str, server: str) -> None:
    """Accept NOERROR only.

    Raises:
        MeasurementFailedError: (resolve, name_not_found | server_failure | query_refused).
    """
    if rcode != NO_ERROR:
        kind = _KIND_OF_RCODE.get(rcode, FailureKind.SERVER_FAILURE)
        raise MeasurementFailedError(Operation.RESOLVE, kind, f"{server} answered {rcode}")


def _records(message: dns.message.Message) -> tuple[tuple[str, ...], int | None]:
    """The records at the end of the answer's CNAME chain (RFC 1034 section 3.6.2), and how long they may be kept."""
    import dns.exception  # noqa: PLC0415 - 6 MB, only when needed
    import dns.message  # noqa: PLC0415 - as above

    if not isinstance(message, dns.message.QueryMessage) or not message.question:
        return (), None
    try:
        chain = message.resolve_chaining()
    except dns.exception.DNSException as error:
        raise UnreadableError(_one_word(error)) from error
    if chain.answer is None:
        return (), None
    return tuple(record.to_text() for record in chain.answer), int(chain.minimum_ttl)


def _is_signed(message: dns.message.Message) -> bool:
    """Whether the answer, or the proof that there is none, bears signatures (RFC 4034 section 3)."""
    import dns.rdatatype  # noqa: PLC0415 - 6 MB, only when needed

    return any(part.rdtype == dns.rdatatype.RRSIG for part in (*message.answer, *message.authority))


def _nsid(message: dns.message.Message) -> str | None:
    import dns.edns  # noqa: PLC0415 - 6 MB, only when needed

    for option in message.options:
        if option.otype == dns.edns.OptionType.NSID:
            raw = option.to_wire() or b""
            return printable(raw.decode("ascii", "replace")) or None
    return None


def printable(text: str) -> str:
    """A server's words, bounded, without what no person could read."""
    return "".join(letter for letter in text if letter.isprintable())[:_TEXT_CHARACTERS_MAX].strip('"')


def _absolute(name: str) -> str:
    """The probe has no search list: every name is complete."""
    return name if name.endswith(".") else name + "."


def _one_word(error: BaseException) -> str:
    return type(error).__name__
