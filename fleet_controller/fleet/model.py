"""What a fleet file says, checked: provinces, operators, peers, schedules, suppressions and probes."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from fleet_controller.fleet.provinces import Province
from probe.messages import BULK_PATHS, NAME_PATTERN, BulkProtocol, Peer

Access = Literal["fixed", "mobile"]
Scope = Literal["on_net", "domestic", "international"]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Count = Annotated[int, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
# A host name or an IP address: what a URL would put between "//" and ":", and nothing else of it.
Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?$")]
# What an agent takes for a path, without a query: printable ASCII, at most 256 characters.
UrlPath = Annotated[str, msgspec.Meta(pattern=r'^/[!"$->@-~]{0,255}$')]
# The shortest period: below it a probe would do nothing but start measurements. The longest: one slot a month.
Period = Annotated[float, msgspec.Meta(ge=1, le=31 * 86_400)]
# Vietnam's frame, Trường Sa and Hoàng Sa included: a point outside it has its numbers swapped.
Latitude = Annotated[float, msgspec.Meta(ge=6, le=24)]
Longitude = Annotated[float, msgspec.Meta(ge=102, le=118)]
TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Asn = Annotated[int, msgspec.Meta(ge=1, le=4_294_967_295)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of everything in a fleet file: an unknown key is a mistake, not a wish."""


class FleetOperator(Part, frozen=True):
    """Who sells the line. An observed AS number that is not among `asns` only raises a question."""

    name: Text
    asns: tuple[Asn, ...] = ()


class FleetPeer(Part, frozen=True):
    """Who answers measurements, and where it stands: inside the operator's network, behind VNIX, or abroad.

    `protocol` is what it speaks for bulk transfers, on `http_port`; without a path the protocol's own counts.
    `stamp_key` names the key that authenticates STAMP with it; the key is a file on the probes and on the peer.
    """

    host: Host
    scope: Scope
    operator: str | None = None
    stamp_port: Port = 862
    stamp_key: Name | None = None
    http_port: Port = 80
    tls: bool = False
    protocol: BulkProtocol = "http"
    download_path: UrlPath | None = None
    small_path: UrlPath = "/small"
    upload_path: UrlPath | None = None

    def for_agents(self, name: str) -> Peer:
        """The peer as an agent needs to know it."""
        download_path, upload_path = BULK_PATHS[self.protocol]
        return Peer(
            name=name,
            host=self.host,
            stamp_port=self.stamp_port,
            stamp_key=self.stamp_key or "",
            http_port=self.http_port,
            tls=self.tls,
            protocol=self.protocol,
            download_path=self.download_path or download_path,
            small_path=self.small_path,
            upload_path=self.upload_path or upload_path,
        )


class FleetAction(Part, frozen=True):
    """A task in a schedule. `name` is the task's own where absent; `parameters` are the task's."""

    task: str
    name: Name | None = None
    peers: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """What results call it."""
        return self.name or self.task


class FleetSchedule(Part, frozen=True):
    """When its actions run, and on which links: those of `access`, those named in `links`; without both, all."""

    period_s: Period
    actions: Annotated[tuple[FleetAction, ...], msgspec.Meta(min_length=1)]
    access: tuple[Access, ...] = ()
    links: tuple[str, ...] = ()


class FleetSuppression(Part, frozen=True):
    """When not to measure: in one window (`start`, `end`) or every day (`daily_start`, `daily_end`, Vietnam time).

    Empty `schedules`, `probes` and `provinces` mean all of them.
    """

    schedules: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    provinces: tuple[str, ...] = ()
    start: Moment | None = None
    end: Moment | None = None
    daily_start: TimeOfDay | None = None
    daily_end: TimeOfDay | None = None


class FleetLink(Part, frozen=True):
    """One access line of a probe, as contracted. What the device needs of it is for the provisioner."""

    operator: str
    access: Access
    technology: Text | None = None
    plan_download_bps: Count | None = None
    plan_upload_bps: Count | None = None
    byte_budget_per_month: Count | None = None
    interface: Annotated[str, msgspec.Meta(pattern=r"^[^\s/]{1,15}$")] | None = None
    source_address: str | None = None
    source_address_v6: str | None = None
    resolvers: tuple[str, ...] = ()


class FleetProbe(Part, frozen=True):
    """One probe: where it stands, its links by name, and what it measures; absent `schedules` means all of them.

    `province` is a slug of the scheme `vn34`. `point` is (latitude, longitude) in degrees.
    """

    province: str
    links: dict[str, FleetLink]
    commune: Text | None = None
    point: tuple[Latitude, Longitude] | None = None
    schedules: tuple[str, ...] | None = None


class Fleet(Part, frozen=True):
    """The whole file, by name. `provinces` are those that the fleet covers, by slug."""

    provinces: dict[str, Province] = {}
    operators: dict[str, FleetOperator] = {}
    peers: dict[str, FleetPeer] = {}
    schedules: dict[str, FleetSchedule] = {}
    suppressions: dict[str, FleetSuppression] = {}
    probes: dict[str, FleetProbe] = {}

    def tags(self, agent_id: str, link: str | None) -> dict[str, str]:
        """What the fleet file knows of a series: the province; for a known link its operator and access too."""
        probe = self.probes.get(agent_id)
        if probe is None:
            return {}
        known = probe.links.get(link) if link is not None else None
        if known is None:
            return {"province": probe.province}
        return {"province": probe.province, "operator": known.operator, "access": known.access}

    def peer_scope(self, name: str) -> Scope | None:
        """Where a peer stands; absent for one that the fleet does not have."""
        peer = self.peers.get(name)
        return peer.scope if peer is not None else None
