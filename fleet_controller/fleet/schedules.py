"""Schedules and suppressions of a fleet file: what is measured when, and when not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fleet_controller.fleet.model import FleetAction, FleetSchedule, FleetSuppression
from fleet_controller.fleet.parts import Collector, Path
from fleet_controller.fleet.yaml_lines import Lined
from probe.messages import COMMAND_SCHEDULE, Peer
from probe.tasks.base import WINDOW_S_MAX, AnyTask, Parameters
from probe.tasks.fit import PEER_FIELD, Misfit


class ScheduleReader:
    """Reads schedules, and checks each action against the task that it names."""

    def __init__(
        self,
        out: Collector,
        tasks: Mapping[str, AnyTask],
        *,
        peer_names: Collection[str],
        peers: Mapping[str, Peer],
        links: Collection[str],
    ) -> None:
        self._out = out
        self._tasks = tasks
        self._peer_names = peer_names
        self._peers = peers
        self._links = links

    def read(self, spot: Lined, path: Path) -> FleetSchedule | None:
        """One schedule."""
        self._out.reference(spot.children.get("links"), (*path, "links"), "link", self._links)
        if path[-1] == COMMAND_SCHEDULE:
            self._out.say(spot.line, path, "this name is kept for commands", "give the schedule another one")
        actions = spot.children.get("actions")
        ready: dict[str, Any] = {}
        if actions is not None:
            ready["actions"] = self._actions(actions, (*path, "actions"), spot.children.get("period_s"))
        return self._out.convert(spot, path, FleetSchedule, ready)

    def _actions(self, spot: Lined, path: Path, period: Lined | None) -> tuple[FleetAction, ...] | None:
        if not isinstance(spot.value, list) or not spot.children:
            self._out.say(spot.line, path, "a schedule has a list of actions", "write `- {task: …, peers: […]}` lines")
            return None
        actions = [self._action(child, (*path, step), period) for step, child in spot.children.items()]
        whole = tuple(action for action in actions if action is not None)
        self._unique(spot, path, actions)
        return whole if len(whole) == len(actions) else None

    def _unique(self, spot: Lined, path: Path, actions: list[FleetAction | None]) -> None:
        seen: set[str] = set()
        for step, action in enumerate(actions):
            if action is None:
                continue
            if action.label in seen:
                line = spot.children[step].line
                self._out.say(line, (*path, step), f"a second action {action.label!r}", "give each a `name` of its own")
            seen.add(action.label)

    def _action(self, spot: Lined, path: Path, period: Lined | None) -> FleetAction | None:
        self._out.reference(spot.children.get("peers"), (*path, "peers"), "peer", self._peer_names)
        self._peers_once(spot.children.get("peers"), (*path, "peers"))
        self._out.reference(spot.children.get("task"), (*path, "task"), "task", self._tasks)
        action = self._out.convert(spot, path, FleetAction)
        named = spot.children.get("task")
        task = self._tasks.get(named.value) if named is not None and isinstance(named.value, str) else None
        if task is None:
            return action
        if action is not None and task.needs_peer and not action.peers:
            self._out.say(spot.line, path, f"the task {task.name} needs a peer", "name one in `peers`")
        parameters = self._out.convert(
            spot.children.get("parameters", Lined({}, spot.line)), (*path, "parameters"), task.parameters
        )
        if parameters is None:
            return None
        self._misfits(spot, path, task, parameters)
        if task.continuous:
            return action if self._window(task, parameters, period, path) else None
        self._time(spot, path, task, parameters, period)
        return action

    def _peers_once(self, spot: Lined | None, path: Path) -> None:
        seen: set[object] = set()
        for step, child in (spot.children if spot is not None else {}).items():
            if isinstance(child.value, str) and child.value in seen:
                self._out.say(child.line, (*path, step), f"{child.value!r} stands there twice", "remove one of them")
            seen.add(child.value if isinstance(child.value, str) else None)

    def _misfits(self, spot: Lined, path: Path, task: AnyTask, parameters: Parameters) -> None:
        """Say what the task cannot do: at each peer that stands there and is without mistakes, or without one."""
        named = spot.children.get("peers", Lined([], spot.line)).children
        if not named and not task.needs_peer:
            for misfit in task.misfits(parameters, None):
                self._misfit(spot, path, misfit)
        said: set[Misfit] = set()  # of a parameter, once is enough
        for step, child in named.items():
            peer = self._peers.get(child.value) if isinstance(child.value, str) else None
            for misfit in task.misfits(parameters, peer) if peer is not None else ():
                if misfit.field == PEER_FIELD:
                    self._out.say(child.line, (*path, PEER_FIELD, step), misfit.problem, misfit.remedy)
                elif misfit not in said:
                    self._misfit(spot, path, misfit)
                    said.add(misfit)

    def _misfit(self, spot: Lined, path: Path, misfit: Misfit) -> None:
        self._out.misfit(spot.at("parameters"), (*path, "parameters"), misfit)

    def _window(self, task: AnyTask, parameters: Parameters, period: Lined | None, path: Path) -> bool:
        """A continuous task goes on for a whole period: say whether that is a window it can have."""
        shortest_s = 2 * task.time_out_s(parameters)
        if period is None or not isinstance(period.value, int | float) or period.value < 1:
            return True  # said of the period itself
        if shortest_s <= period.value <= WINDOW_S_MAX:
            return True
        problem = f"{task.name} goes on all the time, in windows of {shortest_s:g} to {WINDOW_S_MAX:g} s"
        self._out.say(period.line, (*path[:2], "period_s"), problem, f"such as {max(shortest_s, 60):g}")
        return False

    def _time(self, spot: Lined, path: Path, task: AnyTask, parameters: Parameters, period: Lined | None) -> None:
        """Warn of a measurement that can outlast its slot."""
        longest_s = task.time_out_s(parameters)
        if period is not None and isinstance(period.value, int | float) and longest_s > period.value >= 1:
            self._out.warn(
                spot.line,
                path,
                f"may take {longest_s:g} s, longer than the period",
                "lengthen the period or shorten the task",
            )


class SuppressionReader:
    """Reads suppressions."""

    def __init__(
        self,
        out: Collector,
        schedules: Collection[str],
        probes: Collection[str],
        province: Callable[[Lined, Path], str | None],
    ) -> None:
        self._out = out
        self._schedules = schedules
        self._probes = probes
        self._province = province

    def read(self, spot: Lined, path: Path) -> FleetSuppression | None:
        """One suppression."""
        self._out.reference(spot.children.get("schedules"), (*path, "schedules"), "schedule", self._schedules)
        self._out.reference(spot.children.get("probes"), (*path, "probes"), "probe", self._probes)
        ready: dict[str, Any] = {}
        provinces = spot.children.get("provinces")
        if provinces is not None and isinstance(provinces.value, list):
            slugs = [self._province(child, (*path, "provinces", step)) for step, child in provinces.children.items()]
            ready["provinces"] = tuple(slug for slug in slugs if slug is not None)
        suppression = self._out.convert(spot, path, FleetSuppression, ready)
        if suppression is not None:
            self._window(spot, path, suppression)
        return suppression

    def _window(self, spot: Lined, path: Path, it: FleetSuppression) -> None:
        daily = it.daily_start is not None or it.daily_end is not None
        once = it.start is not None or it.end is not None
        if daily == once:
            problem = "has two kinds of window" if daily else "has no window"
            self._out.say(spot.line, path, problem, "give start (and end), or daily_start and daily_end")
        elif daily and (it.daily_start is None or it.daily_end is None):
            self._out.say(spot.line, path, "has half a daily window", "give daily_start and daily_end")
        elif daily and it.daily_start == it.daily_end:
            self._out.say(spot.line, path, "has an empty daily window", "daily_end differs from daily_start")
        elif it.start is not None and it.end is not None and it.end <= it.start:
            self._out.say(spot.at("end").line, (*path, "end"), "is not after start", "correct one of them")
