"""The fleet's status as a table for a terminal."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fleet_controller.free_text import visible
from fleet_controller.status import NS_PER_S, AgentView, FleetView, State
from probe.messages import ClockState

_STYLES: Final = {
    State.MEASURING: "green",
    State.SILENT: "bold red",
    State.STOPPED: "yellow",
    State.LOST: "bold red",
    State.NEVER_SEEN: "dim",
    State.UNKNOWN: "yellow",
}
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_COLUMNS = (
    "agent",
    "state",
    "last result",
    "last word",
    "spool",
    "dropped",
    "version",
    "instruction",
    "clock",
    "links",
)


def print_view(view: FleetView, console: Console) -> None:
    """Print the table and one line of sums."""
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
    for agent in view.agents:
        table.add_row(*(escape(visible(cell)) for cell in _cells(agent, view.at_unix_ns)), style=_STYLES[agent.state])
    console.print(table)
    states = [agent.state for agent in view.agents]
    sums = ", ".join(f"{states.count(state)} {state.value}" for state in State if state in states)
    console.print(f"{len(states)} agents: {sums or 'none'}", highlight=False)
    if view.database_problem is not None:
        console.print(f"The database could not be asked: {escape(visible(view.database_problem))}", style="bold red")


def _cells(agent: AgentView, now_ns: int) -> tuple[str, ...]:
    spool = agent.spool
    return (
        agent.agent_id + ("" if agent.in_fleet else " (not in the fleet file)"),
        agent.state.value.replace("_", " "),
        age(agent.last_result_unix_ns, now_ns),
        age(agent.reported_unix_ns, now_ns),
        "-" if spool is None else str(spool.results),
        "-" if agent.dropped is None else str(agent.dropped),
        agent.agent_version or "-",
        instruction_words(agent),
        _clock_words(agent),
        _link_words(agent, now_ns),
    )


def age(unix_ns: int | None, now_ns: int) -> str:
    """How long ago, in one or two figures."""
    if unix_ns is None:
        return "-"
    seconds = (now_ns - unix_ns) / NS_PER_S
    if seconds < 0:
        return "ahead of us" if seconds < -1 else "now"
    for limit, unit, name in ((_MINUTE_S, 1, "s"), (_HOUR_S, _MINUTE_S, "min"), (_DAY_S, _HOUR_S, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{seconds / _DAY_S:.0f} d ago"


def instruction_words(agent: AgentView) -> str:
    """The instruction in force against the desired one."""
    if agent.instruction_problem is not None:
        return f"refused: {agent.instruction_problem}"
    if agent.instruction_desired is None:
        return agent.instruction_in_force or "-"
    if agent.instruction_retained != agent.instruction_desired:
        return f"{agent.instruction_in_force or 'none'}, {agent.instruction_desired} not published: apply"
    if agent.state is State.LOST and agent.instruction_in_force is None:
        return f"{agent.instruction_desired} published"
    if agent.instruction_in_force != agent.instruction_desired:
        return f"{agent.instruction_in_force or 'none'}, {agent.instruction_desired} not taken yet"
    return agent.instruction_desired


def _clock_words(agent: AgentView) -> str:
    if agent.clock is None:
        return "-"
    if agent.clock.state is ClockState.SYNCHRONISED and agent.clock.max_error_s is not None:
        return f"±{agent.clock.max_error_s * 1000:.0f} ms"
    return agent.clock.state.value


def _link_words(agent: AgentView, now_ns: int) -> str:
    words = []
    for link in agent.links:
        result = age(agent.last_result_by_link.get(link.link), now_ns)
        words.append(f"{link.link} {'up' if link.up else 'DOWN'} {result}")
    return "; ".join(words) or "-"
