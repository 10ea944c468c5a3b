"""Keeping watch over a line: one small packet per round to the peer, and the other levels asked once in doubt.

While the peer answers, nobody else is asked, but for one question to each level per window: who used to answer is a
witness later. As soon as an answer is overdue, the interface, the gateway and the operator's router are asked in every
round, and rounds follow each other by a second at most, until all is clear.
"""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from probe.errors import NotRunError
from probe.flows.echo.engine import ByteCount
from probe.flows.echo.routes import next_hop
from probe.flows.watching.outages import Round, Rules, State, decided_until_s
from probe.flows.watching.voices import HopVoice, Opener, Voice, echo_opener, fit_source, knows_way
from probe.links import IpVersion, Link
from probe.messages import NotRunReason

# Rounds are this far apart at most once something is in doubt.
QUICK_S: Final = 1.0
# An answer that took longer is overdue; a healthy line by satellite takes 0.6 s.
_DOUBT_AFTER_S: Final = 0.8
# A host that comes this much too late was not there: a busy one is late by tenths of a second.
STALL_S: Final = 1.0
# Questions without an answer, while the peer gave one, until a level is known to give none.
_MISSES_MAX: Final = 3
# Of an outage that has lasted for this many rounds, the place is asked about in every tenth only.
_LONG_ROUNDS: Final = 60
_LONG_ONE_IN: Final = 10
_SEARCH_S: Final = 0.4

LevelName = Literal["gateway", "operator"]


@dataclass(slots=True)
class Learned:
    """What one window leaves for the next one: who answers on this line, and how it was when the window ended.

    `operator` is the operator's own host of which `answers` speaks; absent, it is the router at `hop`. `needs_route`
    is false on a line over which the peer answers although no route leads there, as over a modem without neighbours.
    """

    addresses: dict[str, str] = field(default_factory=dict)
    gateway: str | None = None
    hop: int | None = None
    operator: str | None = None
    needs_route: bool = True
    answers: dict[LevelName, bool] = field(default_factory=dict)
    end_boottime_s: float | None = None
    state: State | None = None

    def forget_operator(self) -> None:
        """The router at `hop` is asked again: what the operator's own host answered says nothing of it."""
        if self.operator is not None:
            self.operator = None
            self.answers.pop("operator", None)


@dataclass(slots=True)
class _Witness:
    """A level that may tell where the line is down.

    `is_sure` says that this window knows whether it answers; `asked` has its open questions, oldest first.
    """

    name: LevelName
    voice: Voice | None = None
    is_sure: bool = False
    misses: int = 0
    asked: dict[int, Round] = field(default_factory=dict)


class Watch:
    """The rounds of one window.

    Args:
        link: the line.
        version: of IP.
        rules: when lost packets are an outage.
        interval_s: from round to round while all is well.
        time_out_s: after which a packet is lost.
        learned: what earlier windows know; kept up to date.
        usage: where the cost is kept.

    Attributes:
        rounds: so far, in order.
        step_s: from look to look.
    """

    def __init__(
        self,
        link: Link,
        version: IpVersion,
        rules: Rules,
        *,
        interval_s: float,
        time_out_s: float,
        learned: Learned,
        usage: ByteCount,
    ) -> None:
        self.rounds: list[Round] = []
        self.step_s = interval_s / math.ceil(interval_s / QUICK_S)
        self._link = link
        self._version = version
        self._rules = rules
        self._interval_s = interval_s
        self._time_out_s = time_out_s
        self._learned = learned
        self._usage = usage
        self._peer: Voice | None = None
        self._peer_before: Voice | None = None
        self._peer_address: str | None = None
        self._gateway_address: str | None = None
        self._operator_address: str | None = None
        self._gateway = _Witness("gateway")
        self._operator = _Witness("operator")
        self._pending: deque[Round] = deque()
        self._lost_in_row = 0
        self._search_at_s: float | None = None
        self._is_searched = False
        self._is_routed = False

    def set_peer(self, address: str, opener: Opener) -> None:
        """Who is to answer from now on, and at which address.

        What the address before was asked may still be answered: a name with several addresses is one peer.
        """
        if address == self._peer_address:
            return
        self._listen()
        if self._peer_before is not None:
            self._peer_before.close()
        self._peer_before = self._peer
        self._peer_address, self._peer = address, Voice(opener, self._usage)
        if self._operator.voice is None or isinstance(self._operator.voice, HopVoice):
            self._ask_hop_towards(address)

    def _ask_hop_towards(self, address: str) -> None:
        """Echo by ICMP towards the peer, whatever the peer itself is asked by."""
        if self._operator.voice is not None:
            self._operator.voice.close()
        self._operator.voice = HopVoice(echo_opener(self._link, address), self._usage, self._learned.hop)
        # What was asked on the way to another address has nobody left to hear it, which is no silence of the router.
        self._operator.asked.clear()
        self._is_searched, self._search_at_s = False, None

    def set_operator(self, address: str) -> None:
        """Ask this host instead of a router on the way."""
        if address == self._operator_address:
            return
        if self._operator.voice is not None:
            self._operator.voice.close()
        if address != self._learned.operator:
            # That somebody else used to answer says nothing of this one.
            self._learned.operator = address
            self._learned.answers.pop("operator", None)
        self._operator_address = address
        self._operator = _Witness("operator", Voice(echo_opener(self._link, address), self._usage))
        self._search_at_s = None

    def close(self) -> None:
        """Give all sockets up."""
        for voice in (self._peer, self._peer_before, self._gateway.voice, self._operator.voice):
            if voice is not None:
                voice.close()

    def is_decided(self, until_s: float, *, went_down: bool) -> bool:
        """Whether everything up to a moment can be told."""
        undecided_s = decided_until_s(self.rounds, self._rules, went_down=went_down)
        return undecided_s is None or undecided_s >= until_s

    def stall(self) -> None:
        """The host stood still. What it was answered meanwhile is in the sockets; what is missing means nothing."""
        self._listen()
        for one in self._pending:
            one.void = one.answered is None
        self._pending.clear()
        for witness in (self._gateway, self._operator):
            witness.asked.clear()

    def look(self, at_s: float) -> None:
        """Take what came in, and give up what is overdue."""
        self._listen()
        self._give_up(at_s)

    def ask(self, at_s: float) -> None:
        """Send the next round if it is time."""
        in_doubt = self._in_doubt(at_s)
        is_quick = in_doubt and self._lost_in_row <= _LONG_ROUNDS
        if is_quick or not self.rounds or at_s - self.rounds[-1].at_s > self._interval_s - self.step_s / 2:
            self._send(at_s, in_doubt=in_doubt)

    def _in_doubt(self, at_s: float) -> bool:
        if self._pending:
            return at_s - self._pending[0].at_s > _DOUBT_AFTER_S
        return bool(self.rounds) and self.rounds[-1].is_lost

    def _send(self, at_s: float, *, in_doubt: bool) -> None:
        one = Round(at_s)
        self.rounds.append(one)
        if in_doubt:
            self._check_interface(one)
        if one.local is not False:
            self._ask_peer(one)
        if in_doubt and one.sent:
            one.sent = self._has_way(self._peer_address)
        if one.answered is None:
            self._pending.append(one)
        else:
            self._lost_in_row += not one.void
        if one.local is False:
            return
        if in_doubt:
            self._ask_levels(one)
        elif len(self.rounds) > 1 and self.rounds[-2].answered:
            self._learn(one)

    def _check_interface(self, one: Round) -> None:
        source = fit_source(self._link, self._version)
        if source is None:
            one.local = one.answered = False
        if source is None or (self._peer is not None and self._peer.source() not in {None, source}):
            self.close()

    def _ask_peer(self, one: Round) -> None:
        if self._peer is None:
            one.answered = False  # nobody could tell its address
            return
        try:
            self._peer.send(len(self.rounds))
            one.sent = True
        except NotRunError as error:
            self._refused(one, error)
        except OSError as error:
            self._check_interface(one)
            # A queue of the host's own that is full says nothing of the line.
            one.void = error.errno == errno.ENOBUFS and one.local is not False
            one.answered = False
            if not one.void:
                self.close()

    def _refused(self, one: Round, error: NotRunError) -> None:
        if error.not_run.reason is not NotRunReason.LINK_DOWN:
            raise error
        one.local = one.answered = False
        self.close()

    def _ask_levels(self, one: Round) -> None:
        if self._lost_in_row > _LONG_ROUNDS and len(self.rounds) % _LONG_ONE_IN:
            return
        one.local = True
        if self._gateway.voice is None:
            self._find_gateway()
        self._ask(self._gateway, one)
        if self._has_way(self._operator_address or self._peer_address):
            self._ask(self._operator, one)

    def _has_way(self, address: str | None) -> bool:
        """Whether what is sent there can leave: else a silence is the host's own, and nobody else's."""
        return address is None or not self._learned.needs_route or knows_way(self._link, self._version, address)

    def _learn(self, one: Round) -> None:
        """While all is well: find out who answers, once per window."""
        if not self._is_routed:
            self._is_routed = True
            self._find_gateway()
            address = self._peer_address
            self._learned.needs_route = address is None or knows_way(self._link, self._version, address)
        if not self._gateway.is_sure:
            self._ask(self._gateway, one)
        hop_voice = self._operator.voice
        if isinstance(hop_voice, HopVoice) and hop_voice.hop is None:
            self._search(hop_voice, one.at_s)
        elif not self._operator.is_sure:
            self._ask(self._operator, one)

    def _find_gateway(self) -> None:
        """The neighbour on the way to the peer. Without a route, as in an outage, it is the one that was known."""
        source = fit_source(self._link, self._version)
        if source is None or self._peer_address is None:
            return
        try:
            found = next_hop(self._link.interface, source, self._peer_address)
        except OSError:
            found = None
        if found is not None and found != self._learned.gateway:
            self._learned.gateway = found
            self._learned.answers.pop("gateway", None)
        self._ask_gateway_at(self._learned.gateway)

    def _ask_gateway_at(self, address: str | None) -> None:
        if address is None or address == self._gateway_address:
            return
        if self._gateway.voice is not None:
            self._gateway.voice.close()
        self._gateway_address = address
        self._gateway.voice = Voice(echo_opener(self._link, address), self._usage)

    def _search(self, voice: HopVoice, at_s: float) -> None:
        if self._search_at_s is None and not self._is_searched:
            self._is_searched, self._search_at_s = True, at_s
            self._try(voice.search)
        elif self._search_at_s is not None and at_s - self._search_at_s >= _SEARCH_S:
            self._search_at_s = None
            self._learned.hop = voice.take_found(self._learned.gateway)
            # It has just answered.
            self._operator.is_sure = self._learned.answers["operator"] = self._learned.hop is not None

    def _ask(self, witness: _Witness, one: Round) -> None:
        voice, number = witness.voice, len(self.rounds)
        if voice is None or (isinstance(voice, HopVoice) and voice.hop is None):
            return
        if self._try(lambda: voice.send(number)):
            witness.asked[number] = one

    def _try(self, send: Callable[[], None]) -> bool:
        """Whether a witness could be asked: of one that could not, nothing is known."""
        try:
            send()
        except (OSError, NotRunError):
            return False
        return True

    def _listen(self) -> None:
        for voice in (self._peer, self._peer_before):
            for heard in () if voice is None else voice.heard():
                self._take_answer(heard.sequence, refused=heard.refused)
        for witness in (self._gateway, self._operator):
            if witness.voice is None or not (witness.asked or self._search_at_s is not None):
                continue
            for heard in witness.voice.heard():
                self._take_witness(witness, heard.sequence)

    def _take_answer(self, number: int, *, refused: bool) -> None:
        if not 1 <= number <= len(self.rounds):
            return
        one = self.rounds[number - 1]
        if one.is_settled:
            return
        one.peer_refused = refused
        if not refused:
            one.answered = one.sent = True
            self._lost_in_row = 0
            self._pending.remove(one)

    def _take_witness(self, witness: _Witness, number: int) -> None:
        one = witness.asked.pop(number, None)
        if one is None:
            return
        witness.is_sure, witness.misses = True, 0
        self._learned.answers[witness.name] = True
        setattr(one, witness.name, True)

    def _give_up(self, at_s: float) -> None:
        """Settle what can no longer be answered."""
        for witness in (self._gateway, self._operator):
            while witness.asked and at_s - next(iter(witness.asked.values())).at_s > self._time_out_s:
                self._miss(witness, witness.asked.pop(next(iter(witness.asked))))
        while self._pending and at_s - self._pending[0].at_s > self._time_out_s:
            self._pending.popleft().answered = False
            self._lost_in_row += 1

    def _miss(self, witness: _Witness, one: Round) -> None:
        if not one.answered:
            # Who used to answer and does not any more is silent; of who never did, nothing is known.
            if self._learned.answers.get(witness.name):
                setattr(one, witness.name, False)
            return
        witness.misses += 1
        if witness.misses >= _MISSES_MAX:
            witness.is_sure = True
            self._learned.answers[witness.name] = False
            if isinstance(witness.voice, HopVoice):
                self._learned.hop = witness.voice.hop = None
