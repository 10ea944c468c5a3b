"""What a task is: one type that says what it takes, what it gives, and how it measures once.

A task knows nothing of schedules. The scheduler owns time, time-outs, exclusion and jitter; storage, validation and
baselines follow from the types given here.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

from probe.clock import Clock
from probe.errors import NotRunError
from probe.links import Link
from probe.messages import NotRunReason, Peer


class Load(StrEnum):
    """What a task does to the line and the host: heavy ones exclude each other, light ones go on."""

    HEAVY = "heavy"
    LIGHT = "light"


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of a task's parameters: all with defaults, all checked.

    A parameter typed `Literal` tells one series from another: it becomes part of the result's `variant`, and a tag.
    """


class Values(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of what a task measured. Absent is `None`; counts travel, ratios are derived.

    Fields are `int`, `float`, `bool`, `str` (or one of them with `None`), or a tuple of `Sample`s. An `int` stays an
    integer in storage and a `float` a float, whatever its value.
    """


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One point of a curve: `offset_s` after the result's start. Stored as `<task>_<field>` of its own."""

    offset_s: float


@dataclass(slots=True)
class Usage:
    """What a measurement cost so far, kept up to date while it runs so that a time-out still knows it.

    Bytes of transport payload, both ways.
    """

    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """What a task may use: the link to measure, who answers, the clock, and how long it has.

    `time_out_s` is what the caller grants from the call on; `usage` is for the task to fill.
    """

    clock: Clock
    time_out_s: float
    link: Link | None = None
    peer: Peer | None = None
    usage: Usage = field(default_factory=Usage)

    def need_link(self) -> Link:
        """The link.

        Raises:
            NotRunError: the action was started without one (`unknown_link`).
        """
        if self.link is None:
            raise NotRunError(NotRunReason.UNKNOWN_LINK, "this task measures a link and was given none")
        return self.link

    def need_peer(self) -> Peer:
        """The peer.

        Raises:
            NotRunError: the action names none (`unknown_peer`).
        """
        if self.peer is None:
            raise NotRunError(NotRunReason.UNKNOWN_PEER, "this task needs a peer: name one in the action")
        return self.peer


def _no_targets(_: Parameters) -> tuple[str, ...]:
    """What most tasks name in their parameters."""
    return ()


P = TypeVar("P", bound=Parameters)
V = TypeVar("V", bound=Values)


@dataclass(frozen=True, slots=True)
class TaskType(Generic[P, V]):
    """One kind of measurement.

    Attributes:
        name: the task's name on the wire, the measurement's name in the database.
        version: grows when the method changes so that old and new figures must not be compared.
        parameters: its frozen `Parameters`.
        values: its frozen `Values`.
        measure: measures once. Raises `MeasurementFailedError` when the network says no and `NotRunError` when it
            cannot measure; what else it raises is a fault of the task.
        load: what it does to the line.
        time_out_s: the longest that one measurement with these parameters can take; the scheduler ends it then.
        needs_link: whether it measures a link; one that does not runs once per slot, whatever the links.
        needs_peer: whether somebody must answer it.
        baseline_fields: the fields of `values` that baselines follow.
        targets: the hosts that parameters name: like a peer's, they must be within the device's own targets.
    """

    name: str
    version: int
    parameters: type[P]
    values: type[V]
    measure: Callable[[Context, P], Awaitable[V]]
    load: Load
    time_out_s: Callable[[P], float]
    needs_link: bool = True
    needs_peer: bool = True
    baseline_fields: tuple[str, ...] = ()
    targets: Callable[[P], tuple[str, ...]] = _no_targets


AnyTask = TaskType[Any, Any]


@functools.cache
def variant_fields(parameters: type[Parameters]) -> dict[str, tuple[str, ...]]:
    """The parameters that become the result's `variant`, each with its allowed values as strings."""
    return {
        name: tuple(str(value) for value in info.values)
        for name, info in _field_types(parameters).items()
        if isinstance(info, msgspec.inspect.LiteralType)
    }


def variant_of(parameters: Parameters) -> dict[str, str]:
    """The `variant` of a result measured with these parameters."""
    return {name: str(getattr(parameters, name)) for name in variant_fields(type(parameters))}


def _field_types(struct: type[msgspec.Struct]) -> dict[str, msgspec.inspect.Type]:
    described = msgspec.inspect.type_info(struct)
    assert isinstance(described, msgspec.inspect.StructType)  # noqa: S101 - what type_info gives for a Struct
    return {field.name: field.type for field in described.fields}
