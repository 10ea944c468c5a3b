"""What kind of IPv6 address an interface has, and where it came from (RFC 4862, RFC 8981, RFC 8415, RFC 4193)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Kind = Literal["global", "unique_local", "link_local"]
Origin = Literal["slaac", "temporary", "dhcpv6", "static"]

_IF_INET6: Final = Path("/proc/net/if_inet6")
# The columns of /proc/net/if_inet6: address, interface index, prefix length, scope, flags (all hexadecimal), name.
_COLUMNS: Final = 6
# linux/if_addr.h
_TEMPORARY, _DAD_FAILED, _DEPRECATED, _TENTATIVE, _PERMANENT = 0x01, 0x08, 0x20, 0x40, 0x80
_UNIQUE_LOCAL: Final = ipaddress.IPv6Network("fc00::/7")
_HOST_PREFIX_BITS: Final = 128
# The middle of an interface identifier that was made of a MAC address (RFC 4291 appendix A).
_EUI64_MARK: Final = b"\xff\xfe"


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of an interface.

    Attributes:
        address: as text.
        kind: `global` is what the Internet can answer; `unique_local` needs somebody who translates it.
        origin: how it came, as far as it shows. A program such as dhcpcd that makes SLAAC addresses itself adds
            them without a sign; they are told by their interface identifier, or count as `static`.
        is_usable: neither still being checked for twins, nor found to have one, nor deprecated.
    """

    address: str
    kind: Kind
    origin: Origin
    is_usable: bool


def addresses_of(interface: str) -> tuple[InterfaceAddress, ...]:
    """The IPv6 addresses of an interface; none where the kernel has no IPv6."""
    try:
        lines = _IF_INET6.read_text(encoding="ascii").splitlines()
    except OSError:
        return ()
    return read_addresses(lines, interface)


def read_addresses(lines: Iterable[str], interface: str) -> tuple[InterfaceAddress, ...]:
    """The addresses of one interface in the lines of /proc/net/if_inet6."""
    rows = [line.split() for line in lines]
    return tuple(_address(row) for row in rows if len(row) == _COLUMNS and row[5] == interface)


def _address(row: list[str]) -> InterfaceAddress:
    address = ipaddress.IPv6Address(int(row[0], 16))
    flags = int(row[4], 16)
    return InterfaceAddress(
        address=str(address),
        kind=_kind(address),
        origin=_origin(address, int(row[2], 16), flags),
        is_usable=not flags & (_DAD_FAILED | _DEPRECATED | _TENTATIVE),
    )


def _kind(address: ipaddress.IPv6Address) -> Kind:
    if address.is_link_local or address.is_loopback:
        return "link_local"
    return "unique_local" if address in _UNIQUE_LOCAL else "global"


def _origin(address: ipaddress.IPv6Address, prefix_bits: int, flags: int) -> Origin:
    if flags & _TEMPORARY:
        return "temporary"
    if address.packed[11:13] == _EUI64_MARK:
        return "slaac"
    if flags & _PERMANENT:
        return "static"
    # The kernel makes addresses with a lifetime from a prefix; a DHCPv6 server gives single ones.
    return "dhcpv6" if prefix_bits == _HOST_PREFIX_BITS else "slaac"
