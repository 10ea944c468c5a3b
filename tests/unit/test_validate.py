from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_kit import AGENT, SPACE, START_UNIX_NS, TASKS, GaugeValues, altered, fleet, report, result, validate

from fleet_controller.fleet.model import Fleet, FleetLink, FleetPeer, FleetProbe
from fleet_controller.records import RejectReason
from fleet_controller.validate import EARLIEST_UNIX_NS, FUTURE_TOLERANCE_NS, STRING_BYTES_MAX, Validator, refused
from probe.messages import (
    PACKET_BYTES_MAX,
    ClockReading,
    ClockState,
    Failure,
    FailureKind,
    NotRun,
    NotRunReason,
    Operation,
    encode,
    shard_of,
    topic,
)


def test_a_good_result_is_typed_and_tagged(tmp_path: Path) -> None:
    """Values come out in the task's own type, tags from the fleet file and the task's words, and nothing else."""
    verdict = validate(tmp_path, report(result()))
    assert not verdict.rejected
    (one,) = verdict.accepted
    assert one.values == GaugeValues(packets_sent=10, delay_median_s=3.0)
    assert one.tags == {
        "agent_id": AGENT, "link": "fixed", "province": "ha_noi", "operator": "viettel", "access": "fixed",
        "peer": "near", "scope": "domestic", "direction": "download", "ip_version": "4",
    }  # fmt: skip
    assert verdict.taken is not None
    assert (verdict.taken.sequence_space, verdict.taken.sequences) == (SPACE, [1])


def test_failures_and_what_was_not_run_need_no_values(tmp_path: Path) -> None:
    """A failure is data and a run that was not made is a message: both are accepted, even without a link."""
    failed = result(failure=Failure(operation=Operation.CONNECT, kind=FailureKind.REFUSED))
    skipped = result(link=None, peer=None, variant={}, not_run=NotRun(reason=NotRunReason.MISSED))
    verdict = validate(tmp_path, report(failed, skipped))
    assert [one.values for one in verdict.accepted] == [None, None]
    assert verdict.accepted[1].tags == {"agent_id": AGENT, "province": "ha_noi"}


def test_unknown_members_are_skipped(tmp_path: Path) -> None:
    """A newer agent may say more: at every level, what is not known is skipped."""
    richer = altered(result(values={"packets_sent": 1, "new_figure": 2}), new_member={"deep": [1]})
    verdict = validate(tmp_path, altered(report(richer), new_member=1))
    assert len(verdict.accepted) == 1


WHOLE_MESSAGES: list[tuple[str, bytes, RejectReason, str]] = [
    ("nothing", b"", RejectReason.NOT_JSON, "truncated"),
    ("text", b"hello", RejectReason.NOT_JSON, "malformed"),
    ("bytes", bytes(range(256)), RejectReason.NOT_JSON, "malformed"),
    ("NaN", b'{"agent_id":"hn-01","sent_unix_ns":NaN}', RejectReason.NOT_JSON, "NaN, which JSON does not have"),
    ("Infinity", b'{"sent_unix_ns":Infinity}', RejectReason.NOT_JSON, "Infinity, which JSON does not have"),
    ("nested", b'{"x":' + b"[" * 100_000, RejectReason.NOT_JSON, "ecursion"),
    ("list", b"[1]", RejectReason.WRONG_TYPES, "Expected `object`"),
    ("null", b"null", RejectReason.WRONG_TYPES, "Expected `object`"),
    ("no members", b"{}", RejectReason.WRONG_TYPES, "agent_id"),
    ("entries", altered(report(), entries={"a": 1}), RejectReason.WRONG_TYPES, "$.entries"),
    ("floor", altered(report(), sequence_floor=0), RejectReason.WRONG_TYPES, "$.sequence_floor"),
    ("floor", altered(report(), sequence_floor=2**63), RejectReason.WRONG_TYPES, "$.sequence_floor"),
    ("space", altered(report(), sequence_space="x" * 1000), RejectReason.WRONG_TYPES, "$.sequence_space"),
    ("foreign", altered(report(), agent_id="hn-02"), RejectReason.FOREIGN_AGENT, "says 'hn-02'"),
    ("huge", b'"' + b"x" * 10_000_000 + b'"', RejectReason.TOO_LARGE, "10000002 bytes"),
    ("limit", b" " * (PACKET_BYTES_MAX + 1), RejectReason.TOO_LARGE, str(PACKET_BYTES_MAX)),
    ("future", b'{"schema_version":2,"entries":"in a new way"}', RejectReason.FUTURE_SCHEMA, "update the controller"),
]


@pytest.mark.parametrize(
    ("payload", "reason", "words"), [case[1:] for case in WHOLE_MESSAGES], ids=[case[0] for case in WHOLE_MESSAGES]
)
def test_a_bad_message_is_rejected_as_a_whole(tmp_path: Path, payload: bytes, reason: str, words: str) -> None:
    """Each kind of garbage gets a reason of the list and words for a person, and no number of it is trusted."""
    verdict = validate(tmp_path, payload)
    (one,) = verdict.rejected
    assert one.reason == reason
    assert words in one.detail
    assert "\n" not in one.detail
    assert one.payload == payload
    assert verdict.taken is None
    assert not verdict.accepted


def test_a_future_report_counts_as_taken(tmp_path: Path) -> None:
    """A newer agent's report is kept whole; its numbers are readable, so the agent may forget it."""
    verdict = validate(tmp_path, altered(report(result(), result(1), first=7, floor=7), schema_version=9))
    assert [one.reason for one in verdict.rejected] == [RejectReason.FUTURE_SCHEMA]
    assert "newer agent: update the controller, then replay" in verdict.rejected[0].detail
    assert verdict.taken is not None
    assert verdict.taken.sequences == [7, 8]


def test_an_agent_that_is_not_in_the_fleet_file(tmp_path: Path) -> None:
    """An agent that was installed before it was written down loses nothing."""
    verdict = validate(tmp_path, report(result(), agent_id="hn-99"), to=topic("hn-99", "report"))
    assert [one.reason for one in verdict.rejected] == [RejectReason.UNKNOWN_AGENT]
    assert verdict.taken is not None
    assert verdict.taken.sequences == [1]


@pytest.mark.parametrize(
    "name",
    [
        "fleet/v1/0/hn-01/report" if shard_of(AGENT) else "fleet/v1/1/hn-01/report",
        "fleet/v1/99/hn-01/report",
        topic(AGENT, "status"),
        "elsewhere",
        "",
    ],
)
def test_a_bad_topic(tmp_path: Path, name: str) -> None:
    """What does not stand under its agent's topic is not read any further."""
    verdict = Validator(fleet(tmp_path), TASKS).validate(name, encode(report(result())))
    assert [one.reason for one in verdict.rejected] == [RejectReason.BAD_TOPIC]


NOW_UNIX_NS = START_UNIX_NS + 86_400 * 10**9
TOMORROW = NOW_UNIX_NS + FUTURE_TOLERANCE_NS + 1
UNSTEERED = ClockReading(state=ClockState.UNSYNCHRONISED)
BAD_RESULTS: list[tuple[str, Any, RejectReason, str]] = [
    ("not an object", b"7", RejectReason.WRONG_TYPES, "result: Expected `object`"),
    ("two outcomes", altered(result(), not_run={"reason": "missed"}), RejectReason.WRONG_TYPES, "exactly one of"),
    ("no outcome", altered(result(), values=None), RejectReason.WRONG_TYPES, "exactly one of"),
    ("wrong type", altered(result(), start_unix_ns="now"), RejectReason.WRONG_TYPES, "$.start_unix_ns"),
    ("kind", altered(result(values={}), values=None, failure={"operation": "connect", "kind": "odd"}),
     RejectReason.WRONG_TYPES, "odd"),
    ("big bytes", altered(result(), bytes_sent=2**70), RejectReason.WRONG_TYPES, "64 bits"),
    ("task", result(task="teleport"), RejectReason.UNKNOWN_TASK, "no task 'teleport': update it"),
    ("link", result(link="fibre9"), RejectReason.UNKNOWN_LINK, "hn-01 has no link 'fibre9'"),
    ("no link", result(link=None), RejectReason.UNKNOWN_LINK, "names none"),
    ("peer", result(peer="mars"), RejectReason.UNKNOWN_PEER, "no peer 'mars'"),
    ("value type", result(values={"packets_sent": "ten"}), RejectReason.BAD_VALUES, "gauge: Expected `int`, got `str`"),
    ("value absent", result(values={}), RejectReason.BAD_VALUES, "packets_sent"),
    ("value float", result(values={"packets_sent": 1.5}), RejectReason.BAD_VALUES, "Expected `int`, got `float`"),
    ("value bool", result(values={"packets_sent": True}), RejectReason.BAD_VALUES, "Expected `int`, got `bool`"),
    ("value big", result(values={"packets_sent": 2**64}), RejectReason.BAD_VALUES, "64 bits"),
    ("curve", result(values={"packets_sent": 1, "steps": [{"offset_s": 1e10, "moved_bytes": 1}]}),
     RejectReason.BAD_VALUES, "offset_s"),
    ("sample", result(values={"packets_sent": 1, "steps": [{"offset_s": 0.1, "moved_bytes": 2**64}]}),
     RejectReason.BAD_VALUES, "gauge.steps.moved_bytes"),
    ("text", result(values={"packets_sent": 1, "server": "x" * (STRING_BYTES_MAX + 1)}),
     RejectReason.BAD_VALUES, "longer than"),
    ("overflow", altered(result()).replace(b"3.0", b"1e999"), RejectReason.WRONG_TYPES, "out of range"),
    ("variant name", result(variant={"colour": "red"}), RejectReason.BAD_VARIANT, "no variant 'colour'"),
    ("variant value", result(variant={"direction": "sideways"}), RejectReason.BAD_VARIANT, "download, upload"),
    ("1970", result(start_unix_ns=86_400), RejectReason.IMPLAUSIBLE_TIME, "1970-01-01"),
    ("2019", result(start_unix_ns=EARLIEST_UNIX_NS - 1), RejectReason.IMPLAUSIBLE_TIME, "2019-12-31"),
    ("tomorrow", result(start_unix_ns=TOMORROW, clock=UNSTEERED), RejectReason.IMPLAUSIBLE_TIME, "an hour"),
    ("never", altered(result(), start_unix_ns=2**80), RejectReason.IMPLAUSIBLE_TIME, "an hour"),
]  # fmt: skip


def test_a_probe_whose_clock_is_steered_is_believed_before_our_own(tmp_path: Path) -> None:
    """A controller restored from an old image must not refuse, and so have deleted, what the whole fleet reports."""
    validator = Validator(fleet(tmp_path), TASKS, now_unix_ns=lambda: NOW_UNIX_NS)
    verdict = validator.validate(topic(AGENT, "report"), encode(report(result(start_unix_ns=TOMORROW))))
    assert [one.sequence for one in verdict.accepted] == [1]


@pytest.mark.parametrize(
    ("bad", "reason", "words"), [case[1:] for case in BAD_RESULTS], ids=[case[0] for case in BAD_RESULTS]
)
def test_a_bad_result_spoils_no_other(tmp_path: Path, bad: Any, reason: str, words: str) -> None:
    """Only the bad result is rejected, in a report of its own that fails the same way, and it counts as taken."""
    validator = Validator(fleet(tmp_path), TASKS, now_unix_ns=lambda: NOW_UNIX_NS)
    name = topic(AGENT, "report")
    verdict = validator.validate(name, encode(report(result(), bad, result(1))))
    assert [one.sequence for one in verdict.accepted] == [1, 3]
    (one,) = verdict.rejected
    assert one.reason == reason
    assert words in one.detail
    assert verdict.taken is not None
    assert verdict.taken.sequences == [1, 2, 3]
    (again,) = validator.validate(name, one.payload).rejected
    assert (again.reason, again.identity) == (one.reason, one.identity)


@pytest.mark.parametrize("entry", [{"sequence": "x"}, {"sequence": 0, "result": {}}, 5, None])
def test_an_entry_without_a_number(tmp_path: Path, entry: Any) -> None:
    """An entry that has no good number is rejected alone, and no number is taken for it."""
    document = json.loads(encode(report(result())))
    document["entries"].append(entry)
    verdict = validate(tmp_path, json.dumps(document).encode())
    assert len(verdict.accepted) == 1
    assert [one.reason for one in verdict.rejected] == [RejectReason.WRONG_TYPES]
    assert verdict.taken is not None
    assert verdict.taken.sequences == [1]


def test_the_same_bad_result_has_one_identity(tmp_path: Path) -> None:
    """An agent that sends a bad result again, in another report, makes no second item of it."""
    bad = result(task="teleport")
    first = validate(tmp_path, report(bad)).rejected[0]
    second = validate(tmp_path, report(result(), first=1, floor=1)).rejected
    third = validate(tmp_path, report(bad, sent_unix_ns=START_UNIX_NS + 1, sequence_floor=1)).rejected[0]
    assert not second
    assert first.identity == third.identity


def test_what_the_database_refused_can_be_validated_again(tmp_path: Path) -> None:
    """The rejection of a refused result holds the result itself, to the byte."""
    (one,) = validate(tmp_path, report(result(), first=5)).accepted
    rejected = refused(one, "400: no")
    (again,) = validate(tmp_path, rejected.payload).accepted
    assert (again.result, again.sequence, again.origin) == (one.result, 5, one.origin)
    assert refused(again, "400: still no").identity == rejected.identity


def test_a_rejection_is_told_in_printable_words(tmp_path: Path) -> None:
    """What a stranger wrote stands in the detail, without what a terminal obeys."""
    name = "gauge\x1b[2J\u202e\n"
    (rejected,) = validate(tmp_path, encode(report(altered(result(), task=name, link=name)))).rejected
    assert rejected.detail.isprintable()
    assert "gauge" in rejected.detail


def test_a_fault_of_the_controller_stops_nothing(tmp_path: Path) -> None:
    """A result on which our own code fails is rejected with the fault, and the next one is accepted."""
    validator = Validator(fleet(tmp_path), TASKS)
    del validator._variants["gauge"]
    verdict = validator.validate(topic(AGENT, "report"), encode(report(result())))
    assert [one.reason for one in verdict.rejected] == [RejectReason.CONTROLLER_FAULT]
    assert "KeyError" in verdict.rejected[0].detail


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


LINK = FleetLink(operator="viettel", access="fixed")
PEER = FleetPeer(host="192.0.2.1", scope="domestic")
HYPOTHESIS_FLEET = Fleet(probes={AGENT: FleetProbe(province="ha_noi", links={"fixed": LINK})}, peers={"near": PEER})


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted(json.loads(encode(result())))), value=JSON, payload=st.binary())
def test_validation_never_raises(key: str, value: Any, payload: bytes) -> None:
    """Whatever stands in a result or a message, it is accepted or rejected, and each exactly once."""
    validator = Validator(HYPOTHESIS_FLEET, TASKS)
    name = topic(AGENT, "report")
    try:
        message = encode(report(altered(result(), **{key: value})))
    except msgspec.MsgspecError:
        message = payload
    verdict = validator.validate(name, message)
    assert len(verdict.accepted) + len(verdict.rejected) == 1
    assert RejectReason.CONTROLLER_FAULT not in {one.reason for one in verdict.rejected}
    assert not validator.validate(name, payload).accepted
