"""The contract on the wire: golden messages, tolerance, exactly one outcome, topics."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import messages
from probe.messages import (
    ClockReading,
    ClockState,
    Command,
    Failure,
    FailureKind,
    Instruction,
    Message,
    NotRun,
    NotRunReason,
    Operation,
    Progress,
    Receipt,
    Report,
    Result,
    Status,
)

GOLDEN = Path(__file__).parent / "golden"
TYPES: dict[str, type[Message]] = {
    "report": Report,
    "instruction": Instruction,
    "status": Status,
    "receipt": Receipt,
    "command": Command,
    "progress": Progress,
}
FILES = sorted(GOLDEN.glob("v*/*.json"))
LEAVES: tuple[messages.Leaf, ...] = ("report", "status", "instruction", "command", "progress", "receipt")
AGENT_IDS = st.from_regex(messages.AGENT_ID_PATTERN, fullmatch=True)


def result(**outcome: object) -> Result:
    """A result that says what is passed."""
    return Result(
        task="dns",
        task_version=1,
        action="dns",
        schedule="light",
        start_unix_ns=1,
        clock=ClockReading(state=ClockState.SYNCHRONISED),
        **outcome,  # type: ignore[arg-type]  # what is passed wrongly on purpose
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_messages_decode_for_ever(path: Path) -> None:
    """Every message of every version that was ever on the wire decodes, and nothing of it is lost."""
    golden = json.loads(path.read_text())
    again = json.loads(messages.encode(msgspec.json.decode(path.read_bytes(), type=TYPES[path.stem])))
    assert {key: again[key] for key in golden} == golden


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.__name__)
def test_the_schema_version_is_always_on_the_wire(kind: type[Message]) -> None:
    """A version that were left out would be read as the reader's own."""
    golden = json.loads(next(path for path in FILES if TYPES[path.stem] is kind).read_text())
    required = {field.name: golden[field.name] for field in msgspec.structs.fields(kind) if field.required}
    assert b'"schema_version":1' in messages.encode(msgspec.json.decode(json.dumps(required), type=kind))


def test_there_is_a_golden_message_of_every_kind() -> None:
    """A kind of message without a golden one would be free to change."""
    assert {path.stem for path in FILES} == set(TYPES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_unknown_fields_are_skipped(path: Path) -> None:
    """A message of a newer writer is read for what is known of it."""
    golden = json.loads(path.read_text()) | {"added_in_a_later_version": {"x": [1]}}
    decoded = msgspec.json.decode(json.dumps(golden), type=TYPES[path.stem])
    known = msgspec.json.decode(path.read_bytes(), type=TYPES[path.stem])
    assert json.loads(messages.encode(decoded)) == json.loads(messages.encode(known))


def test_each_result_of_a_report_is_decoded_on_its_own() -> None:
    """One result that is not understood leaves the others of its report readable."""
    golden = json.loads((GOLDEN / "v1" / "report.json").read_text())
    golden["entries"][1]["result"] = {"task": 7, "from": "the future"}
    report = msgspec.json.decode(json.dumps(golden), type=Report)
    first, second, third = report.entries
    assert msgspec.json.decode(first.result, type=Result).task == "round_trip"
    assert msgspec.json.decode(third.result, type=Result).not_run is not None
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(second.result, type=Result)


def test_nothing_received_is_values_and_the_delays_are_absent() -> None:
    """Ten packets sent and none back is a measurement: counts stand, delays are absent, not 0."""
    golden = msgspec.json.decode((GOLDEN / "v1" / "report.json").read_bytes(), type=Report)
    values = msgspec.json.decode(golden.entries[0].result, type=Result).values
    assert values == {"packets_sent": 10, "packets_received": 0}


@pytest.mark.parametrize(
    "outcome",
    [
        {},
        {"values": {}, "failure": Failure(operation=Operation.SEND, kind=FailureKind.RESET)},
        {"values": {}, "not_run": NotRun(reason=NotRunReason.OVERLAP)},
        {
            "failure": Failure(operation=Operation.SEND, kind=FailureKind.RESET),
            "not_run": NotRun(reason=NotRunReason.OVERLAP),
        },
    ],
    ids=["none", "values-failure", "values-not_run", "failure-not_run"],
)
def test_a_result_says_exactly_one_thing(outcome: dict[str, object]) -> None:
    """A result with no outcome, or with two, cannot be made."""
    with pytest.raises(ValueError, match="exactly one of values, failure, not_run"):
        result(**outcome)


def test_a_result_on_the_wire_that_says_two_things_is_refused() -> None:
    """What cannot be made cannot be read either."""
    good = json.loads(messages.encode(result(values={})))
    with pytest.raises(msgspec.ValidationError, match="exactly one"):
        msgspec.json.decode(json.dumps(good | {"not_run": {"reason": "overlap"}}), type=Result)


@given(AGENT_IDS)
def test_topics_lead_back_to_their_agent(agent_id: str) -> None:
    """Every topic of an agent parses to that agent, in a shard that only its id decides."""
    for leaf in LEAVES:
        assert messages.parse_topic(messages.topic(agent_id, leaf)) == (agent_id, leaf)
    assert 0 <= messages.shard_of(agent_id) < messages.SHARDS


def test_the_shard_of_an_agent_never_changes() -> None:
    """Shards are CRC-32 modulo 32: figures that any other program can compute, fixed for ever."""
    assert [messages.shard_of(a) for a in ("vn-hni-01", "a", "vn-ha-noi-0001")] == [12, 3, 17]


@pytest.mark.parametrize(
    ("topic", "what"),
    [
        ("fleet/v1/3/b/report", "belongs to shard"),
        ("fleet/v2/3/a/report", "is not fleet/v1"),
        ("fleet/v1/3/A_B/report", "no valid agent id"),
        ("fleet/v1/3//report", "is not fleet/v1"),
        ("fleet/v1/3/a/report/more", "is not fleet/v1"),
    ],
)
def test_foreign_topics_are_refused(topic: str, what: str) -> None:
    """A topic outside the contract, or under another agent's shard, names its mistake."""
    with pytest.raises(ValueError, match=what):
        messages.parse_topic(topic)


def test_the_closed_vocabularies_only_grow() -> None:
    """A word that was ever on the wire stays: removing one would make old results unreadable."""
    assert {kind.value for kind in FailureKind} >= {
        "timed_out",
        "stalled",
        "refused",
        "reset",
        "closed",
        "network_unreachable",
        "host_unreachable",
        "link_lost",
        "address_unavailable",
        "permission_denied",
        "message_too_long",
        "name_not_found",
        "no_answer",
        "server_failure",
        "query_refused",
        "malformed",
        "certificate_invalid",
        "handshake_failed",
        "http_status",
        "redirected",
        "peer_busy",
        "intercepted",
        "other",
    }
    assert {reason.value for reason in NotRunReason} >= {
        "overlap",
        "suppressed",
        "budget",
        "link_down",
        "busy_line",
        "no_slot",
        "tool_missing",
        "host_hot",
        "clock",
        "missed",
        "interrupted",
        "unknown_task",
        "unknown_link",
        "unknown_peer",
        "bad_parameters",
        "target_refused",
        "task_timed_out",
        "task_crashed",
    }
    assert {operation.value for operation in Operation} >= {
        "resolve",
        "connect",
        "tls",
        "send",
        "receive",
        "request",
        "transfer",
    }
