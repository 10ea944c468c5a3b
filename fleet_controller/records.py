"""What the controller's stages hand to each other: messages as they came, results that were accepted or rejected."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from probe.messages import Result
from probe.tasks.base import AnyTask, Values


class Incoming(NamedTuple):
    """One message as the broker delivered it.

    `epoch` counts the connections: an acknowledgement is only good on the connection that brought the message.
    `mid` is 0 for a message sent with QoS 0, which nobody may acknowledge.
    """

    epoch: int
    mid: int
    topic: str
    payload: bytes


class RejectReason(StrEnum):
    """Why a message, or one result of it, was put into the quarantine. A closed list."""

    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    WRONG_TYPES = "wrong_types"
    FUTURE_SCHEMA = "future_schema"
    BAD_TOPIC = "bad_topic"
    FOREIGN_AGENT = "foreign_agent"
    UNKNOWN_AGENT = "unknown_agent"
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_LINK = "unknown_link"
    UNKNOWN_PEER = "unknown_peer"
    BAD_VALUES = "bad_values"
    BAD_VARIANT = "bad_variant"
    IMPLAUSIBLE_TIME = "implausible_time"
    REFUSED_BY_DATABASE = "refused_by_database"
    CONTROLLER_FAULT = "controller_fault"


class Origin(NamedTuple):
    """Which report a result came in, as far as a receipt and a replay need it."""

    topic: str
    agent_id: str
    sequence_space: str
    agent_version: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """One result that may be stored.

    `values` is `result.values` in the task's own type, absent for a failure and for what was not run. `tags` are
    bounded: names of the fleet file and words of the task's parameters; shared, not to be changed. `entry` is the
    report's entry as it came: the sequence and the result.
    """

    origin: Origin
    sequence: int
    task: AnyTask
    result: Result
    values: Values | None
    tags: dict[str, str]
    entry: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rejected:
    """One result, or one whole message, that cannot be stored now.

    `payload` is a report that holds just this result (or the whole message as it came), so that validating it again
    after a fix is the same work as the first time. `identity` tells equal payloads: a repeat of it is not kept again.
    """

    topic: str
    agent_id: str | None
    reason: RejectReason
    detail: str
    payload: bytes = field(repr=False)
    identity: bytes = field(repr=False)


@dataclass(slots=True)
class Taken:
    """The sequences of one report that the controller answers for, once they are durable."""

    agent_id: str
    sequence_space: str
    sequence_floor: int
    sequences: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What validation made of one message. `taken` is absent when its numbers cannot be trusted."""

    accepted: list[Accepted] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    taken: Taken | None = None


class Refused(NamedTuple):
    """A result that the database does not take, with the database's own words."""

    accepted: Accepted
    words: str
