"""What an emulated access line is: the words of a profile, and what a perfect instrument would measure on it.

Rates are of the IP layer (RFC 5136): an IP packet of n bytes occupies a line of r bit/s for 8 n / r seconds.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

Direction = Literal["download", "upload"]
Family = Literal["works", "dropped", "absent"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("download", "upload")
ETHERNET_MTU_BYTES: Final = 1500
_BITS: Final = 8
# IP header, TCP header, and the timestamp option that Linux always sends (RFC 7323: 10 bytes and 2 of padding).
_TCP_HEADER_BYTES: Final = 32
_IP_HEADER_BYTES: Final = {4: 20, 6: 40}
_UDP_HEADER_BYTES: Final = 8  # and of ICMP echo
_IPV4, _IPV6 = 4, 6

Bps = Annotated[int, msgspec.Meta(ge=1_000, le=20_000_000_000)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=60)]
Ratio = Annotated[float, msgspec.Meta(ge=0, le=1)]


class RateStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rate is `ratio` of the profile's for `seconds`."""

    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)]
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1)]


class RateWander(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rate is a first-order autoregressive series about the profile's: a new value every `step_s`.

    `variation_ratio` is its standard deviation over its mean, `correlation_ratio` that of neighbouring values. It is
    cut off at a fifth and at nine fifths of the profile's rate.
    """

    variation_ratio: Annotated[float, msgspec.Meta(gt=0, le=0.5)]
    correlation_ratio: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.8
    step_s: Annotated[float, msgspec.Meta(ge=0.01, le=60)] = 0.25


class LinkProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a line is. Ratios and delays of a packet are of packets on the wire, also inside super-packets.

    Attributes:
        download_bps: IP-layer rate towards the probe.
        upload_bps: IP-layer rate from the probe.
        delay_s: round-trip delay of the empty line for a packet of no length, half of it each way; its median when
            there is jitter.
        jitter_s: width of the delay variation. It is all on the way to the probe and keeps the order; PDV (p95 -
            minimum, RFC 5481) of the round trip is this value (see `Jitter`).
        loss_ratio: share of packets lost in each direction, behind the serialiser.
        buffer_s: how long a packet waits at most before the line, in each direction.
        description: one line for people.
        download_buffer_s, upload_buffer_s: where one direction's buffer is another.
        loss_burst_packets: mean length of a run of lost packets (Gilbert's model); 1 means independent losses. A run
            ends when nothing passed for half a second.
        reorder_ratio: share of packets held back by `reorder_gap_s`, so that later ones overtake them.
        duplicate_ratio: share of packets that arrive twice.
        rate_steps: both rates in the course of time, from the start of the line, over and over.
        rate_wander: both rates wander, each by itself.
        policer_burst_bytes: the rate is not enforced by a queue but by a token bucket of this depth: what finds no
            token is dropped, the rest passes at once.
        queue: how the buffer drops: what does not fit, or CoDel (RFC 8289) on top of it.
        path_mtu_bytes: the largest packet that the line carries; the devices at its ends say 1500 all the same.
        too_big: what becomes of a larger one: the sender is told by ICMP, or never.
        ipv4, ipv6: `dropped` has addresses and routes, and packets vanish; `absent` has none.
    """

    download_bps: Bps
    upload_bps: Bps
    delay_s: Seconds
    jitter_s: Seconds = 0.0
    loss_ratio: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.0
    buffer_s: Seconds = 0.1
    description: str = ""
    download_buffer_s: Seconds | None = None
    upload_buffer_s: Seconds | None = None
    loss_burst_packets: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 1.0
    reorder_ratio: Ratio = 0.0
    reorder_gap_s: Seconds = 0.0
    duplicate_ratio: Ratio = 0.0
    rate_steps: tuple[RateStep, ...] = ()
    rate_wander: RateWander | None = None
    policer_burst_bytes: Annotated[int, msgspec.Meta(ge=3_000)] | None = None
    queue: Literal["tail_drop", "codel"] = "tail_drop"
    # 1280 is the least of IPv6 (RFC 8200 section 5).
    path_mtu_bytes: Annotated[int, msgspec.Meta(ge=1280, le=ETHERNET_MTU_BYTES)] = ETHERNET_MTU_BYTES
    too_big: Literal["icmp", "silent"] = "icmp"
    ipv4: Family = "works"
    ipv6: Family = "works"

    def __post_init__(self) -> None:
        """Refuse what no line can be.

        Raises:
            ValueError: says what does not fit together.
        """
        if self.jitter_s > self.delay_s:
            raise ValueError(f"a jitter of {self.jitter_s} s does not fit into a delay of {self.delay_s} s")
        if (self.reorder_ratio > 0) != (self.reorder_gap_s > 0):
            raise ValueError("reorder_ratio and reorder_gap_s belong together")
        if self.loss_burst_packets > 1 and not 0 < self.loss_ratio < 1:
            raise ValueError("loss_burst_packets without a loss_ratio")
        if self.rate_steps and self.rate_wander is not None:
            raise ValueError("a rate follows rate_steps or rate_wander, not both")
        if (self.ipv4, self.ipv6) == ("absent", "absent"):
            raise ValueError("a line needs an IP version")

    def rate_bps(self, direction: Direction) -> int:
        """The IP-layer rate of a direction; its mean over time where `rate_wander` lets it vary."""
        return self.download_bps if direction == "download" else self.upload_bps

    def buffer_of_s(self, direction: Direction) -> float:
        """How long a packet waits at most in the buffer of a direction."""
        own_s = self.download_buffer_s if direction == "download" else self.upload_buffer_s
        return self.buffer_s if own_s is None else own_s

    @property
    def is_steady(self) -> bool:
        """Whether the rate stays the same."""
        return not self.rate_steps and self.rate_wander is None

    @property
    def carries_full_packets(self) -> bool:
        """Whether TCP gets through: it sends packets as long as the device allows, unless somebody objects."""
        return self.path_mtu_bytes == ETHERNET_MTU_BYTES or self.too_big == "icmp"

    @property
    def ip_versions(self) -> tuple[Literal[4, 6], ...]:
        """The IP versions that carry packets."""
        versions: list[Literal[4, 6]] = []
        if self.ipv4 == "works":
            versions.append(4)
        if self.ipv6 == "works":
            versions.append(6)
        return tuple(versions)

    def expected_capacity_bps(self, direction: Direction, ip_version: int = _IPV4) -> float:
        """TCP payload that the line carries at its nominal rate: what `capacity` should say of a steady one.

        Loss does not lower it: packets are lost behind the serialiser, which has then been paid for them; TCP sends
        them again, and with enough streams the line stays full. What arrives is `1 - loss_ratio` of what it carried.
        """
        return tcp_payload_bps(self.rate_bps(direction), ip_version, self.path_mtu_bytes) * (1 - self.loss_ratio)

    def expected_delay_s(self, payload_bytes: int = 0, ip_version: int = _IPV4) -> float:
        """Median round trip of a UDP or ICMP packet with so much payload on the idle line, its length included."""
        packet_bits = _BITS * (payload_bytes + _UDP_HEADER_BYTES + _IP_HEADER_BYTES[ip_version])
        return self.delay_s + packet_bits / self.download_bps + packet_bits / self.upload_bps

    def expected_pdv_s(self) -> float:
        """PDV (p95 - minimum) of the round trip on the idle line: the width of the jitter, see `Jitter`."""
        return self.jitter_s

    def expected_loss_ratio(self) -> float:
        """Share of packets that do not come back: lost on the way there, or on the way back."""
        return 1 - (1 - self.loss_ratio) ** 2


def tcp_payload_bps(rate_bps: float, ip_version: int = _IPV4, mtu_bytes: int = ETHERNET_MTU_BYTES) -> float:
    """What TCP can carry over a line of this IP-layer rate, with full segments and timestamps."""
    return rate_bps * (mtu_bytes - _IP_HEADER_BYTES[ip_version] - _TCP_HEADER_BYTES) / mtu_bytes
