"""What the demo measures: two probes with a fixed and a mobile line each, and the piece of Internet behind them.

As root, every probe and the core are network namespaces and every line is emulated with a known rate and delay. For
other users everything is on the loopback interface: the same programs, and no figures to compare with.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile
from fleet_controller.lab.namespaces import namespace, run_ip, use_ipv6

PROVINCES = {"demo-ha-noi-1": "ha_noi", "demo-can-tho-1": "can_tho"}
# A good fixed line and a usual mobile one. The mobile line's loss is small enough for several TCP streams to fill
# the line all the same (one CUBIC stream gets about 10 Mbit/s at 45 ms), and large enough to be seen in a day.
FIXED = LinkProfile(download_bps=150_000_000, upload_bps=100_000_000, delay_s=0.006)
MOBILE = LinkProfile(
    download_bps=40_000_000, upload_bps=15_000_000, delay_s=0.045, jitter_s=0.003, loss_ratio=0.001, buffer_s=0.15
)
PROFILES: dict[str, LinkProfile] = {"fixed0": FIXED, "mobile0": MOBILE}
ACCESS: dict[str, Literal["fixed", "mobile"]] = {"fixed0": "fixed", "mobile0": "mobile"}
LOOPBACK_SOURCES = {"fixed0": "127.0.1.1", "mobile0": "127.0.2.1"}
# The benchmarking addresses of RFC 2544 and RFC 5180: no host of the Internet has them.
PEER_ADDRESS, PEER_ADDRESS_V6 = "198.18.255.1", "2001:2:0:ff::1"
BROKER_ADDRESS = "198.18.255.2"
TARGET_NETWORKS = ("198.18.0.0/15", "2001:2::/48")
_KERNEL_IPV6 = Path("/proc/sys/net/ipv6")


@dataclass(frozen=True, slots=True)
class DemoLink:
    """One line of a demo probe. `profile` is what it was built to be, absent on the loopback."""

    agent_id: str
    name: str
    interface: str
    source_address: str
    profile: LinkProfile | None


@dataclass(frozen=True, slots=True)
class DemoProbe:
    """One probe, and the namespace that it runs in (absent: the host's own)."""

    agent_id: str
    namespace: str | None
    links: tuple[DemoLink, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """Where everything is. `core` is the namespace of the servers (absent: the host's own).

    `peer_addresses` are the peer's and the resolver's, IPv4 first; IPv6 only where the lines have it.
    """

    core: str | None
    peer_addresses: tuple[str, ...]
    broker_address: str
    target_networks: tuple[str, ...]
    probes: tuple[DemoProbe, ...]

    @property
    def peer_address(self) -> str:
        """The peer's IPv4 address."""
        return self.peer_addresses[0]

    @property
    def links(self) -> tuple[DemoLink, ...]:
        """Every line."""
        return tuple(link for probe in self.probes for link in probe.links)


def loopback() -> Topology:
    """Everything on the loopback interface, a source address for each link."""
    probes = tuple(
        DemoProbe(
            agent_id,
            None,
            tuple(DemoLink(agent_id, name, "lo", source, None) for name, source in LOOPBACK_SOURCES.items()),
        )
        for agent_id in PROVINCES
    )
    return Topology(None, ("127.0.0.1",), "127.0.0.1", ("127.0.0.0/8",), probes)


def build(stack: ExitStack, directory: Path, go_on: Callable[[], None]) -> Topology:
    """Make the namespaces and the lines; the stack takes them down again. `go_on` may raise between the steps.

    Raises:
        ServiceError: something could not be made; says what.
    """
    core = stack.enter_context(namespace("core"))
    for address in (PEER_ADDRESS, BROKER_ADDRESS):
        run_ip("-n", core, "address", "add", f"{address}/32", "dev", "lo")
    has_ipv6 = _KERNEL_IPV6.exists()
    if has_ipv6:
        use_ipv6(core, "lo")
        run_ip("-n", core, "address", "add", f"{PEER_ADDRESS_V6}/128", "dev", "lo", "nodad")
    probes = []
    for index, agent_id in enumerate(PROVINCES):
        inside = stack.enter_context(namespace(agent_id))
        links = []
        for number, name in enumerate(PROFILES):
            go_on()
            plan = _Plan(agent_id, name, len(PROFILES) * index + number, has_ipv6)
            links.append(_line(stack, directory, core, inside, plan))
        probes.append(DemoProbe(agent_id, inside, tuple(links)))
    peers = (PEER_ADDRESS, PEER_ADDRESS_V6) if has_ipv6 else (PEER_ADDRESS,)
    return Topology(core, peers, BROKER_ADDRESS, TARGET_NETWORKS, tuple(probes))


@dataclass(frozen=True, slots=True)
class _Plan:
    """One line to be made; `index` counts all of them."""

    agent_id: str
    name: str
    index: int
    has_ipv6: bool


def _line(stack: ExitStack, directory: Path, core: str, inside: str, plan: _Plan) -> DemoLink:
    """One line with a /30 and a /64 of its own; the fixed one, made first, has the better metric."""
    v4, v6, name = f"198.18.{plan.index}", f"2001:2:0:{plan.index}:", plan.name
    near = End(inside, name, f"{v4}.2/30", f"{v6}:2/64" if plan.has_ipv6 else None)
    far = End(core, f"line{plan.index}", f"{v4}.1/30", f"{v6}:1/64" if plan.has_ipv6 else None)
    emulated = EmulatedLink(directory / f"{plan.agent_id}-{name}", PROFILES[name], near, far, seed=plan.index + 1)
    stack.callback(emulated.stop)
    emulated.start()
    how = ("dev", name, "metric", str(100 * (plan.index % len(PROFILES) + 1)))
    run_ip("-n", inside, "route", "add", "default", "via", f"{v4}.1", *how)
    if plan.has_ipv6:
        run_ip("-n", inside, "-6", "route", "add", "default", "via", f"{v6}:1", *how)
    return DemoLink(plan.agent_id, name, name, f"{v4}.2", PROFILES[name])
