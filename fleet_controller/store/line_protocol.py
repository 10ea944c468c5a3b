"""Line protocol, built by hand: the field types are fixed by the task's types, never by what a value looks like.

A client library that guesses writes 3.0 as `3i` on one day and `3` on the next, and the database then refuses one of
them for ever (field type conflict).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import msgspec

from fleet_controller.errors import ConfigError
from fleet_controller.free_text import stripped
from fleet_controller.records import Accepted
from probe.messages import NAME_PATTERN
from probe.tasks.base import AnyTask, Parameters, variant_fields

TAGS: Final = ("agent_id", "link", "access", "operator", "province", "peer", "scope")
# What every point of a task has beside the task's own values.
COMMON_FIELDS: Final = (
    "sequence", "sequence_space", "agent_version", "cycle_number", "action", "schedule", "command_id",
    "task_version", "duration_s", "bytes_sent", "bytes_received", "clock_state", "clock_max_error_s",
    "fitness_busiest_core_ratio", "fitness_throttled", "fitness_nic_speed_bps", "fitness_cross_traffic_bytes",
    "fitness_own_load", "fitness_cross_traffic_before_bps", "fitness_steal_ratio", "fitness_softirq_ratio",
    "fitness_cpu_pressure_ratio", "fitness_cpu_wait_ratio", "fitness_own_cpu_ratio", "fitness_cgroup_throttled_ratio",
    "fitness_host_limited", "fitness_host_limited_by", "outcome", "failure_operation", "failure_kind", "failure_detail",
    "not_run_reason", "not_run_detail",
)  # fmt: skip
# InfluxQL gives every point a column of this name.
_RESERVED: Final = frozenset({"time", *TAGS, *COMMON_FIELDS})
# Texts of the agent that are no figures. InfluxDB 1.x refuses a field string over 64 KiB.
_TEXT_CHARACTERS_MAX: Final = 1000
_NS_PER_S: Final = 1_000_000_000

_TAG_ESCAPES: Final = str.maketrans({",": r"\,", "=": r"\=", " ": r"\ "})
# Line protocol cannot write a line break in a tag at all, nor a backslash that stands before what it escapes.
_NOT_IN_TAGS: Final = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")

# Series that are written at the same time: 10,000 probes with some tasks each, a few hundred bytes a series.
_TAG_SETS_MAX: Final = 65_536

Formatter = Callable[[Any], str]


def integer(value: int) -> str:
    """A field that stays an integer."""
    return f"{value:d}i"


def real(value: float) -> str:
    """A field that stays a float, whole or not."""
    return repr(float(value))


def boolean(value: bool) -> str:
    """A field that is true or false."""
    return "true" if value else "false"


def text(value: str) -> str:
    """A string field, quoted."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def free_text(value: str) -> str:
    """A string field that somebody else wrote: what no screen can print is a blank."""
    return text(stripped(value))


def tag_text(value: str) -> str:
    """What a tag's value becomes: the same but for what line protocol cannot write in a tag.

    Line breaks and other control characters become spaces, backslashes become slashes.
    """
    return _NOT_IN_TAGS.sub(" ", value).replace("\\", "/").strip()


def tag_set(tags: Mapping[str, str]) -> str:
    """The tags in their canonical order, each with its leading comma. A tag without a value is left out."""
    return _tag_set(tuple(tags.items()))


@lru_cache(maxsize=_TAG_SETS_MAX)
def _tag_set(tags: tuple[tuple[str, str], ...]) -> str:
    """Escaping costs more than all the rest of a line, and a series has the same tags for ever."""
    kept = ((name, tag_text(value)) for name, value in sorted(tags))
    return "".join(f",{name.translate(_TAG_ESCAPES)}={value.translate(_TAG_ESCAPES)}" for name, value in kept if value)


def line(measurement: str, tags: Mapping[str, str], fields: Mapping[str, str], unix_ns: int) -> str:
    """One point. `fields` are formatted already and at least one; their names are identifiers of the schema."""
    pairs = ",".join([f"{name}={value}" for name, value in fields.items()])
    return f"{measurement}{tag_set(tags)} {pairs} {unix_ns:d}"


class Schema:
    """How each task's values become fields.

    Raises:
        ConfigError: a task cannot be stored: a field of it bears a name that every point has already, or has a
            type that the database has none for, or two tasks would share a measurement.
    """

    def __init__(self, tasks: Mapping[str, AnyTask]) -> None:
        self._fields: dict[str, dict[str, Formatter]] = {}
        self._samples: dict[str, dict[str, dict[str, Formatter]]] = {}
        for name, task in tasks.items():
            self._learn(name, task)
        self._check_measurements()

    def measurements(self) -> tuple[str, ...]:
        """Every measurement that these tasks are stored under."""
        curves = (f"{name}_{curve}" for name, samples in self._samples.items() for curve in samples)
        return (*self._fields, *curves)

    def lines(self, accepted: Accepted) -> list[str]:
        """The points of one result: the result itself, then every sample of its curves."""
        task, result = accepted.task.name, accepted.result
        fields = _common(accepted)
        curves: list[str] = []
        if accepted.values is not None:
            for name, formatted in self._fields[task].items():
                value = getattr(accepted.values, name)
                if value is not None:
                    fields[name] = formatted(value)
            for name in self._samples[task]:
                curves += self._curve(accepted, name)
        return [line(task, accepted.tags, fields, result.start_unix_ns), *curves]

    def _curve(self, accepted: Accepted, name: str) -> list[str]:
        formatters = self._samples[accepted.task.name][name]
        measurement = f"{accepted.task.name}_{name}"
        head = f"{measurement}{tag_set(accepted.tags)} "
        start_ns, points = accepted.result.start_unix_ns, []
        for sample in getattr(accepted.values, name) or ():
            present = [(key, getattr(sample, key)) for key in formatters]
            pairs = ",".join(f"{key}={formatters[key](value)}" for key, value in present if value is not None)
            points.append(f"{head}{pairs} {start_ns + round(sample.offset_s * _NS_PER_S):d}")
        return points

    def _learn(self, name: str, task: AnyTask) -> None:
        if re.match(NAME_PATTERN, name) is None:
            raise ConfigError(f"task {name!r}", "the name cannot be a measurement's", f"it must match {NAME_PATTERN}")
        parameters: type[Parameters] = task.parameters
        variants = set(variant_fields(parameters))
        taken = _RESERVED | variants
        _check_variants(name, variants)
        self._fields[name], self._samples[name] = {}, {}
        for field in _fields_of(task.values):
            place = f"task {name}: values.{field.name}"
            if field.name in taken:
                raise ConfigError(place, "every point has a tag or field of this name already", "rename the field")
            samples = _sample_fields(field.type, place, variants)
            if samples is None:
                self._fields[name][field.name] = _formatter(field.type, place)
            else:
                self._samples[name][field.name] = samples

    def _check_measurements(self) -> None:
        names = self.measurements()
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(
                f"task {min(twice)}", "has the name that another task's curve is stored under", "rename one"
            )


def _check_variants(name: str, variants: set[str]) -> None:
    for variant in sorted(variants):
        if variant in _RESERVED:
            raise ConfigError(
                f"task {name}: parameters.{variant}", "every point has a tag or field of this name already", "rename it"
            )


def _common(accepted: Accepted) -> dict[str, str]:
    """The fields that every task's points have. An absent one is not written."""
    result, origin = accepted.result, accepted.origin
    fields = {
        "sequence": integer(accepted.sequence),
        "sequence_space": free_text(origin.sequence_space),
        "action": _clipped(result.action),
        "schedule": _clipped(result.schedule),
        "task_version": integer(result.task_version),
        "bytes_sent": integer(result.bytes_sent),
        "bytes_received": integer(result.bytes_received),
        "clock_state": text(result.clock.state),
        "fitness_own_load": boolean(result.fitness.own_load),
        "outcome": text(_outcome(accepted)),
    }
    if origin.agent_version:
        fields["agent_version"] = _clipped(origin.agent_version)
    for name, value, formatted in _optional(accepted):
        if value is not None:
            fields[name] = formatted(value)
    return fields


def _optional(accepted: Accepted) -> tuple[tuple[str, Any, Formatter], ...]:
    result = accepted.result
    fitness, failure, not_run = result.fitness, result.failure, result.not_run
    return (
        ("cycle_number", result.cycle_number, integer),
        ("command_id", result.command_id, _clipped),
        ("duration_s", result.duration_s, real),
        ("clock_max_error_s", result.clock.max_error_s, real),
        ("fitness_busiest_core_ratio", fitness.busiest_core_ratio, real),
        ("fitness_throttled", fitness.throttled, boolean),
        ("fitness_nic_speed_bps", fitness.nic_speed_bps, integer),
        ("fitness_cross_traffic_bytes", fitness.cross_traffic_bytes, integer),
        ("fitness_cross_traffic_before_bps", fitness.cross_traffic_before_bps, integer),
        ("fitness_steal_ratio", fitness.steal_ratio, real),
        ("fitness_softirq_ratio", fitness.softirq_ratio, real),
        ("fitness_cpu_pressure_ratio", fitness.cpu_pressure_ratio, real),
        ("fitness_cpu_wait_ratio", fitness.cpu_wait_ratio, real),
        ("fitness_own_cpu_ratio", fitness.own_cpu_ratio, real),
        ("fitness_cgroup_throttled_ratio", fitness.cgroup_throttled_ratio, real),
        ("fitness_host_limited", fitness.host_limited, boolean),
        ("fitness_host_limited_by", fitness.host_limited_by, text),
        ("failure_operation", failure.operation if failure is not None else None, text),
        ("failure_kind", failure.kind if failure is not None else None, text),
        ("failure_detail", failure.detail if failure is not None else None, _clipped),
        ("not_run_reason", not_run.reason if not_run is not None else None, text),
        ("not_run_detail", not_run.detail if not_run is not None else None, _clipped),
    )


def _outcome(accepted: Accepted) -> str:
    if accepted.result.failure is not None:
        return "failure"
    return "not_run" if accepted.result.not_run is not None else "values"


def _clipped(value: str) -> str:
    return free_text(value[:_TEXT_CHARACTERS_MAX])


def _fields_of(struct: type[msgspec.Struct]) -> tuple[msgspec.inspect.Field, ...]:
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, msgspec.inspect.StructType)  # noqa: S101 - what type_info gives for a Struct
    return described.fields


def _sample_fields(kind: msgspec.inspect.Type, place: str, variants: set[str]) -> dict[str, Formatter] | None:
    """The formatters of a curve's samples; absent when the field is not a curve."""
    kind = _without_none(kind, place)
    if not isinstance(kind, msgspec.inspect.VarTupleType):
        return None
    item = kind.item_type
    if not isinstance(item, msgspec.inspect.StructType) or "offset_s" not in {field.name for field in item.fields}:
        raise ConfigError(place, "a tuple is stored as a curve", "make it a tuple of a Sample")
    clash = sorted({field.name for field in item.fields} & {"time", *TAGS, *variants})
    if clash:
        raise ConfigError(f"{place}.{clash[0]}", "every point has a tag of this name already", "rename the field")
    return {field.name: _formatter(field.type, f"{place}.{field.name}") for field in item.fields}


def _formatter(kind: msgspec.inspect.Type, place: str) -> Formatter:
    kind = _without_none(kind, place)
    for wanted, formatted in _FORMATTERS:
        if isinstance(kind, wanted):
            return formatted
    words = kind.values if isinstance(kind, msgspec.inspect.LiteralType) else ()
    if words and all(isinstance(word, str) for word in words):
        return text
    raise ConfigError(place, f"the database has no field type for {kind}", "use int, float, bool or str, or with None")


# An enumeration is stored as its word; its values must therefore be strings, as a StrEnum's are.
_FORMATTERS: Final[tuple[tuple[type[msgspec.inspect.Type], Formatter], ...]] = (
    (msgspec.inspect.IntType, integer),
    (msgspec.inspect.FloatType, real),
    (msgspec.inspect.BoolType, boolean),
    (msgspec.inspect.StrType, free_text),
    (msgspec.inspect.EnumType, text),
)


def _without_none(kind: msgspec.inspect.Type, place: str) -> msgspec.inspect.Type:
    """The type of a field that may be absent."""
    if not isinstance(kind, msgspec.inspect.UnionType):
        return kind
    rest = [part for part in kind.types if not isinstance(part, msgspec.inspect.NoneType)]
    if len(rest) != 1:
        raise ConfigError(place, "a field has one type for ever in the database", "use one of int, float, bool, str")
    return rest[0]
