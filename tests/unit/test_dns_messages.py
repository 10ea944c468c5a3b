"""DNS messages: which bytes answer a question, and which do not."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError
from probe.flows.dns import _Moment, _passed_ns
from probe.flows.dns_message import NotTheAnswerError, Question, UnreadableError, check_rcode
from probe.messages import FailureKind

NAME = "peer.test."


def answered(question: Question, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR) -> dns.message.Message:
    """The response to a question, with records written as `name type value`."""
    response = dns.message.make_response(dns.message.from_wire(question.wire))
    response.set_rcode(rcode)
    for record in records:
        name, record_type, value = record.split()
        response.answer.append(dns.rrset.from_text(name, 60, "IN", record_type, value))
    return response


def test_addresses_are_read() -> None:
    """An A record for the name that was asked."""
    question = Question("peer.test", "A")
    reply = question.read(answered(question, "peer.test. A 192.0.2.1").to_wire())
    assert (reply.rcode, reply.addresses, reply.truncated) == ("NOERROR", ("192.0.2.1",), False)


def test_the_alias_is_followed_and_strangers_are_not() -> None:
    """Only what stands at the end of the CNAME chain counts; a record of another name is no answer."""
    question = Question(NAME, "AAAA")
    response = answered(
        question, "peer.test. CNAME real.test.", "real.test. AAAA 2001:db8::7", "other.test. AAAA 2001:db8::bad"
    )
    assert question.read(response.to_wire()).addresses == ("2001:db8::7",)


def test_an_alias_that_goes_round_is_unreadable() -> None:
    """A CNAME loop ends."""
    question = Question(NAME, "A")
    response = answered(question, "peer.test. CNAME a.test.", "a.test. CNAME peer.test.")
    with pytest.raises(UnreadableError):
        question.read(response.to_wire())


def test_each_question_has_an_id_of_its_own() -> None:
    """Thirty-two questions with the same id would be a forger's delight."""
    assert len({Question(NAME, "A").wire[:2] for _ in range(32)}) > 24


def test_an_answer_to_something_else_is_not_the_answer() -> None:
    """Another id, another name, another type, or no response at all."""
    question = Question(NAME, "A")
    strange = answered(question, "peer.test. A 192.0.2.66")
    strange.id ^= 1
    for other in (
        strange.to_wire(),
        question.wire[:2] + answered(Question("evil.test", "A")).to_wire()[2:],
        question.wire[:2] + answered(Question(NAME, "AAAA")).to_wire()[2:],
        question.wire,
    ):
        with pytest.raises(NotTheAnswerError):
            question.read(other)


def test_a_cut_answer_says_so_even_in_the_middle_of_a_record() -> None:
    """With TC set nothing of the content is used, and a broken end is no error."""
    question = Question(NAME, "A")
    response = answered(question, "peer.test. A 192.0.2.1")
    response.flags |= dns.flags.TC
    reply = question.read(response.to_wire()[:-2])
    assert reply.truncated
    assert reply.addresses == ()


def test_a_broken_record_without_the_cut_mark_is_unreadable() -> None:
    """Half an address is not an address."""
    question = Question(NAME, "A")
    with pytest.raises(UnreadableError):
        question.read(answered(question, "peer.test. A 192.0.2.1").to_wire()[:-2])


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(noise: bytes) -> None:
    """Noise, bare or behind a matching id, is refused in one of two ways."""
    question = Question(NAME, "A")
    for wire in (noise, question.wire[:2] + noise, answered(question).to_wire() + noise):
        try:
            question.read(wire)
        except (NotTheAnswerError, UnreadableError):
            continue


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".test", ".".join(["label"] * 60)])
def test_a_name_that_is_none_cannot_be_asked(name: str) -> None:
    """Empty and overlong labels, overlong names."""
    if name == "":
        assert Question(name, "A").wire  # the root is a name
        return
    with pytest.raises(ValueError, match="domain name"):
        Question(name, "A")


@pytest.mark.parametrize(
    ("rcode", "kind"),
    [
        ("NXDOMAIN", FailureKind.NAME_NOT_FOUND),
        ("SERVFAIL", FailureKind.SERVER_FAILURE),
        ("REFUSED", FailureKind.QUERY_REFUSED),
        ("FORMERR", FailureKind.SERVER_FAILURE),
        ("NOTIMP", FailureKind.SERVER_FAILURE),
    ],
)
def test_each_error_code_has_its_kind(rcode: str, kind: FailureKind) -> None:
    """RFC 1035 section 4.1.1."""
    with pytest.raises(MeasurementFailedError) as caught:
        check_rcode(rcode, "192.0.2.53")
    assert caught.value.failure.kind is kind
    check_rcode("NOERROR", "192.0.2.53")


SENT = _Moment(wall_ns=1_000 * NS_PER_S, monotonic_ns=50 * NS_PER_S)
MS = 1_000_000


def later(wall_ms: int, monotonic_ms: int) -> _Moment:
    """A moment after SENT, on both clocks."""
    return _Moment(SENT.wall_ns + wall_ms * MS, SENT.monotonic_ns + monotonic_ms * MS)


def test_the_kernels_stamp_beats_a_late_reader() -> None:
    """Python read it 9 ms late; the packet came after 3 ms."""
    assert _passed_ns(SENT, later(12, 12), SENT.wall_ns + 3 * MS) == 3 * MS


def test_a_stepped_clock_takes_the_stamp_out_of_use() -> None:
    """The wall clock was set forward by an hour, or back, between question and answer."""
    assert _passed_ns(SENT, later(3_600_012, 12), SENT.wall_ns + 3_600_003 * MS) == 12 * MS
    assert _passed_ns(SENT, later(-3_600_000, 12), SENT.wall_ns - 3_600_005 * MS) == 12 * MS


def test_without_a_stamp_the_monotonic_clock_says() -> None:
    """A kernel without stamps, or a stamp from before the question."""
    assert _passed_ns(SENT, later(12, 12), None) == 12 * MS
    assert _passed_ns(SENT, later(12, 12), SENT.wall_ns - 1) == 12 * MS
