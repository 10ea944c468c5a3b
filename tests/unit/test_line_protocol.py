from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from ingest_kit import GAUGE, START_UNIX_NS, TASKS, GaugeValues, accepted, result

from fleet_controller.errors import ConfigError
from fleet_controller.store.line_protocol import Schema, line, tag_text, text
from probe.messages import Failure, FailureKind, NotRun, NotRunReason, Operation
from probe.tasks import TASKS as REAL_TASKS
from probe.tasks.base import AnyTask, Parameters, Sample, TaskType, Values


def planted(values: dict[str, Any], name: str = "gauge", parameters: type[Parameters] = Parameters) -> AnyTask:
    """A task whose values have these fields, all with a default."""
    fields = [(field, kind, None) for field, kind in values.items()]
    made = msgspec.defstruct("Made", fields, bases=(Values,), frozen=True, kw_only=True)
    return TaskType(
        name=name, version=1, parameters=parameters, values=made, measure=GAUGE.measure, load=GAUGE.load,
        time_out_s=GAUGE.time_out_s,
    )  # fmt: skip


def test_types_follow_the_schema_not_the_value(tmp_path: Path) -> None:
    """A whole float stays a float, an integer an integer, and what is absent is not written."""
    (one,) = accepted(tmp_path, result(values={"packets_sent": 3, "delay_median_s": 3, "intercepted": False}))
    (written,) = Schema(TASKS).lines(one)
    assert written == (
        "gauge,access=fixed,agent_id=hn-01,direction=download,ip_version=4,link=fixed,operator=viettel,peer=near,"
        "province=ha_noi,scope=domestic "
        'sequence=1i,sequence_space="0123456789ab-1",action="gauge",schedule="rest",task_version=1i,bytes_sent=0i,'
        'bytes_received=0i,clock_state="synchronised",fitness_own_load=false,outcome="values",clock_max_error_s=0.001,'
        f"packets_sent=3i,delay_median_s=3.0,intercepted=false {START_UNIX_NS}"
    )


def test_a_curve_is_a_measurement_of_its_own(tmp_path: Path) -> None:
    """Each sample is a point at start plus offset, with the tags of its result."""
    steps = [{"offset_s": 0.1, "moved_bytes": 5}, {"offset_s": 0.2, "moved_bytes": 0}]
    (one,) = accepted(tmp_path, result(values={"packets_sent": 1, "steps": steps}))
    _, first, second = Schema(TASKS).lines(one)
    assert first.startswith("gauge_steps,access=fixed,agent_id=hn-01,")
    assert first.endswith(f" moved_bytes=5i,offset_s=0.1 {START_UNIX_NS + 100_000_000}")
    assert second.endswith(f" moved_bytes=0i,offset_s=0.2 {START_UNIX_NS + 200_000_000}")


def test_the_outcome_is_a_field(tmp_path: Path) -> None:
    """Failures and what was not run say so in words of the contract, with no figure beside them."""
    failed = result(failure=Failure(operation=Operation.TLS, kind=FailureKind.TIMED_OUT, detail='say "no"'))
    skipped = result(1, not_run=NotRun(reason=NotRunReason.BUDGET))
    lines = [Schema(TASKS).lines(one)[0] for one in accepted(tmp_path, failed, skipped)]
    assert 'outcome="failure"' in lines[0]
    assert 'failure_operation="tls",failure_kind="timed_out",failure_detail="say \\"no\\""' in lines[0]
    assert 'outcome="not_run"' in lines[1]
    assert 'not_run_reason="budget"' in lines[1]
    assert "packets_sent" not in "".join(lines)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [("Hà Nội", "Hà Nội"), ("a\\", "a/"), ("a\nb\x00", "a b"), ("a,b=c d", "a,b=c d"), ("\u2028", ""), ("", "")],
)
def test_what_a_tag_cannot_hold_is_replaced(raw: str, kept: str) -> None:
    """Line breaks become spaces and backslashes slashes: line protocol has no way to write them in a tag."""
    assert tag_text(raw) == kept


def test_an_empty_tag_is_left_out() -> None:
    """An empty tag value is a syntax error: the tag is absent instead."""
    assert line("m", {"a": " ", "b": "x y"}, {"f": "1i"}, 5) == r"m,b=x\ y f=1i 5"


def test_strings_are_quoted() -> None:
    """Quotes and backslashes are escaped, all else stands as it is."""
    assert text('a"b\\c,d=e f\n') == '"a\\"b\\\\c,d=e f\n"'


def test_every_registered_task_can_be_stored() -> None:
    """The tasks that ship have names and types that the database takes."""
    assert set(REAL_TASKS) <= set(Schema(REAL_TASKS).measurements())


class Colour(StrEnum):
    """An enumeration that a task may have among its values."""

    RED = "red"


def test_words_are_strings() -> None:
    """A closed vocabulary, literal or enumerated, is stored as its word."""
    Schema({"gauge": planted({"colour": Colour | None, "size": Literal["s", "l"] | None})})


class Bare(msgspec.Struct):
    """A struct that is no sample."""

    figure: float


class Tagged(Sample, frozen=True):
    """A sample with a field that is a tag."""

    link: str


class Directed(Parameters, frozen=True):
    """A parameter that becomes a tag."""

    direction: Literal["up", "down"] = "up"


class Reserved(Parameters, frozen=True):
    """A parameter that would become a tag that there is already."""

    scope: Literal["near", "far"] = "near"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (planted({"sequence": int | None}), "values.sequence: every point has"),
        (planted({"link": str | None}), "values.link: every point has"),
        (planted({"time": int | None}), "values.time: every point has"),
        (planted({"direction": str | None}, parameters=Directed), "values.direction: every point has"),
        (planted({"delays": dict[str, float] | None}), "values.delays: the database has no field type"),
        (planted({"figure": int | float | None}), "values.figure: a field has one type"),
        (planted({"words": Literal[1, 2] | None}), "values.words: the database has no field type"),
        (planted({"curve": tuple[float, ...]}), "values.curve: a tuple is stored as a curve"),
        (planted({"curve": tuple[Bare, ...]}), "values.curve: a tuple is stored as a curve"),
        (planted({"curve": tuple[Tagged, ...]}), "values.curve.link: every point has"),
        (planted({}, parameters=Reserved), "parameters.scope: every point has"),
        (planted({}, name="Big Name"), "the name cannot be a measurement's"),
    ],
)
def test_a_task_that_cannot_be_stored_is_refused_at_the_start(task: AnyTask, words: str) -> None:
    """Names and types that would clash in the database are found before the first result, with the remedy."""
    with pytest.raises(ConfigError, match=r"task .*\(.+\)") as caught:
        Schema({task.name: task})
    assert words in str(caught.value)


def test_a_curve_and_a_task_of_one_name() -> None:
    """Two tasks never share a measurement, not even one with the other's curve."""
    with pytest.raises(ConfigError, match="gauge_steps"):
        Schema({**TASKS, "gauge_steps": planted({"figure": int | None}, name="gauge_steps")})


def test_values_of_the_kit_have_every_type() -> None:
    """The planted task keeps on covering what there is to cover."""
    kinds = {type(field.type) for field in msgspec.inspect.type_info(GaugeValues).fields}  # type: ignore[attr-defined]
    assert len(kinds) == 3
