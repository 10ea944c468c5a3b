"""What a trace is asked for and what it gives: the plan, the hops, and whether it is a measurement at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from probe.errors import MeasurementFailedError
from probe.flows.faults import failed, kind_of
from probe.flows.path.hops import Hop
from probe.messages import FailureKind, Operation

EndedBy = Literal["destination", "unreachable", "silence", "hops_max", "time"]


@dataclass(frozen=True, slots=True)
class TracePlan:
    """How to trace.

    Attributes:
        probes_per_hop: probes of each TTL.
        hops_max: the highest TTL.
        silent_hops_max: the trace ends after so many hops in a row without an answer; also how far it looks ahead.
        interval_s: the least time between two probes.
        time_out_s: how long a probe may be on its way.
        limit_s: the trace ends after so long, whatever it has found.
    """

    probes_per_hop: int
    hops_max: int
    silent_hops_max: int
    interval_s: float
    time_out_s: float
    limit_s: float


@dataclass(slots=True)
class Traced:
    """What a trace found: the hops up to the last that answered, and why it went no further."""

    hops: list[Hop] = field(default_factory=list)
    ended_by: EndedBy = "silence"
    sent: int = 0
    send_error: OSError | None = None

    def destination_ttl(self) -> int | None:
        """How many hops away the destination is; absent when it did not answer."""
        return next((hop.ttl for hop in self.hops if hop.is_destination()), None)


def raise_if_failed(traced: Traced, is_up: Callable[[], bool]) -> None:
    """Tell a trace that found out something from one in which the link, or our own kernel, said no.

    A path on which nobody answers is no failure: that is what was measured.

    Raises:
        MeasurementFailedError: the link went away meanwhile (`link_lost`), or no probe could be sent.
    """
    send_error = traced.send_error
    if not is_up() or (send_error is not None and kind_of(send_error) == FailureKind.LINK_LOST):
        raise MeasurementFailedError(Operation.SEND, FailureKind.LINK_LOST, "the link went down meanwhile")
    if send_error is not None and not traced.sent:
        raise failed(Operation.SEND, send_error) from send_error
