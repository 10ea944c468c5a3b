"""What can be learned of a resolver beside its answer: whether it validates, who it is, where it asks from.

Each is one more light question, and none can fail a measurement: what was not learned is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.exchange import Answer
from probe.flows.dns.message import NO_ERROR, SERVER_FAILURE, RecordType, Wishes, printable
from probe.flows.dns.query import question_for
from probe.flows.dns.session import Session

DnssecState = Literal["authenticated", "unsigned", "signed_not_validated", "bogus"]

# RFC 4892 section 3, and the older name that BIND began with.
_IDENTITY_NAMES: Final = ("id.server", "hostname.bind")
_DNSSEC: Final = Wishes(wants_signatures=True)
_UNCHECKED: Final = Wishes(wants_signatures=True, checks_disabled=True)
_NSID: Final = Wishes(wants_nsid=True)
_CHAOS: Final = Wishes(is_chaos=True)

# Questions at most: two for the state, one for the NSID and one for each name of identity, two for the place.
DNSSEC_QUESTIONS: Final = 2
IDENTITY_QUESTIONS: Final = 1 + len(_IDENTITY_NAMES)
EGRESS_QUESTIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a resolver says that it is: by its EDNS option (RFC 5001), and by name (RFC 4892)."""

    nsid: str | None = None
    server_id: str | None = None


async def dnssec_state(session: Session, given: Answer, name: str, record_type: RecordType) -> DnssecState | None:
    """Whether the resolver validated what it gave (RFC 4035); absent when it did not say.

    Its word (the AD bit) is as good as the way to it: over UDP anyone on the line can set it.
    """
    if given.rcode == SERVER_FAILURE:
        return "bogus" if await _is_bogus(session, name, record_type) else None
    answer = await _try(session, name, record_type, _DNSSEC) if given.rcode == NO_ERROR else None
    if answer is None or answer.rcode != NO_ERROR:
        return None
    if answer.reply.is_authenticated:
        return "authenticated"
    return "signed_not_validated" if answer.reply.is_signed else "unsigned"


async def _is_bogus(session: Session, name: str, record_type: RecordType) -> bool:
    """Whether one that answered SERVFAIL has the records, and only they do not validate (RFC 4035 section 5.5).

    One that did not get them in time says SERVFAIL too, and may have them a moment later. So what it gives once
    checking is disabled must bear signatures, which alone can be wrong, and with checking it must refuse once more.
    """
    unchecked = await _try(session, name, record_type, _UNCHECKED)
    if unchecked is None or unchecked.rcode != NO_ERROR or not unchecked.reply.is_signed:
        return False
    again = await _try(session, name, record_type, Wishes())
    return again is not None and again.rcode == SERVER_FAILURE


async def identity(session: Session, name: str, record_type: RecordType) -> Identity:
    """Who it says that it is."""
    answer = await _try(session, name, record_type, _NSID)
    nsid = None if answer is None else answer.reply.nsid
    for own_name in _IDENTITY_NAMES:
        answer = await _try(session, own_name, "TXT", _CHAOS)
        if answer is not None and answer.addresses:
            return Identity(nsid, printable(answer.addresses[0]))
    return Identity(nsid)


async def egress(session: Session, whoami_name: str) -> str | None:
    """What a name that answers with the asker's own address says: from where the resolver asks on our behalf."""
    for record_type in ("A", "TXT"):
        answer = await _try(session, whoami_name, record_type, Wishes())
        if answer is not None and answer.addresses:
            return printable(answer.addresses[0])
    return None


async def _try(session: Session, name: str, record_type: RecordType, wishes: Wishes) -> Answer | None:
    try:
        return await session.ask(question_for(name, record_type, wishes))
    except (MeasurementFailedError, NotRunError):  # the latter: the link went down meanwhile
        return None
