"""What a task is: one type that says what it takes, what it gives, and how it measures once.

A task knows nothing of schedules. The scheduler owns time, time-outs, exclusion and jitter; storage, validation and
baselines follow from the types given here.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from probe.clock import Clock
from probe.config import read_stamp_key
from probe.errors import ConfigError, NotRunError
from probe.links import Link
from probe.messages import NotRunReason, Peer
from probe.tasks.fit import Misfit

# A window is one row, and a power cut in the middle of it takes what it saw.
WINDOW_S_MAX = 3600.0


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

    Bytes of transport payload, both ways. `rate_bps` is the rate of payload that a task found, in its busier direction:
    with it a result can say that the interface itself was full. Of a bulk transfer that a task made, `cpu_ratio` is the
    share of one core that its thread used and `transfer_s` how long it took in seconds: with them a result can say that
    the host was the limit meanwhile, whatever idle time lies around it.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    rate_bps: float | None = None
    cpu_ratio: float | None = None
    transfer_s: float | None = None


@dataclass(slots=True)
class Interim:
    """What is true if a continuous measurement is ended now, by whoever stops the agent: for the task to fill.

    `values` gives nothing as long as there is nothing to tell.
    """

    values: Callable[[], Values | None] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a task may use: the link to measure, who answers, the clock, and how long it has.

    `time_out_s` is what the caller grants from the call on; `usage` is for the task to fill; `stamp_keys` has the
    file of each STAMP key of this device by name, `peer_ca_file` the authorities that vouch for peers with TLS (absent:
    the system's).

    Of a continuous task: `window_s` is how long it is to go on, from the call on; `start_boottime_ns` when its result
    started; `memory` is what the window before left for it, empty after a start of the agent; `interim` is for it to
    fill.
    """

    clock: Clock
    time_out_s: float
    link: Link | None = None
    peer: Peer | None = None
    usage: Usage = field(default_factory=Usage)
    stamp_keys: Mapping[str, str] = field(default_factory=dict)
    peer_ca_file: str | None = None
    window_s: float | None = None
    start_boottime_ns: int | None = None
    memory: dict[str, Any] = field(default_factory=dict)
    interim: Interim = field(default_factory=Interim)

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

    def stamp_key(self, peer: Peer) -> bytes | None:
        """The key that authenticates STAMP with a peer; absent when the peer wants none.

        It is read at each use: a key is replaced without a restart, and a missing one stops nothing else.

        Raises:
            NotRunError: the peer names a key that this device does not have, or cannot use (`tool_missing`).
        """
        if not peer.stamp_key:
            return None
        path = self.stamp_keys.get(peer.stamp_key)
        if path is None:
            problem = f"peer {peer.name} wants the STAMP key {peer.stamp_key!r}: name its file in [stamp_keys]"
            raise NotRunError(NotRunReason.TOOL_MISSING, f"{problem} of probe.toml")
        try:
            return read_stamp_key(Path(path))
        except ConfigError as error:
            raise NotRunError(NotRunReason.TOOL_MISSING, str(error)) from error


def _no_targets(_: Parameters) -> tuple[str, ...]:
    """What most tasks name in their parameters."""
    return ()


def _fits_always(_: Parameters, __: Peer | None) -> tuple[Misfit, ...]:
    """A task that can do with any parameters and any peer."""
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
        time_out_s: the longest that one measurement with these parameters can take; the scheduler ends it then. Of a
            continuous task: how much longer than its window.
        needs_link: whether it measures a link; one that does not runs once per slot, whatever the links.
        needs_peer: whether somebody must answer it.
        baseline_fields: the fields of `values` that baselines follow.
        targets: the hosts that parameters name: like a peer's, they must be within the device's own targets.
        misfits: why parameters and a peer cannot work together, as far as that is known before anything is sent. Asked
            by the fleet file's check, by the command lines and by the agent; nothing is measured that has one.
        continuous: whether it goes on all the time: each measurement is one window of a period's length, and the next
            begins where it ends. Its windows are at least twice `time_out_s` and at most `WINDOW_S_MAX`.
        needs_link_up: whether a link without a carrier is not measured (`link_down`); a task that measures just that
            is given it all the same.
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
    misfits: Callable[[P, Peer | None], Iterable[Misfit]] = _fits_always
    continuous: bool = False
    needs_link_up: bool = True


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
