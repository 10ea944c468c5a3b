"""A link is one access line of the probe, and everything sent over it is bound to it.

Binding is by device and by source address (SO_BINDTODEVICE plus bind), so that a measurement of one line can never
leave by another one: when the line is down, the measurement says so instead. Nothing here falls back.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.config import LinkConfig, split_host_port
from probe.errors import NotRunError
from probe.messages import LinkStatus, NotRunReason

IpVersion = Literal[4, 6]
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}

_SIOCGIFADDR = 0x8915  # linux/sockios.h
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_IFF_UP = 0x1  # linux/if.h
_IFNAMSIZ = 16  # linux/if.h: where the answer begins in struct ifreq
# linux/if.h: operational (RFC 2863), or an interface that cannot tell, such as a tunnel or the loopback.
_IFF_RUNNING = 0x40
_SYS_NET = Path("/sys/class/net")
_IF_INET6 = Path("/proc/net/if_inet6")
_RESOLV_CONF = Path("/etc/resolv.conf")
_SCOPE_GLOBAL = "00"  # the scope column of /proc/net/if_inet6
_TEMPORARY, _DEPRECATED = 0x01, 0x20  # linux/if_addr.h: its flags column, as the next line
_UNUSABLE = 0x08 | 0x40  # another host has the address, or it is still being looked for
_UNIQUE_LOCAL = ipaddress.IPv6Network("fc00::/7")
_DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class LinkCounters:
    """Bytes over the interface since it appeared, from the kernel, link-layer headers included."""

    received_bytes: int
    sent_bytes: int


class Link:
    """One configured access line."""

    def __init__(self, config: LinkConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """The link's name in configuration, instruction and results."""
        return self.config.name

    @property
    def interface(self) -> str:
        """The network interface that the line ends at."""
        return self.config.interface

    def socket(
        self, version: IpVersion, kind: socket.SocketKind, protocol: int = 0, source_port: int = 0
    ) -> socket.socket:
        """Open a non-blocking socket that can use this link and no other, from a free port unless one is given.

        Raises:
            NotRunError: the interface is absent or down, or has no address of this IP version (`link_down`).
        """
        source = self.source_address(version)
        sock = socket.socket(FAMILY[version], kind, protocol)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
            sock.bind((source, source_port))
        except OSError as error:
            sock.close()
            raise NotRunError(NotRunReason.LINK_DOWN, f"cannot bind to {self.interface}: {error}") from error
        return sock

    def source_address(self, version: IpVersion) -> str:
        """The address that this link's packets carry.

        Raises:
            NotRunError: the interface is absent or down, or has no address of this IP version (`link_down`).
        """
        if not self.is_up():
            raise NotRunError(NotRunReason.LINK_DOWN, f"interface {self.interface} is absent or down")
        configured = self.config.source_address if version == 4 else self.config.source_address_v6  # noqa: PLR2004
        address = configured or (self._address_v4() if version == 4 else self._address_v6())  # noqa: PLR2004
        if address is None:
            raise NotRunError(NotRunReason.LINK_DOWN, f"interface {self.interface} has no IPv{version} address")
        return address

    def is_up(self) -> bool:
        """Whether the interface exists, is switched on and has a carrier."""
        answer = self._ask_kernel(_SIOCGIFFLAGS)
        if answer is None:
            return False
        (flags,) = struct.unpack_from("H", answer, _IFNAMSIZ)
        return bool(flags & _IFF_UP) and bool(flags & _IFF_RUNNING)

    def counters(self) -> LinkCounters | None:
        """The kernel's byte counters, absent when the interface is."""
        statistics = _SYS_NET / self.interface / "statistics"
        try:
            return LinkCounters(
                received_bytes=int((statistics / "rx_bytes").read_text()),
                sent_bytes=int((statistics / "tx_bytes").read_text()),
            )
        except OSError:
            return None

    def nic_speed_bps(self) -> int | None:
        """The negotiated speed of the interface, absent where it has none (tunnels, Wi-Fi, modems)."""
        try:
            megabits = int((_SYS_NET / self.interface / "speed").read_text())
        except (OSError, ValueError):
            return None
        return megabits * 1_000_000 if megabits > 0 else None

    def resolvers(self) -> tuple[tuple[str, int], ...]:
        """The link's DNS servers as (address, port)."""
        if self.config.resolvers:
            return tuple(split_host_port(text, _DNS_PORT) for text in self.config.resolvers)
        return _host_resolvers()

    def status(self) -> LinkStatus:
        """What can be said of the link now."""
        addresses = (self._address_v4(), self._address_v6())
        return LinkStatus(
            link=self.name,
            interface=self.interface,
            up=self.is_up(),
            addresses=tuple(address for address in addresses if address is not None),
        )

    def _address_v4(self) -> str | None:
        answer = self._ask_kernel(_SIOCGIFADDR)
        # After the name, struct sockaddr_in with the address at its byte 4.
        return None if answer is None else socket.inet_ntoa(answer[_IFNAMSIZ + 4 : _IFNAMSIZ + 8])

    def _ask_kernel(self, request: int) -> bytes | None:
        """A `struct ifreq` answered (netdevice(7)): some microseconds, where a file of /sys costs a tenth of one ms."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                return fcntl.ioctl(sock.fileno(), request, struct.pack("40s", self.interface.encode()))
            except OSError:
                return None

    def _address_v6(self) -> str | None:
        try:
            lines = _IF_INET6.read_text().splitlines()
        except OSError:
            return None
        found: list[tuple[int, ipaddress.IPv6Address]] = []
        for line in lines:
            digits, _, _, scope, flags, name = line.split()
            if name == self.interface and scope == _SCOPE_GLOBAL and not int(flags, 16) & _UNUSABLE:
                address = ipaddress.IPv6Address(int(digits, 16))
                found.append((_rank_v6(address, int(flags, 16)), address))
        return str(min(found)[1]) if found else None


def _rank_v6(address: ipaddress.IPv6Address, flags: int) -> int:
    """The lower the better (RFC 6724 section 5): fresh before deprecated, global before unique local, then stable."""
    return 4 * bool(flags & _DEPRECATED) + 2 * (address in _UNIQUE_LOCAL) + bool(flags & _TEMPORARY)


def _host_resolvers() -> tuple[tuple[str, int], ...]:
    try:
        lines = _RESOLV_CONF.read_text().splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple(
        (word[1].partition("%")[0], _DNS_PORT) for word in words if word[:1] == ["nameserver"] and len(word) > 1
    )
