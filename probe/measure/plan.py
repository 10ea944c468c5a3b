"""What a measurement needs, found before anything is sent: the task, its parameters, the link and the peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from probe.clock import Clock
from probe.errors import NotRunError
from probe.links import Link
from probe.measure.invocation import Invocation
from probe.measure.targets import TargetGuard
from probe.messages import Action, LinkName, NotRunReason, Peer, PeerName
from probe.tasks.base import AnyTask, Parameters, variant_of
from probe.tasks.fit import refuse

# How long a continuous task goes on when a person asks for it, and no window follows.
_COMMAND_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A measurement that may be made. `window_end_s` is of a continuous one, on the monotonic clock."""

    task: AnyTask
    parameters: Parameters
    time_out_s: float
    link: Link | None
    peer: Peer | None
    window_end_s: float | None = None


class Planner:
    """Plans measurements on this device.

    Args:
        clock: the clocks.
        links: the device's links by name.
        guard: what the device agrees to be aimed at.
        tasks: the registry.
    """

    def __init__(
        self, clock: Clock, links: Mapping[LinkName, Link], guard: TargetGuard, tasks: Mapping[str, AnyTask]
    ) -> None:
        self._clock = clock
        self._links = links
        self._guard = guard
        self._tasks = tasks

    def plan(
        self,
        invocation: Invocation,
        action: Action,
        peer_name: PeerName | None,
        peers: Mapping[PeerName, Peer],
    ) -> Plan:
        """Find everything that a measurement needs. `peers` are those of the instruction in force.

        Raises:
            NotRunError: it must not or cannot be made.
        """
        task = self._tasks.get(action.task)
        if task is None:
            raise NotRunError(NotRunReason.UNKNOWN_TASK, f"this agent has no task {action.task!r}")
        parameters, time_out_s = _convert(action.parameters, task)
        for host in task.targets(parameters):
            self._guard.check(host)
        peer = self._find_peer(peer_name, task, peers)
        refuse(task.misfits(parameters, peer))
        plan = Plan(task, parameters, time_out_s, self._find_link(invocation.link, task), peer)
        return plan if not task.continuous else self._in_window(plan, invocation)

    def _in_window(self, plan: Plan, invocation: Invocation) -> Plan:
        """The plan of a continuous measurement, which goes on until the next one begins."""
        now_s = self._clock.monotonic_s()
        end_s = invocation.deadline_s if invocation.is_continuous else now_s + _COMMAND_WINDOW_S
        return replace(plan, window_end_s=end_s, time_out_s=end_s - now_s + plan.time_out_s)

    def _find_peer(self, name: PeerName | None, task: AnyTask, peers: Mapping[PeerName, Peer]) -> Peer | None:
        if name is None:
            if task.needs_peer:
                raise NotRunError(NotRunReason.UNKNOWN_PEER, f"{task.name} needs a peer and the action names none")
            return None
        peer = peers.get(name)
        if peer is None:
            raise NotRunError(NotRunReason.UNKNOWN_PEER, f"the instruction has no peer {name!r}")
        self._guard.check(peer.host)
        return peer

    def _find_link(self, name: LinkName | None, task: AnyTask) -> Link | None:
        if name is None:
            if task.needs_link:
                raise NotRunError(NotRunReason.UNKNOWN_LINK, f"{task.name} measures a link and was given none")
            return None
        link = self._links.get(name)
        if link is None:
            raise NotRunError(NotRunReason.UNKNOWN_LINK, f"this agent has no link {name!r}")
        if task.needs_link_up and not link.is_up():
            raise NotRunError(NotRunReason.LINK_DOWN, f"interface {link.interface} is absent or down")
        return link


def variant_asked(action: Action, task: AnyTask | None) -> dict[str, str]:
    """The series that a measurement which was not made would have belonged to, where its parameters say so."""
    try:
        return variant_of(_convert(action.parameters, task)[0]) if task is not None else {}
    except NotRunError:
        return {}


def _convert(raw: Mapping[str, Any], task: AnyTask) -> tuple[Parameters, float]:
    """The task's parameters, and how long a measurement with them may take.

    Raises:
        NotRunError: `bad_parameters`.
    """
    try:
        parameters = msgspec.convert(raw, task.parameters)
        return parameters, float(task.time_out_s(parameters))
    except (msgspec.ValidationError, ValueError) as error:
        raise NotRunError(NotRunReason.BAD_PARAMETERS, str(error)) from None
