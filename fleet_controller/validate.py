"""Validate: from bytes off the wire to typed results, one by one, so that a bad one spoils no other."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, TypeVar

import msgspec

from fleet_controller.errors import InvalidReportError
from fleet_controller.fleet.model import Fleet
from fleet_controller.free_text import stripped
from fleet_controller.records import Accepted, Origin, Rejected, RejectReason, Taken, Verdict
from probe.messages import PACKET_BYTES_MAX, SCHEMA_VERSION, ClockState, Message, Result, parse_topic
from probe.tasks.base import AnyTask, Parameters, Values, variant_fields

# 2020-01-01 UTC. A Pi without a clock starts at 1970, or at the day of its image; this project is younger than 2020.
EARLIEST_UNIX_NS: Final = 1_577_836_800 * 1_000_000_000
LATEST_UNIX_NS: Final = 4_102_444_800 * 1_000_000_000  # 2100: whoever says that has no clock at all
# A device that has no time zone right is off by hours, one that is only badly synchronised by seconds.
FUTURE_TOLERANCE_NS: Final = 3600 * 1_000_000_000
# No measurement goes on for longer; a curve beyond it would be points at times that cannot be.
CURVE_S_MAX: Final = 86_400.0
# The database has signed 64-bit integers.
_INT_MAX: Final = 2**63 - 1
# InfluxDB 1.x takes field strings up to 64 KiB; a figure is never that long.
STRING_BYTES_MAX: Final = 16 * 1024
# A detail is for a person's eyes.
_DETAIL_CHARACTERS_MAX: Final = 500
_LEAF: Final = "report"
# Series and topics that are in use at the same time; what is looked up once is looked up with every report.
_TAG_SETS_MAX: Final = 65_536

Sequence = Annotated[int, msgspec.Meta(ge=1, le=_INT_MAX)]
Space = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
T = TypeVar("T")


class _Envelope(Message, frozen=True):
    """A Report whose entries are still bytes, so that each is decoded on its own."""

    agent_id: str
    sequence_space: Space
    sequence_floor: Sequence
    entries: tuple[msgspec.Raw, ...]
    sent_unix_ns: int = 0
    agent_version: str = ""
    schema_version: int = SCHEMA_VERSION


class _Versioned(Message, frozen=True):
    schema_version: int = SCHEMA_VERSION


class _TypedEntry(Message, frozen=True):
    sequence: Sequence
    result: Result


class _Numbered(Message, frozen=True):
    sequence: Sequence
    result: msgspec.Raw


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)
_VERSIONED: Final = msgspec.json.Decoder(_Versioned)
_TYPED_ENTRY: Final = msgspec.json.Decoder(_TypedEntry)
_NUMBERED: Final = msgspec.json.Decoder(_Numbered)
_RESULT: Final = msgspec.json.Decoder(Result)


class Validator:
    """Checks messages against the contract, the fleet and the tasks.

    Attributes:
        fleet: who may report and what their links and peers are.
    """

    def __init__(
        self, fleet: Fleet, tasks: Mapping[str, AnyTask], now_unix_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.fleet = fleet
        self._tasks = dict(tasks)
        parameters: dict[str, type[Parameters]] = {name: task.parameters for name, task in self._tasks.items()}
        self._variants = {name: variant_fields(kind) for name, kind in parameters.items()}
        self._now_unix_ns = now_unix_ns
        self._known_tags = lru_cache(maxsize=_TAG_SETS_MAX)(self._tags)

    def exchange_fleet(self, fleet: Fleet) -> None:
        """The fleet file was read again."""
        self.fleet = fleet
        self._known_tags = lru_cache(maxsize=_TAG_SETS_MAX)(self._tags)

    def validate(self, topic: str, payload: bytes) -> Verdict:
        """Sort what one message says into accepted and rejected. Never raises."""
        try:
            return self._validate(topic, payload)
        except InvalidReportError as error:
            return Verdict(rejected=[_whole(topic, payload, error)])
        except Exception as error:  # noqa: BLE001 - a fault of ours on one message must not stop the others
            fault = InvalidReportError(RejectReason.CONTROLLER_FAULT, f"the controller failed on it: {error!r}")
            return Verdict(rejected=[_whole(topic, payload, fault)])

    def _validate(self, topic: str, payload: bytes) -> Verdict:
        agent_id = _agent_of(topic)
        if len(payload) > PACKET_BYTES_MAX:
            raise _invalid(RejectReason.TOO_LARGE, f"{len(payload)} bytes, at most {PACKET_BYTES_MAX} are allowed")
        envelope = _open(payload)
        if envelope.agent_id != agent_id:
            raise _invalid(RejectReason.FOREIGN_AGENT, f"sent on the topic of {agent_id}, says {envelope.agent_id!r}")
        verdict = Verdict(taken=Taken(agent_id, envelope.sequence_space, envelope.sequence_floor))
        stranger = self._whole_report_problem(envelope)
        if stranger is not None:
            verdict.rejected.append(_whole(topic, payload, stranger))
            _count_sequences(envelope, verdict)
            return verdict
        origin = Origin(topic, agent_id, envelope.sequence_space, envelope.agent_version)
        for raw in envelope.entries:
            self._sort(origin, envelope, bytes(raw), verdict)
        return verdict

    def _whole_report_problem(self, envelope: _Envelope) -> InvalidReportError | None:
        """What speaks against every result of a report whose numbers are still good."""
        if envelope.schema_version > SCHEMA_VERSION:
            return _future_schema(envelope.schema_version)
        if envelope.agent_id not in self.fleet.probes:
            return _invalid(RejectReason.UNKNOWN_AGENT, f"{envelope.agent_id} is not in the fleet file: add it there")
        return None

    def _sort(self, origin: Origin, envelope: _Envelope, entry: bytes, verdict: Verdict) -> None:
        """Put one entry where it belongs, and its number to the numbers taken."""
        sequence: int | None = None
        try:
            sequence, result = _read_entry(entry)
            verdict.accepted.append(self._accept(origin, sequence, result, entry))
        except InvalidReportError as error:
            verdict.rejected.append(_one(origin.topic, envelope, entry, error))
        except Exception as error:  # noqa: BLE001 - a fault of ours on one result must not stop the others
            fault = _invalid(RejectReason.CONTROLLER_FAULT, f"the controller failed on it: {error!r}")
            verdict.rejected.append(_one(origin.topic, envelope, entry, fault))
        sequence = sequence if sequence is not None else _sequence_of(entry)
        if sequence is not None and verdict.taken is not None:
            verdict.taken.sequences.append(sequence)

    def _accept(self, origin: Origin, sequence: int, result: Result, entry: bytes) -> Accepted:
        task = self._tasks.get(result.task)
        if task is None:
            raise _invalid(RejectReason.UNKNOWN_TASK, f"this controller has no task {result.task!r}: update it")
        self._check_time(result)
        _check_integers(result)
        values = _typed_values(task, result)
        if task.needs_link and result.link is None and values is not None:
            raise _invalid(RejectReason.UNKNOWN_LINK, f"{task.name} measures a link and the result names none")
        tags = self._known_tags(origin.agent_id, result.task, result.link, result.peer, tuple(result.variant.items()))
        return Accepted(origin, sequence, task, result, values, tags, entry)

    def _check_time(self, result: Result) -> None:
        """Refuse a time that cannot be.

        A probe whose kernel vouches for its clock is believed before this host's own clock, which may just have come
        back from a restored image: or else the whole fleet's results would be refused here, and deleted there.
        """
        start_unix_ns = result.start_unix_ns
        if start_unix_ns < EARLIEST_UNIX_NS:
            raise _invalid(RejectReason.IMPLAUSIBLE_TIME, f"starts at {_date(start_unix_ns)}, before 2020")
        is_vouched_for = result.clock.state is ClockState.SYNCHRONISED and start_unix_ns < LATEST_UNIX_NS
        if start_unix_ns > self._now_unix_ns() + FUTURE_TOLERANCE_NS and not is_vouched_for:
            raise _invalid(
                RejectReason.IMPLAUSIBLE_TIME,
                f"starts at {_date(start_unix_ns)}, more than an hour after this host's clock",
            )

    def _tags(
        self, agent_id: str, task: str, link: str | None, peer: str | None, variant: tuple[tuple[str, str], ...]
    ) -> dict[str, str]:
        """The tags of the result's series: nothing that the fleet file or the task's parameters do not bound."""
        tags = {"agent_id": agent_id, **self.fleet.tags(agent_id, link)}
        if link is not None:
            if link not in self.fleet.probes[agent_id].links:
                raise _invalid(RejectReason.UNKNOWN_LINK, f"{agent_id} has no link {link!r} in the fleet file")
            tags["link"] = link
        if peer is not None:
            scope = self.fleet.peer_scope(peer)
            if scope is None:
                raise _invalid(RejectReason.UNKNOWN_PEER, f"the fleet file has no peer {peer!r}")
            tags.update(peer=peer, scope=scope)
        self._check_variant(task, variant)
        tags.update(variant)
        return tags

    def _check_variant(self, task: str, variant: tuple[tuple[str, str], ...]) -> None:
        known = self._variants[task]
        for name, value in variant:
            if name not in known:
                raise _invalid(RejectReason.BAD_VARIANT, f"{task} has no variant {_short(name)!r}")
            if value not in known[name]:
                choices = ", ".join(known[name])
                raise _invalid(RejectReason.BAD_VARIANT, f"{name} is {_short(value)!r}, and not one of {choices}")


def refused(accepted: Accepted, words: str) -> Rejected:
    """The rejection of a result that the database did not take, in a report of its own."""
    origin = accepted.origin
    envelope = _Envelope(
        agent_id=origin.agent_id,
        sequence_space=origin.sequence_space,
        sequence_floor=1,
        entries=(),
        agent_version=origin.agent_version,
    )
    return _one(origin.topic, envelope, accepted.entry, _invalid(RejectReason.REFUSED_BY_DATABASE, words))


@lru_cache(maxsize=_TAG_SETS_MAX)
def _agent_of(topic: str) -> str:
    try:
        agent_id, leaf = parse_topic(topic)
    except ValueError as error:
        raise _invalid(RejectReason.BAD_TOPIC, str(error)) from None
    if leaf != _LEAF:
        raise _invalid(RejectReason.BAD_TOPIC, f"topic {topic!r} is not for reports")
    return agent_id


def _open(payload: bytes) -> _Envelope:
    try:
        return _decode(_ENVELOPE, payload, "report")
    except InvalidReportError as error:
        if error.reason == RejectReason.WRONG_TYPES:
            _refuse_future(payload)
        raise


def _read_entry(entry: bytes) -> tuple[int, Result]:
    try:
        typed = _TYPED_ENTRY.decode(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # Once more in two steps, for words that say which part is wrong.
        numbered = _decode(_NUMBERED, entry, "entry")
        return numbered.sequence, _decode(_RESULT, bytes(numbered.result), "result")
    return typed.sequence, typed.result


def _sequence_of(entry: bytes | msgspec.Raw) -> int | None:
    """The number of an entry whose result cannot be read; absent when it has none."""
    try:
        return _NUMBERED.decode(entry).sequence
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _refuse_future(payload: bytes) -> None:
    """Say so if what looks like wrong types is the work of a newer agent."""
    try:
        version = _VERSIONED.decode(payload).schema_version
    except msgspec.MsgspecError:
        return
    if version > SCHEMA_VERSION:
        raise _future_schema(version)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _invalid(RejectReason.WRONG_TYPES, f"{what}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(RejectReason.NOT_JSON, f"{what}: {error}{_nan_hint(data)}") from None


def _nan_hint(data: bytes) -> str:
    """JSON has no NaN and no Infinity, but some encoders write them."""
    found = [word for word in ("NaN", "Infinity") if word.encode() in data]
    return f" (it contains {found[0]}, which JSON does not have: absent is null)" if found else ""


def _check_integers(result: Result) -> None:
    """JSON has integers of any size, the database 64 bits."""
    fitness = result.fitness
    for name, value in (
        ("task_version", result.task_version),
        ("cycle_number", result.cycle_number),
        ("bytes_sent", result.bytes_sent),
        ("bytes_received", result.bytes_received),
        ("fitness.nic_speed_bps", fitness.nic_speed_bps),
        ("fitness.cross_traffic_bytes", fitness.cross_traffic_bytes),
        ("fitness.cross_traffic_before_bps", fitness.cross_traffic_before_bps),
    ):
        if value is not None and not -_INT_MAX <= value <= _INT_MAX:
            raise _invalid(RejectReason.WRONG_TYPES, f"result: {name} does not fit into 64 bits")


def _typed_values(task: AnyTask, result: Result) -> Values | None:
    if result.values is None:
        return None
    try:
        values = msgspec.convert(result.values, task.values)
    except msgspec.ValidationError as error:
        raise _invalid(RejectReason.BAD_VALUES, f"{task.name}: {error}") from None
    _check_figures(task.name, values)
    assert isinstance(values, Values)  # noqa: S101 - what convert gives for a subclass of Values
    return values


def _check_figures(where: str, figures: msgspec.Struct) -> None:
    for name, value in zip(figures.__struct_fields__, msgspec.structs.astuple(figures), strict=True):
        if value is None or value.__class__ is bool:
            continue
        if isinstance(value, tuple):
            for sample in value:
                _check_figures(f"{where}.{name}", sample)
                if not 0 <= sample.offset_s <= CURVE_S_MAX:
                    raise _invalid(RejectReason.BAD_VALUES, f"{where}.{name}: offset_s {sample.offset_s} is over a day")
        else:
            _check_figure(f"{where}.{name}", value)


def _check_figure(where: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(RejectReason.BAD_VALUES, f"{where} is {value}: absent is null")
    if isinstance(value, int) and not -_INT_MAX <= value <= _INT_MAX:
        raise _invalid(RejectReason.BAD_VALUES, f"{where} does not fit into 64 bits")
    if isinstance(value, str) and len(value.encode()) > STRING_BYTES_MAX:
        raise _invalid(RejectReason.BAD_VALUES, f"{where} is longer than {STRING_BYTES_MAX} bytes")


def _count_sequences(envelope: _Envelope, verdict: Verdict) -> None:
    """The numbers of a report that is kept as a whole: it is durable, so its agent may forget it."""
    for raw in envelope.entries:
        sequence = _sequence_of(raw)
        if sequence is not None and verdict.taken is not None:
            verdict.taken.sequences.append(sequence)


def _whole(topic: str, payload: bytes, error: InvalidReportError) -> Rejected:
    try:
        agent_id = parse_topic(topic)[0]
    except ValueError:
        agent_id = None
    return Rejected(
        topic=topic,
        agent_id=agent_id,
        reason=RejectReason(error.reason),
        detail=error.detail,
        payload=payload,
        identity=_identity(topic, "", payload),
    )


def _one(topic: str, envelope: _Envelope, entry: bytes, error: InvalidReportError) -> Rejected:
    alone = msgspec.structs.replace(envelope, entries=(msgspec.Raw(entry),))
    return Rejected(
        topic=topic,
        agent_id=envelope.agent_id,
        reason=RejectReason(error.reason),
        detail=error.detail,
        payload=msgspec.json.encode(alone),
        identity=_identity(envelope.agent_id, envelope.sequence_space, entry),
    )


def _identity(agent: str, space: str, payload: bytes) -> bytes:
    """The same result sent again in another report has another envelope, so only what is its own counts."""
    digest = hashlib.sha256(agent.encode(errors="replace") + b"\0" + space.encode() + b"\0")
    digest.update(payload)
    return digest.digest()


def _future_schema(version: int) -> InvalidReportError:
    return _invalid(
        RejectReason.FUTURE_SCHEMA,
        f"schema {version}, this controller knows {SCHEMA_VERSION}: written by a newer agent: "
        "update the controller, then replay",
    )


def _invalid(reason: RejectReason, detail: str) -> InvalidReportError:
    return InvalidReportError(reason, _short(detail))


def _short(text: str) -> str:
    folded = " ".join(stripped(text).split())
    return folded if len(folded) <= _DETAIL_CHARACTERS_MAX else folded[: _DETAIL_CHARACTERS_MAX - 1] + "…"


def _date(unix_ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"{unix_ns} ns"
