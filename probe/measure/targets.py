"""What this device agrees to be aimed at. A stolen controller cannot widen it, only the device's own file can.

An empty list allows nothing: a probe whose owner has not said what it may measure measures no peer, and says so in
every result, rather than being a weapon for whoever writes its instruction.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from probe.config import Targets
from probe.errors import NotRunError
from probe.messages import NotRunReason

_NOTHING_ALLOWED = "targets is empty in this device's probe.toml, which allows nothing: name networks or domains there"
# Names are judged here as text, and asked for in DNS presentation format (RFC 1035 section 5.1), where a backslash
# takes the meaning from a dot: `evil\.example.vn` is not under example.vn. A plain name means the same in both.
_PLAIN_NAME: Final = re.compile(r"[0-9A-Za-z_-]+(\.[0-9A-Za-z_-]+)*\.?")
_NAME_CHARACTERS_MAX: Final = 253
_NOT_PLAIN = (
    f"neither an address nor a host name (letters, digits, - and _ between dots, {_NAME_CHARACTERS_MAX} at most)"
)


class TargetGuard:
    """Holds the networks and the domain suffixes of the device's configuration."""

    def __init__(self, targets: Targets) -> None:
        self._networks = tuple(ipaddress.ip_network(text) for text in targets.networks)
        self._suffixes = tuple(_normal(domain) for domain in targets.domains)

    @property
    def allows_nothing(self) -> bool:
        """Whether every peer will be refused."""
        return not self._networks and not self._suffixes

    def check(self, host: str) -> None:
        """Refuse a host that is neither an address in `networks` nor a name at or under one of `domains`.

        What a name resolves to is for the owner of its domain to say. Only dotted quads and RFC 4291 text count as
        addresses: `0x7f.1` and `2130706433`, which a C library would take for one, are names here, of no domain.
        A name with anything but letters, digits, hyphens and underscores between its dots is refused, too.

        Raises:
            NotRunError: `target_refused`.
        """
        if self.allows_nothing:
            raise NotRunError(NotRunReason.TARGET_REFUSED, _NOTHING_ALLOWED)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if len(host) > _NAME_CHARACTERS_MAX or not _PLAIN_NAME.fullmatch(host):
                raise NotRunError(NotRunReason.TARGET_REFUSED, f"{_NOT_PLAIN}: {host}") from None
            allowed = any(f".{_normal(host)}".endswith(f".{suffix}") for suffix in self._suffixes)
        else:
            allowed = any(_unmapped(address) in network for network in self._networks)
        if not allowed:
            raise NotRunError(NotRunReason.TARGET_REFUSED, f"{host} is not within this device's targets")


def _normal(name: str) -> str:
    return name.strip().strip(".").lower()


def _unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4-mapped IPv6 address reaches the IPv4 host: it is judged as that."""
    return (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped) or address
