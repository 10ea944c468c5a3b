"""One run that measured, with the line it went over and what was asked for: what all comparisons begin with."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet_controller.lab.comparison import Comparison
from fleet_controller.lab.profile import Direction, LinkProfile
from fleet_controller.lab.site import Run, Site

IPV4, IPV6 = 4, 6
UDP_BYTES: Final = 8
# With the time stamps that Linux always sends (RFC 7323).
TCP_BYTES: Final = 32
# Header and options of a SYN and of its answer: MSS, SACK, time stamps, window scale (Linux).
SYN_BYTES: Final = 40
# The payload of the STAMP packets that are sent unless told otherwise (RFC 8762 section 4.2.1).
STAMP_BYTES: Final = 44
_IP_HEADER_BYTES: Final = {IPV4: 20, IPV6: 40}
_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class Seen:
    """One run, its values, and what was asked for."""

    site: Site
    run: Run
    values: Mapping[str, Any]
    parameters: Mapping[str, Any]

    @property
    def profile(self) -> LinkProfile:
        """The line."""
        return self.site.profile

    @property
    def ip_version(self) -> int:
        """By which the peer was reached."""
        return int(self.run.result.variant.get("ip_version", str(IPV4)))

    @property
    def direction(self) -> Direction:
        """Which way the load went."""
        return "upload" if self.run.result.variant.get("direction") == "upload" else "download"

    @property
    def resolver_version(self) -> int:
        """How the link's resolver, or the one asked for, is reached."""
        named = str(self.parameters.get("resolver") or "")
        try:
            return ipaddress.ip_address(named.partition("]")[0].lstrip("[")).version
        except ValueError:
            return self.profile.ip_versions[0]

    def round_trip_s(self, sent_bytes: int, answered_bytes: int, ip_version: int) -> float:
        """Median round trip of two packets of so many bytes behind the IP header."""
        header_bytes = _IP_HEADER_BYTES[ip_version]
        sent_s = (sent_bytes + header_bytes) * _BITS / self.profile.upload_bps
        return self.site.delay_s + sent_s + (answered_bytes + header_bytes) * _BITS / self.profile.download_bps

    def single(self, what: str, field: str, configured_s: float) -> Comparison:
        """A delay that is measured once."""
        return Comparison(what, "s", configured_s, self.values.get(field), spread=self.profile.jitter_s / 2)
