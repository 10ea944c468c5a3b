"""How the fleet is: what each agent said last, what of it arrived, and whether it does what it is told.

"Connected" is not "measuring": an agent counts as measuring only when its results stand in the database.

    measuring   online, and its newest result is younger than three of its shortest periods (one minute at least)
    silent      online, and nothing of it arrived for so long
    stopped     it said goodbye
    lost        the broker lost it (its Last Will)
    never_seen  neither a word nor a result of it
    unknown     online, and the database could not be asked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from fleet_controller.errors import StoreError
from fleet_controller.fleet.model import Fleet
from probe.messages import (
    AgentId,
    AgentState,
    ClockReading,
    Instruction,
    LinkName,
    LinkStatus,
    SpoolStatus,
    Status,
    parse_topic,
)

NS_PER_S: Final = 1_000_000_000
# One lost slot is chance, two are bad luck.
PERIODS_UNTIL_SILENT: Final = 3
# Below a minute the agent's batching and the way to the database would look like silence.
SILENT_AFTER_S_MIN: Final = 60.0
# How far back the newest result is looked for. A bound keeps the question cheap on every InfluxDB.
LOOK_BACK_DAYS: Final = 7
Query = Callable[[str], list[dict[str, Any]]]


class State(StrEnum):
    """What can be said of an agent; see the module."""

    MEASURING = "measuring"
    SILENT = "silent"
    STOPPED = "stopped"
    LOST = "lost"
    NEVER_SEEN = "never_seen"
    UNKNOWN = "unknown"


class AgentView(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one agent. Absent is `None`.

    `last_result_unix_ns` is the start of the newest stored result, `last_result_by_link` the same by link.
    `instruction_in_force` is the revision that the agent says it follows, `instruction_retained` the broker's,
    `instruction_desired` the fleet file's.
    """

    agent_id: AgentId
    state: State
    in_fleet: bool
    province: str | None = None
    reported_unix_ns: int | None = None
    last_result_unix_ns: int | None = None
    last_result_by_link: dict[LinkName, int] = {}
    agent_version: str | None = None
    instruction_in_force: str | None = None
    instruction_retained: str | None = None
    instruction_desired: str | None = None
    instruction_problem: str | None = None
    clock: ClockReading | None = None
    spool: SpoolStatus | None = None
    links: tuple[LinkStatus, ...] = ()

    @property
    def dropped(self) -> int | None:
        """What the spool had to drop since it was made."""
        spool = self.spool
        return None if spool is None else spool.dropped_age + spool.dropped_bytes + spool.dropped_disk


class FleetView(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment. `database_problem` says why results could not be asked for."""

    at_unix_ns: int
    agents: tuple[AgentView, ...]
    database_problem: str | None = None

    @property
    def all_measuring(self) -> bool:
        """Whether every agent of the fleet file is measuring."""
        return all(agent.state is State.MEASURING for agent in self.agents if agent.in_fleet)


def view_fleet(
    fleet: Fleet,
    desired: Mapping[AgentId, Instruction],
    revisions: Mapping[AgentId, str],
    retained: Mapping[str, bytes],
    ask: Callable[[], dict[AgentId, dict[LinkName | None, int]]],
    now_unix_ns: int | None = None,
) -> FleetView:
    """Put together what the fleet file, the broker and the database say.

    Args:
        fleet: the fleet file.
        desired: the instructions that follow from it.
        revisions: of the instructions that the broker retains.
        retained: the broker's retained messages by topic.
        ask: asks the database (`last_results`).
        now_unix_ns: the time to judge by; now where absent.
    """
    now = time.time_ns() if now_unix_ns is None else now_unix_ns
    said = read_statuses(retained)
    problem, results = None, None
    try:
        results = ask()
    except StoreError as error:
        problem = str(error)
    agents = []
    for agent_id in sorted({*fleet.probes, *said}):
        newest = None if results is None else results.get(agent_id, {})
        agents.append(_view(agent_id, fleet, desired.get(agent_id), revisions, said.get(agent_id), newest, now))
    return FleetView(at_unix_ns=now, agents=tuple(agents), database_problem=problem)


def read_statuses(retained: Mapping[str, bytes]) -> dict[AgentId, Status]:
    """The retained statuses that can be read, by agent."""
    found: dict[AgentId, Status] = {}
    for name, payload in retained.items():
        try:
            agent_id, leaf = parse_topic(name)
            if leaf == "status":
                found[agent_id] = msgspec.json.decode(payload, type=Status)
        except (ValueError, msgspec.MsgspecError):
            continue  # not of this contract, or garbage: the agent has then said nothing that counts
    return found


def last_results(query: Query, tasks: tuple[str, ...]) -> dict[AgentId, dict[LinkName | None, int]]:
    """When the newest stored result of each agent and link started.

    Raises:
        StoreError: the database cannot be asked.
    """
    measurements = ", ".join(f'"{task}"' for task in tasks)
    rows = query(
        f'SELECT last("sequence") FROM {measurements} '  # noqa: S608 - names of our own tasks
        f'WHERE time > now() - {LOOK_BACK_DAYS}d GROUP BY "agent_id", "link"'
    )
    newest: dict[AgentId, dict[LinkName | None, int]] = {}
    for row in rows:
        links = newest.setdefault(str(row["agent_id"]), {})
        link = row.get("link") or None
        links[link] = max(links.get(link, 0), int(row["time"]))
    return newest


def silent_after_s(instruction: Instruction | None) -> float:
    """How long no result may arrive before an agent counts as silent."""
    periods = [schedule.period_s for schedule in instruction.schedules] if instruction is not None else []
    return max(PERIODS_UNTIL_SILENT * min(periods, default=0.0), SILENT_AFTER_S_MIN)


def judge(status: Status | None, newest_ns: int | None, *, asked: bool, longest_s: float, now_ns: int) -> State:
    """What can be said of an agent.

    Args:
        status: its retained word; a broker that lost its disk has none, and then results speak for it.
        newest_ns: start of its newest stored result.
        asked: whether the database answered.
        longest_s: how old that may be.
        now_ns: the time.
    """
    fresh = newest_ns is not None and now_ns - newest_ns <= longest_s * NS_PER_S
    if status is None:
        if fresh:
            return State.MEASURING
        return State.LOST if newest_ns is not None else State.NEVER_SEEN
    if status.state is AgentState.STOPPED:
        return State.STOPPED
    if status.state is AgentState.LOST:
        return State.LOST
    if not asked:
        return State.UNKNOWN
    return State.MEASURING if fresh else State.SILENT


def _view(
    agent_id: AgentId,
    fleet: Fleet,
    desired: Instruction | None,
    revisions: Mapping[AgentId, str],
    status: Status | None,
    newest: Mapping[LinkName | None, int] | None,
    now_ns: int,
) -> AgentView:
    probe = fleet.probes.get(agent_id)
    newest_ns = max(newest.values(), default=None) if newest is not None else None
    longest_s = silent_after_s(desired)
    state = judge(status, newest_ns, asked=newest is not None, longest_s=longest_s, now_ns=now_ns)
    return AgentView(
        agent_id=agent_id,
        state=state,
        in_fleet=probe is not None,
        province=probe.province if probe is not None else None,
        last_result_unix_ns=newest_ns,
        last_result_by_link={link: at for link, at in (newest or {}).items() if link is not None},
        reported_unix_ns=status.reported_unix_ns if status is not None else None,
        agent_version=(status.agent_version or None) if status is not None else None,
        instruction_in_force=status.instruction_revision if status is not None else None,
        instruction_retained=revisions.get(agent_id),
        instruction_desired=desired.revision if desired is not None else None,
        instruction_problem=status.instruction_problem if status is not None else None,
        clock=status.clock if status is not None else None,
        spool=status.spool if status is not None else None,
        links=status.links if status is not None else (),
    )
