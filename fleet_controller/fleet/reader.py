"""From the lines of a fleet file to a `Fleet`, with every mistake on the way."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fleet_controller.fleet import schedules as fleet_schedules
from fleet_controller.fleet.model import Fleet, FleetLink, FleetOperator, FleetPeer, FleetProbe, Part
from fleet_controller.fleet.parts import Collector, Path, suggest
from fleet_controller.fleet.provinces import BY_CODE, PROVINCES, Province, find_old_province, find_province
from fleet_controller.fleet.yaml_lines import Lined
from probe.tasks.base import AnyTask
from probe.tasks.fit import host_problem

P = TypeVar("P", bound=Part)
_SECTIONS = ("provinces", "operators", "peers", "schedules", "suppressions", "probes")
_NOTHING = Lined({}, 1)
_IPV4, _IPV6 = 4, 6


def read_fleet(root: Lined, out: Collector, tasks: Mapping[str, AnyTask]) -> Fleet:
    """Read every section. What has mistakes is left out of the fleet; they are in `out`."""
    if root.value is None:
        return _Reader(_NOTHING, out, tasks).read()
    if not isinstance(root.value, dict):
        out.say(root.line, (), "is not a fleet file", f"it has the sections {', '.join(_SECTIONS)}")
        return Fleet()
    for key, spot in root.children.items():
        if key not in _SECTIONS:
            out.say(spot.line, (key,), "unknown section", suggest(str(key), _SECTIONS, "section"))
    return _Reader(root, out, tasks).read()


class _Reader:
    """Reads the sections; a reference is checked against the names that stand in the file, broken parts included."""

    def __init__(self, root: Lined, out: Collector, tasks: Mapping[str, AnyTask]) -> None:
        self._root = root
        self._out = out
        self._tasks = tasks
        self._provinces = self._covered_provinces()

    def read(self) -> Fleet:
        """Every section in the order in which a person reads them."""
        peers = self._section("peers", self._peer)
        schedules = fleet_schedules.ScheduleReader(
            self._out,
            self._tasks,
            peer_names=self._names("peers"),
            peers={name: peer.for_agents(name) for name, peer in peers.items()},
            links=self._link_names(),
        )
        suppressions = fleet_schedules.SuppressionReader(
            self._out, self._names("schedules"), self._names("probes"), self._province
        )
        return Fleet(
            provinces=self._provinces,
            operators=self._section("operators", self._operator),
            peers=peers,
            schedules=self._section("schedules", schedules.read),
            suppressions=self._section("suppressions", suppressions.read),
            probes=self._section("probes", self._probe),
        )

    def _names(self, section: str) -> tuple[str, ...]:
        return tuple(str(key) for key in self._root.children.get(section, _NOTHING).children)

    def _link_names(self) -> set[str]:
        probes = self._root.children.get("probes", _NOTHING).children.values()
        return {str(name) for probe in probes for name in probe.children.get("links", _NOTHING).children}

    def _section(self, section: str, read: Callable[[Lined, Path], P | None]) -> dict[str, P]:
        spot = self._root.children.get(section, _NOTHING)
        if spot.value is not None and not isinstance(spot.value, dict):
            self._out.say(spot.line, (section,), "expected a mapping", "write `name:` lines under it")
            return {}
        parts: dict[str, P] = {}
        for key, child in spot.children.items():
            name, path = str(key), (section, key)
            check_name = self._out.agent_id if section == "probes" else self._out.name
            check_name(child.line, path, name)
            part = read(child, path)
            if part is not None:
                parts[name] = part
        return parts

    def _covered_provinces(self) -> dict[str, Province]:
        spot = self._root.children.get("provinces")
        if spot is None or spot.value is None:
            return PROVINCES
        if not isinstance(spot.value, list):
            self._out.say(spot.line, ("provinces",), "expected a list", "write [ha_noi, da_nang], or leave it out")
            return PROVINCES
        slugs = [self._province(child, ("provinces", step)) for step, child in spot.children.items()]
        return {slug: PROVINCES[slug] for slug in slugs if slug is not None}

    def _province(self, spot: Lined, path: Path) -> str | None:
        """The slug of the province that stands there."""
        found = find_province(spot.value) if isinstance(spot.value, str) else None
        if found is not None:
            return found.slug
        words = "has no value" if spot.value is None else f"unknown province {spot.value!r}"
        self._out.say(spot.line, path, words, _province_remedy(spot.value))
        return None

    def _operator(self, spot: Lined, path: Path) -> FleetOperator | None:
        return self._out.convert(spot, path, FleetOperator)

    def _peer(self, spot: Lined, path: Path) -> FleetPeer | None:
        self._out.reference(spot.children.get("operator"), (*path, "operator"), "operator", self._names("operators"))
        peer = self._out.convert(spot, path, FleetPeer)
        unusable = host_problem(peer.host) if peer is not None else None
        if unusable is not None:
            self._out.say(spot.at("host").line, (*path, "host"), unusable, "a name or an address, without a port")
            return None
        if peer is not None and peer.scope == "on_net" and peer.operator is None:
            self._out.say(spot.line, path, "is on_net and has no operator", "name the operator whose network it is in")
        return peer

    def _probe(self, spot: Lined, path: Path) -> FleetProbe | None:
        ready: dict[str, Any] = {}
        where = spot.children.get("province")
        if where is not None:
            slug = self._province(where, (*path, "province"))
            self._check_covered(where, (*path, "province"), slug)
            ready["province"] = slug
        links = spot.children.get("links")
        if links is not None:
            ready["links"] = self._links(links, (*path, "links"))
        self._out.reference(spot.children.get("schedules"), (*path, "schedules"), "schedule", self._names("schedules"))
        probe = self._out.convert(spot, path, FleetProbe, ready)
        if probe is not None and probe.schedules == ():
            self._out.warn(spot.line, path, "measures nothing", "list schedules, or remove the key for all of them")
        return probe

    def _check_covered(self, spot: Lined, path: Path, slug: str | None) -> None:
        if slug is not None and slug not in self._provinces:
            self._out.say(spot.line, path, f"{slug} is not in the section provinces", "add it there")

    def _links(self, spot: Lined, path: Path) -> dict[str, FleetLink] | None:
        if not isinstance(spot.value, dict) or not spot.children:
            self._out.say(
                spot.line, path, "a probe has at least one link", "write `fixed: {operator: …, access: fixed}`"
            )
            return None
        links = {str(name): self._link(child, (*path, name)) for name, child in spot.children.items()}
        whole = {name: link for name, link in links.items() if link is not None}
        return whole if len(whole) == len(links) else None

    def _link(self, spot: Lined, path: Path) -> FleetLink | None:
        self._out.name(spot.line, path, str(path[-1]))
        self._out.reference(spot.children.get("operator"), (*path, "operator"), "operator", self._names("operators"))
        for key, version in (("source_address", _IPV4), ("source_address_v6", _IPV6)):
            self._address(spot.children.get(key), (*path, key), version)
        link = self._out.convert(spot, path, FleetLink)
        if link is not None and link.access == "mobile" and link.byte_budget_per_month is None:
            self._out.warn(
                spot.line, path, "is mobile and has no byte budget", "set byte_budget_per_month: a SIM's quota ends"
            )
        return link

    def _address(self, spot: Lined | None, path: Path, version: int) -> None:
        if spot is None or not isinstance(spot.value, str):
            return  # a wrong type is told of by the conversion
        try:
            found = ipaddress.ip_address(spot.value).version
        except ValueError:
            remedy = "write one address, without a prefix length"
            self._out.say(spot.line, path, f"{spot.value!r} is not an IP address", remedy)
            return
        if found != version:
            self._out.say(
                spot.line, path, f"{spot.value} is an IPv{found} address", f"an IPv{version} one belongs here"
            )


def _province_remedy(value: Any) -> str:
    """What to write instead of a province of before the merger, a bare code or a misspelt name."""
    if isinstance(value, int):
        found = BY_CODE.get(f"{value:02}")
        meant = f"; `{found.slug}` has the code {found.code} today" if found else ""
        return f"a bare code is ambiguous since the merger of 2025: write the slug{meant}"
    if not isinstance(value, str):
        return "write the slug, such as ha_noi"
    old = find_old_province(value)
    if old is not None:
        return f"{old.name} is part of `{BY_CODE[old.new_code].slug}` since 2025-07-01"
    return suggest(value, PROVINCES, "province")
