"""From the fleet file to what each agent is told: its retained Instruction.

An instruction has only what its agent needs, and a revision that is a digest of it. The broker retains it, so an
agent that comes back after a month reads the newest at once, and one that is retained already is not sent again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

from fleet_controller.broker_session import BrokerSession, Outgoing
from fleet_controller.errors import BrokerError, ControllerError
from fleet_controller.fleet.model import Fleet, FleetProbe, FleetSchedule, FleetSuppression
from probe.messages import (
    LINKS_MAX,
    MEASUREMENTS_MAX,
    PACKET_BYTES_MAX,
    PEERS_MAX,
    SCHEDULES_MAX,
    SUPPRESSIONS_MAX,
    Action,
    AgentId,
    Instruction,
    Schedule,
    Suppression,
    encode,
    parse_topic,
    topic,
)

log = logging.getLogger(__name__)

# Half of 2^48 fleets of revisions before two are likely to be alike; short enough to read to a colleague.
REVISION_DIGITS: Final = 12
# Vietnam keeps one offset all year.
_VIETNAM_OFFSET_S: Final = 7 * 3600
_DAY_S: Final = 86_400
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# What the topic and the properties of a packet may need beside the instruction.
_PACKET_OVERHEAD_BYTES: Final = 1024


class InstructionTooLongError(ControllerError):
    """An instruction does not fit into a packet that the broker takes, or asks more than an agent does."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one agent's retained instruction becomes.

    `unknown` is an agent that the fleet file does not have (any more) and that is left alone; `removed` is one
    whose instruction is cleared.
    """

    agent_id: AgentId
    kind: Literal["new", "changed", "same", "unknown", "removed"]
    retained: str | None
    desired: str | None


def instructions_for(fleet: Fleet, issued_unix_ns: int | None = None) -> dict[AgentId, Instruction]:
    """The instruction of every agent of the fleet.

    Args:
        fleet: the checked fleet file.
        issued_unix_ns: the time that the instructions carry, now where absent. It is no part of the revision.

    Raises:
        InstructionTooLongError: one does not fit into a packet.
    """
    issued = time.time_ns() if issued_unix_ns is None else issued_unix_ns
    return {agent_id: compile_instruction(fleet, agent_id, issued) for agent_id in sorted(fleet.probes)}


def compile_instruction(fleet: Fleet, agent_id: AgentId, issued_unix_ns: int) -> Instruction:
    """What one agent of the fleet is told.

    Raises:
        KeyError: the fleet has no such agent.
        InstructionTooLongError: it does not fit into a packet, or has more than an agent takes.
    """
    probe = fleet.probes[agent_id]
    schedules = tuple(_schedules(fleet, probe))
    used = {peer for schedule in schedules for action in schedule.actions for peer in action.peers}
    content = Instruction(
        agent_id=agent_id,
        revision="",
        issued_unix_ns=0,
        peers=tuple(fleet.peers[name].for_agents(name) for name in sorted(used)),
        schedules=schedules,
        suppressions=tuple(_suppressions(fleet, agent_id, {schedule.name for schedule in schedules})),
    )
    _check_bounds(content)
    instruction = msgspec.structs.replace(content, revision=revision_of(content), issued_unix_ns=issued_unix_ns)
    size = len(encode(instruction))
    if size > PACKET_BYTES_MAX - _PACKET_OVERHEAD_BYTES:
        raise InstructionTooLongError(
            f"the instruction of {agent_id} has {size} bytes, more than a packet takes: give it fewer schedules"
        )
    return instruction


def _check_bounds(instruction: Instruction) -> None:
    """An agent refuses an instruction beyond these as a whole, and goes on by the one before."""
    longest_slot = max((_slot_length(schedule) for schedule in instruction.schedules), default=0)
    for count, most, what in (
        (len(instruction.schedules), SCHEDULES_MAX, "schedules"),
        (len(instruction.peers), PEERS_MAX, "peers"),
        (len(instruction.suppressions), SUPPRESSIONS_MAX, "suppressions"),
        (max((len(schedule.links) for schedule in instruction.schedules), default=0), LINKS_MAX, "links"),
        (longest_slot, MEASUREMENTS_MAX, "measurements in one slot of a schedule"),
    ):
        if count > most:
            problem = f"the instruction of {instruction.agent_id} has {count} {what}, and an agent takes {most}"
            raise InstructionTooLongError(f"{problem}: give it fewer")


def _slot_length(schedule: Schedule) -> int:
    return sum(max(len(action.peers), 1) for action in schedule.actions)


def revision_of(instruction: Instruction) -> str:
    """The digest of an instruction's content: SHA-256, without its revision and its issue time, keys sorted."""
    # Through the wire and back first, so that 60 and 60.0 seconds are one content.
    travelled = msgspec.json.decode(encode(instruction), type=Instruction)
    content = msgspec.structs.replace(travelled, revision="", issued_unix_ns=0)
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:REVISION_DIGITS]


def retained_revisions(retained: Mapping[str, bytes]) -> dict[AgentId, str]:
    """The revision of each retained instruction; empty text for one that cannot be read."""
    revisions: dict[AgentId, str] = {}
    for name, payload in retained.items():
        try:
            agent_id, leaf = parse_topic(name)
        except ValueError:
            continue  # not of this contract: not ours to touch
        if leaf == "instruction" and payload:
            revisions[agent_id] = _revision(payload)
    return revisions


def plan_changes(
    instructions: Mapping[AgentId, Instruction], retained: Mapping[AgentId, str], *, remove: bool = False
) -> list[Change]:
    """What has to change at the broker, by agent.

    Args:
        instructions: what is desired.
        retained: the revisions that the broker has.
        remove: whether to clear the instructions of agents that are not desired.
    """
    changes = []
    for agent_id in sorted({*instructions, *retained}):
        has, wanted = retained.get(agent_id), instructions.get(agent_id)
        if wanted is None:
            changes.append(Change(agent_id, "removed" if remove else "unknown", has, None))
        elif has is None:
            changes.append(Change(agent_id, "new", None, wanted.revision))
        else:
            kind: Literal["same", "changed"] = "same" if has == wanted.revision else "changed"
            changes.append(Change(agent_id, kind, has, wanted.revision))
    return changes


def send_changes(
    changes: list[Change], instructions: Mapping[AgentId, Instruction], publish: Callable[[str, bytes], object]
) -> int:
    """Hand what changes to `publish(topic, payload)`, which must retain it at QoS 1. Gives how many those were.

    For a running controller, too: a broker that lost its disk retains nothing, so every change is `new`.
    """
    sent = 0
    for change in changes:
        if change.kind in {"new", "changed"}:
            publish(topic(change.agent_id, "instruction"), encode(instructions[change.agent_id]))
            sent += 1
        elif change.kind == "removed":
            publish(topic(change.agent_id, "instruction"), b"")  # an empty retained message clears what is retained
            sent += 1
    return sent


def publish_instructions(
    session: BrokerSession, instructions: Mapping[AgentId, Instruction], *, remove: bool = False, dry_run: bool = False
) -> list[Change]:
    """Make the broker retain these instructions, and send only what it does not have yet.

    Raises:
        BrokerError: the connection broke, or the broker refused one of them.
    """
    changes = plan_changes(instructions, retained_revisions(session.retained("instruction")), remove=remove)
    if dry_run:
        return changes
    messages: list[Outgoing] = []
    send_changes(changes, instructions, lambda name, payload: messages.append(Outgoing(name, payload, retain=True)))
    refused = [
        f"{message.topic}: {code}"
        for message, code in zip(messages, session.publish(messages), strict=True)
        if code.is_failure
    ]
    if refused:
        raise BrokerError(f"the broker refused {len(refused)} of {len(messages)} instructions: {refused[0]}")
    log.info("Instructions were published: %d of %d had changed.", len(messages), len(changes))
    return changes


def _revision(payload: bytes) -> str:
    try:
        instruction = msgspec.json.decode(payload, type=Instruction)
    except msgspec.MsgspecError:
        return ""
    # What claims a revision that is not the digest of its content is not what we published.
    return instruction.revision if revision_of(instruction) == instruction.revision else ""


def _schedules(fleet: Fleet, probe: FleetProbe) -> Iterator[Schedule]:
    """The schedules that this probe has a link for, by name, each with the links it runs on."""
    names = fleet.schedules if probe.schedules is None else probe.schedules
    for name in sorted(set(names)):
        wanted = fleet.schedules[name]
        links = tuple(sorted(_links(probe, wanted)))
        if links:
            yield Schedule(
                name=name,
                period_s=wanted.period_s,
                actions=tuple(
                    Action(name=action.label, task=action.task, peers=action.peers, parameters=action.parameters)
                    for action in wanted.actions
                ),
                links=links,
            )


def _links(probe: FleetProbe, schedule: FleetSchedule) -> Iterator[str]:
    for name, link in probe.links.items():
        by_access = not schedule.access or link.access in schedule.access
        by_name = not schedule.links or name in schedule.links
        if by_access and by_name:
            yield name


def _suppressions(fleet: Fleet, agent_id: AgentId, own: set[str]) -> Iterator[Suppression]:
    """The suppressions that touch this agent, by name."""
    for name, wanted in sorted(fleet.suppressions.items()):
        schedules = tuple(sorted(own.intersection(wanted.schedules)))
        if wanted.schedules and not schedules:
            continue
        if wanted.probes and agent_id not in wanted.probes:
            continue
        if wanted.provinces and fleet.probes[agent_id].province not in wanted.provinces:
            continue
        yield _suppression(name, wanted, schedules)


def _suppression(name: str, wanted: FleetSuppression, schedules: tuple[str, ...]) -> Suppression:
    return Suppression(
        name=name,
        schedules=schedules,
        start_unix_ns=_unix_ns(wanted.start),
        end_unix_ns=_unix_ns(wanted.end),
        daily_start_s=_second_of_day(wanted.daily_start),
        daily_end_s=_second_of_day(wanted.daily_end),
    )


def _unix_ns(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _second_of_day(text: str | None) -> int | None:
    """Seconds after 00:00 UTC of a time of day in Vietnam."""
    if text is None:
        return None
    hours, minutes = text.split(":")
    return (int(hours) * 3600 + int(minutes) * 60 - _VIETNAM_OFFSET_S) % _DAY_S
