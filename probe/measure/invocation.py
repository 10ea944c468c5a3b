"""What is to be measured now, and what of the instruction in force that needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from probe.messages import Action, LinkName, Peer, PeerName, Suppression


@dataclass(frozen=True, slots=True)
class Invocation:
    """The actions of one schedule, or command, to run now on one link.

    `deadline_s` is the end of its slot on the monotonic clock: a heavy measurement that could not begin until then does
    not begin. The actions of a continuous one go on side by side until then.
    """

    schedule: str
    link: LinkName | None
    actions: tuple[Action, ...]
    deadline_s: float
    cycle_number: int | None = None
    command_id: str | None = None
    is_continuous: bool = False

    @property
    def items(self) -> Sequence[tuple[Action, PeerName | None]]:
        """Each action with each of its peers in turn, in order."""
        return [(action, peer) for action in self.actions for peer in action.peers or (None,)]


@dataclass(slots=True)
class Instructed:
    """What of the instruction in force a measurement needs."""

    peers: Mapping[PeerName, Peer] = field(default_factory=dict)
    suppressions: tuple[Suppression, ...] = ()
