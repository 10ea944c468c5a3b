"""What one bulk transfer showed, and what the kernel knew of its streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from probe.flows.bulk.estimate import Estimate, StopReason
from probe.flows.bulk.wire import TlsAgreement
from probe.flows.tcp_info import TcpInfo

N = TypeVar("N", int, float)

_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class TcpFacts:
    """TCP_INFO of all streams together; a field is absent where no stream's kernel has it.

    Known to a sender alone: `retransmitted_bytes`; `delivery_rate_bps`, the sum of the streams' latest; `reorderings`;
    of the time with something to send, the share in which the other side's window (`receiver_limited_ratio`) or the
    own buffer (`buffer_limited_ratio`) held it up. Known to a receiver alone: `out_of_order_segments`.
    """

    delay_min_s: float | None = None
    retransmitted_bytes: int | None = None
    delivery_rate_bps: int | None = None
    reorderings: int | None = None
    receiver_limited_ratio: float | None = None
    buffer_limited_ratio: float | None = None
    out_of_order_segments: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one bulk transfer showed.

    `transfer_s` runs from the first request to the last count; the curve's times are since `began_s`, the monotonic
    second at which that request was sent. `cpu_ratio` is the share of one core that the transfer's thread used.
    """

    estimate: Estimate
    stopped_by: StopReason
    streams: int
    streams_failed: int
    transferred_bytes: int
    transfer_s: float
    began_s: float
    cpu_ratio: float
    tcp: TcpFacts
    congestion_control: str | None
    tls: TlsAgreement | None
    curve: tuple[tuple[float, float], ...]

    @property
    def delay_min_s(self) -> float | None:
        """The smallest round trip that TCP saw."""
        return self.tcp.delay_min_s

    @property
    def retransmitted_bytes(self) -> int | None:
        """Sent again; known for uploads."""
        return self.tcp.retransmitted_bytes

    @property
    def whole_transfer_bps(self) -> float:
        """All bytes over all the time, ramp included."""
        return self.transferred_bytes * _BITS / self.transfer_s


def delay_min_s(infos: Sequence[TcpInfo]) -> float | None:
    """The smallest round trip of all."""
    return min((delay_s for info in infos if (delay_s := info.min_rtt_s or info.rtt_s) is not None), default=None)


def tcp_facts(infos: Sequence[TcpInfo], *, sends: bool, alive: Sequence[TcpInfo]) -> TcpFacts:
    """Add up what the kernel said of each stream; `alive` are those that ran to the end."""
    if not sends:
        out_of_order = _sum(infos, lambda info: info.out_of_order_segments)
        return TcpFacts(delay_min_s(infos), out_of_order_segments=out_of_order)
    busy_s = _sum(infos, lambda info: info.busy_s)
    return TcpFacts(
        delay_min_s=delay_min_s(infos),
        retransmitted_bytes=_sum(infos, lambda info: info.retransmitted_bytes),
        delivery_rate_bps=_sum(alive, lambda info: info.delivery_rate_bps),
        reorderings=_sum(infos, lambda info: info.reorderings),
        receiver_limited_ratio=_ratio(_sum(infos, lambda info: info.receiver_limited_s), busy_s),
        buffer_limited_ratio=_ratio(_sum(infos, lambda info: info.buffer_limited_s), busy_s),
    )


def _sum(infos: Sequence[TcpInfo], field: Callable[[TcpInfo], N | None]) -> N | None:
    known = [value for info in infos if (value := field(info)) is not None]
    return sum(known[1:], known[0]) if known else None


def _ratio(part_s: float | None, whole_s: float | None) -> float | None:
    return min(1.0, part_s / whole_s) if part_s is not None and whole_s else None
