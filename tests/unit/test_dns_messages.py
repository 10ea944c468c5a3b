"""DNS messages: which bytes answer a question, and which do not."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.clock import NS_PER_S
from probe.errors import MeasurementFailedError
from probe.flows.dns.message import NotTheAnswerError, Question, UnreadableError, Wishes, check_rcode, printable
from probe.flows.http.channel import arrival_ns
from probe.flows.moments import Moment
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


SENT = Moment(wall_ns=1_000 * NS_PER_S, monotonic_ns=50 * NS_PER_S)
MS = 1_000_000


def later(wall_ms: int, monotonic_ms: int) -> Moment:
    """A moment after SENT, on both clocks."""
    return Moment(SENT.wall_ns + wall_ms * MS, SENT.monotonic_ns + monotonic_ms * MS)


def passed_ns(read: Moment, stamp_ns: int | None) -> int:
    """How long after SENT something arrived."""
    return arrival_ns(SENT, stamp_ns, read) - SENT.monotonic_ns


def test_the_kernels_stamp_beats_a_late_reader() -> None:
    """Python read it 9 ms late; the packet came after 3 ms."""
    assert passed_ns(later(12, 12), SENT.wall_ns + 3 * MS) == 3 * MS


def test_a_stepped_clock_takes_the_stamp_out_of_use() -> None:
    """The wall clock was set forward by an hour, or back, between question and answer."""
    assert passed_ns(later(3_600_012, 12), SENT.wall_ns + 3_600_003 * MS) == 12 * MS
    assert passed_ns(later(-3_600_000, 12), SENT.wall_ns - 3_600_005 * MS) == 12 * MS


def test_without_a_stamp_the_monotonic_clock_says() -> None:
    """A kernel without stamps, or a stamp from before the question."""
    assert passed_ns(later(12, 12), None) == 12 * MS
    assert passed_ns(later(12, 12), SENT.wall_ns - MS) == 12 * MS


def asked(question: Question) -> dns.message.Message:
    """What a server reads."""
    return dns.message.from_wire(question.wire)


def test_a_plain_question_bears_nothing_that_a_router_could_stumble_over() -> None:
    """No EDNS, no CD, class IN: 12 bytes of header and the name, 4 of type and class."""
    question = Question(NAME, "A")
    assert len(question.wire) == 12 + len(NAME) + 1 + 4
    assert asked(question).edns == -1


def test_each_wish_is_one_mark_on_the_wire() -> None:
    """DO, CD, NSID without content, class CHAOS; never a client subnet."""
    signed = asked(Question(NAME, "A", Wishes(wants_signatures=True, checks_disabled=True)))
    assert signed.ednsflags & dns.flags.DO
    assert signed.flags & dns.flags.CD
    assert not signed.options
    named = asked(Question(NAME, "A", Wishes(wants_nsid=True)))
    assert [(option.otype, option.to_wire()) for option in named.options] == [(dns.edns.OptionType.NSID, b"")]
    assert not named.ednsflags & dns.flags.DO
    chaos = asked(Question("id.server", "TXT", Wishes(is_chaos=True)))
    assert chaos.question[0].rdclass == dns.rdataclass.CH


def test_what_a_validating_server_says_is_read() -> None:
    """AD, signatures, NSID, and the smallest TTL of chain and record."""
    question = Question(NAME, "A", Wishes(wants_signatures=True, wants_nsid=True))
    response = answered(question, "peer.test. CNAME real.test.", "real.test. A 192.0.2.1")
    response.answer[0].ttl = 7
    response.answer.append(
        dns.rrset.from_text("real.test.", 60, "IN", "RRSIG", "A 13 2 60 20300101000000 20200101000000 1 test. AAAA")
    )
    response.flags |= dns.flags.AD
    response.use_edns(options=[dns.edns.GenericOption(dns.edns.OptionType.NSID, b"hn-1\x00\xff")])
    reply = question.read(response.to_wire())
    assert (reply.is_authenticated, reply.is_signed, reply.ttl_s) == (True, True, 7)
    assert reply.nsid == "hn-1\ufffd"


def test_nothing_said_is_nothing_read() -> None:
    """Without AD, signatures, NSID or records."""
    question = Question(NAME, "A")
    reply = question.read(answered(question).to_wire())
    assert (reply.is_authenticated, reply.is_signed, reply.ttl_s, reply.nsid) == (False, False, None, None)


def test_the_id_over_https_is_0() -> None:
    """RFC 8484 section 4.1, and the answer to it is taken."""
    question = Question(NAME, "A")
    assert question.wire_with_id_0()[:2] == b"\0\0"
    assert question.read(answered(question, "peer.test. A 192.0.2.1").to_wire()).addresses == ("192.0.2.1",)


def test_a_servers_words_are_bounded() -> None:
    """What a stranger sends is stored, so it is short and printable."""
    assert printable('"hn-1"') == "hn-1"
    assert printable("a\n\x1b[31mb") == "a[31mb"
    assert len(printable("x" * 10_000)) == 128
