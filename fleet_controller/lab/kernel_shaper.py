"""A line of known rate made by the kernel: two veth ends with a token bucket each. It has no delay of its own.

For lines that are nothing but a rate and a buffer, where the emulator itself is to be cross-checked.
"""

from __future__ import annotations

from typing import Final, Self

from fleet_controller.errors import ConfigError, ServiceError
from fleet_controller.lab.emulator import End, assign_addresses
from fleet_controller.lab.namespaces import run_in, run_ip
from fleet_controller.lab.profile import ETHERNET_MTU_BYTES, Direction, LinkProfile

# A token bucket on an Ethernet device counts this header, an IP-layer rate does not (RFC 5136 section 3.1).
_ETHERNET_HEADER_BYTES: Final = 14
# How long the bucket lets a burst pass: it must hold one super-packet, and short bursts keep the delay low.
_BURST_S: Final = 0.001
_BURST_BYTES_MIN: Final = 2 * (ETHERNET_MTU_BYTES + _ETHERNET_HEADER_BYTES)
_BURST_BYTES_MAX: Final = 65_536
_ONLY_HERE: Final = ("download_bps", "upload_bps", "delay_s", "buffer_s", "download_buffer_s", "upload_buffer_s")


class KernelLink:
    """The same as `EmulatedLink` for a profile that is only rates and buffers; its `delay_s` is not enforced."""

    def __init__(self, profile: LinkProfile, near: End, far: End) -> None:
        plain = {name: getattr(profile, name) for name in (*_ONLY_HERE, "description", "ipv4", "ipv6")}
        if LinkProfile(**plain) != profile or "dropped" in (profile.ipv4, profile.ipv6):
            raise ConfigError("shaper", "the kernel shapes nothing but rate and buffer", "use the emulator")
        self.profile, self.near, self.far = profile, near, far

    def start(self) -> Self:
        """Make and shape the pair.

        Raises:
            ServiceError: not allowed, or no token bucket in this kernel; has the tool's words.
        """
        near, far = self.near, self.far
        run_ip(
            *("link", "add", near.device, "netns", near.namespace, "type", "veth"),
            *("peer", "name", far.device, "netns", far.namespace),
        )
        _shape(near, self.profile, "upload")
        _shape(far, self.profile, "download")
        return self

    def stop(self) -> None:
        """Take it away; its other end goes with it."""
        run_ip("-n", self.near.namespace, "link", "delete", self.near.device)

    def mean_rate_bps(self, direction: Direction, from_ns: int, to_ns: int) -> float:  # noqa: ARG002 - as EmulatedLink
        """The rate, which never changes."""
        return float(self.profile.rate_bps(direction))


def _shape(end: End, profile: LinkProfile, direction: Direction) -> None:
    rate_bps = profile.rate_bps(direction)
    # Exact for packets of full length, which are all that matters to a rate.
    wire_bps = round(rate_bps * (ETHERNET_MTU_BYTES + _ETHERNET_HEADER_BYTES) / ETHERNET_MTU_BYTES)
    burst_bytes = min(max(round(rate_bps / 8 * _BURST_S), _BURST_BYTES_MIN), _BURST_BYTES_MAX)
    limit_bytes = max(round(profile.buffer_of_s(direction) * wire_bps / 8), 2 * burst_bytes)
    device = ("-n", end.namespace, "link", "set", "dev", end.device)
    # A super-packet that does not fit into the bucket would have to be cut by the kernel, at a price.
    run_ip(*device, "gso_max_size", str(burst_bytes))
    assign_addresses(end)
    run_ip(*device, "up")
    bucket = ("tbf", "rate", f"{wire_bps}bit", "burst", str(burst_bytes), "limit", str(limit_bytes))
    done = run_in(end.namespace, ["tc", "qdisc", "add", "dev", end.device, "root", *bucket])
    if done.returncode != 0:
        raise ServiceError(f"tc: {done.stderr.strip()}")
