"""From probes answered and lost to outages: when a line was down, where, and when nobody was looking.

Pure functions of what was sent and what came back, in seconds after the window's start on one clock that never steps.

- A probe speaks for the time from its sending to the next one's. Where the next one is late because the host stood
  still, it speaks for an interval only, and the rest is **unknown**, never an outage.
- One lost packet is loss. An outage is `losses` of them in a row; it begins when the first of them was sent and ends
  when the first answered one was. Both moments are late by less than an interval.
- Where it is down says the nearest level that is known to be silent. A level counts as silent only if it used to
  answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby, pairwise
from typing import Final

# Routers limit how many ICMP errors they send: one missing answer is no other place. So the place changes when two
# rounds in a row say so, and counts from the first of them.
_ROUNDS_UNTIL_MOVED: Final = 2


class State(StrEnum):
    """What is known of the line at a moment. `DOWN_UNLOCATED`: the peer is silent, and nobody can say who else is."""

    UP = "up"
    DOWN_LOCAL = "down_local"
    DOWN_GATEWAY = "down_gateway"
    DOWN_OPERATOR = "down_operator"
    DOWN_PEER = "down_peer"
    DOWN_UNLOCATED = "down_unlocated"
    UNKNOWN = "unknown"

    @property
    def is_down(self) -> bool:
        """Whether the peer could not be reached."""
        return self not in {State.UP, State.UNKNOWN}


_DISTANCE: Final = list(State)


@dataclass(slots=True)
class Round:
    """What was sent at one moment, and what came of it.

    `answered` is absent while the peer's answer may still come. `void` says that the host stood still meanwhile, so
    that a missing answer means nothing. Of the levels, True is an answer, False none from one that used to give one,
    and absent that it was not asked or cannot tell; `local` is whether the interface was fit to send.
    `peer_refused` is the peer's own word that it is there. `sent` is whether the host could send the packet at all.
    """

    at_s: float
    answered: bool | None = None
    void: bool = False
    local: bool | None = None
    gateway: bool | None = None
    operator: bool | None = None
    peer_refused: bool = False
    sent: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether nothing more can come of it."""
        return self.void or self.answered is not None

    @property
    def is_lost(self) -> bool:
        """Whether the line, and not the host, kept the answer."""
        return self.answered is False and not self.void


@dataclass(frozen=True, slots=True)
class Rules:
    """When lost packets are an outage, and when nobody watched: the next probe was `late_s` after the interval."""

    losses: int
    interval_s: float
    late_s: float

    @property
    def gap_s_max(self) -> float:
        """From one probe to the next, without the host having stood still."""
        return self.interval_s + self.late_s


@dataclass(frozen=True, slots=True)
class Segment:
    """A time in which one thing was true. `rounds` are those that say so."""

    start_s: float
    end_s: float
    state: State
    rounds: tuple[Round, ...] = field(default=())

    @property
    def length_s(self) -> float:
        """How long it was."""
        return self.end_s - self.start_s


def place(one: Round) -> State | None:
    """Where the line is down by what one lost round says; absent when it asked nobody but the peer."""
    if one.local is False:
        return State.DOWN_LOCAL
    if one.peer_refused or one.operator:
        return State.DOWN_PEER
    if one.gateway is False:
        return State.DOWN_GATEWAY
    if one.operator is False:
        return State.DOWN_OPERATOR
    return None if one.local is None else State.DOWN_UNLOCATED


def decided_until_s(rounds: Sequence[Round], rules: Rules, *, went_down: bool) -> float | None:
    """From when on nothing can be said yet: the sending of the first round that may or may not begin an outage.

    Absent when everything is decided. `went_down` says that the line was down when the window began.
    """
    run: list[Round] = []
    down = went_down
    for one in rounds:
        if one.void:
            continue
        if one.answered:
            run, down = [], False
            continue
        run.append(one)
        down = down or sum(lost.is_lost for lost in run) >= rules.losses
        if not one.is_settled:
            return run[0].at_s if not down else one.at_s
    return run[0].at_s if run and not down else None


def segments_of(rounds: Sequence[Round], rules: Rules, end_s: float, before: State | None) -> list[Segment]:
    """What was true from 0 to `end_s`, without gaps.

    Args:
        rounds: in order of sending, those after `end_s` included: they tell what the last ones before it mean.
        rules: when it is an outage.
        end_s: the end of the window, above 0.
        before: the state at the end of the window before; absent when nobody knows.
    """
    states = _states(rounds, rules, before)
    pieces = [Segment(0.0, end_s, State.UNKNOWN)] if not rounds else list(_pieces(rounds, states, rules, end_s))
    return _merged(pieces)


def _states(rounds: Sequence[Round], rules: Rules, before: State | None) -> list[State]:
    """What each round says. Void ones neither lengthen a run of losses nor end it."""
    states = [State.UNKNOWN if not one.is_settled or one.void else State.UP for one in rounds]
    for run in _runs(rounds):
        goes_on = before is not None and before.is_down and not any(one.answered for one in rounds[: run[0]])
        if len(run) >= rules.losses or goes_on:
            first = before if goes_on else None
            for index, where in zip(run, _places([rounds[index] for index in run], first), strict=True):
                states[index] = where
    return states


def _runs(rounds: Sequence[Round]) -> Iterator[list[int]]:
    """The rounds lost in a row, by their index."""
    run: list[int] = []
    for index, one in enumerate(rounds):
        if one.is_lost:
            run.append(index)
        elif one.answered and run:
            yield run
            run = []
    if run:
        yield run


def _places(run: Sequence[Round], before: State | None) -> list[State]:
    """Where the line was down in each round of an outage. A round that cannot say takes the place of the one before."""
    said = [place(one) for one in run]
    heard = [where for where in said if where is not None]
    current = before if before is not None else _first_place(heard)
    places: list[State] = []
    for where, ahead in zip(said, _words_ahead(said), strict=True):
        if where is not None and len(ahead) == _ROUNDS_UNTIL_MOVED and len(set(ahead)) == 1:
            current = where
        places.append(current)
    return places


def _words_ahead(said: Sequence[State | None]) -> list[tuple[State, ...]]:
    """From each round on, the next two words that there are."""
    ahead: list[tuple[State, ...]] = []
    coming: tuple[State, ...] = ()
    for where in reversed(said):
        coming = coming if where is None else (where, *coming[: _ROUNDS_UNTIL_MOVED - 1])
        ahead.append(coming)
    return ahead[::-1]


def _first_place(heard: Sequence[State]) -> State:
    """The first place that two rounds in a row agree on; where none do, the farthest.

    An answer is surer than a silence, which on a lossy line may be loss.
    """
    agreed = (first for first, second in pairwise(heard) if first == second)
    return next(agreed, max(heard, key=_DISTANCE.index, default=State.DOWN_UNLOCATED))


def _pieces(rounds: Sequence[Round], states: Sequence[State], rules: Rules, end_s: float) -> Iterator[Segment]:
    """Each round's own time, and what nobody speaks for. The first round speaks for the moments before it as well."""
    starts = [0.0 if one.at_s <= rules.gap_s_max and index == 0 else one.at_s for index, one in enumerate(rounds)]
    if starts[0] > 0:
        yield Segment(0.0, min(starts[0], end_s), State.UNKNOWN)
    for index, (start_s, one, state) in enumerate(zip(starts, rounds, states, strict=True)):
        next_s = min(starts[index + 1] if index + 1 < len(starts) else end_s, end_s)
        is_late = next_s - one.at_s > rules.gap_s_max
        covered_s = min(one.at_s + rules.interval_s, next_s) if is_late else next_s
        if start_s < end_s:
            yield Segment(start_s, covered_s, state, (one,))
            yield Segment(covered_s, next_s, State.UNKNOWN)


def _merged(pieces: Sequence[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for state, group in groupby((piece for piece in pieces if piece.length_s > 0), key=lambda piece: piece.state):
        same = list(group)
        rounds = tuple(one for piece in same for one in piece.rounds)
        merged.append(Segment(same[0].start_s, same[-1].end_s, state, rounds))
    return merged
