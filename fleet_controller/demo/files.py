"""The configuration files of the demo: what a provisioner would write, for two probes in one temporary folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fleet_controller.demo.topology import ACCESS, PROVINCES, DemoLink, DemoProbe, Topology

DATABASE = "fleet"
RESOLVED_NAME = "peer.demo.test"  # RFC 6761: .test is nobody's

# Periods so short that every line is measured several times in a minute and a half. The heavy tasks of a probe wait for
# each other: a round of them takes 16 s of each 25, the rest is for those that have to wait; the other direction of
# responsiveness would not fit in. 41 packets make the median of a series on a line with ± 3 ms of jitter good to about
# 0.2 ms, and that of a run's series to 0.05 ms.
_FLEET = """\
operators:
  isp-a: {{name: "ISP A, fixed lines"}}
  isp-b: {{name: "ISP B, mobile lines"}}
peers:
  core: {{host: {peer}, scope: domestic, stamp_port: {stamp_port}, http_port: {http_port}}}
  # The same, by its name: one for both IP versions.
  site: {{host: {name}, scope: domestic, stamp_port: {stamp_port}, http_port: {http_port}}}
schedules:
  heavy:
    period_s: 25
    actions:
      - {{task: capacity, name: download, peers: [core],
          parameters: {{direction: download, max_duration_s: {longest_s}}}}}
      - {{task: capacity, name: upload, peers: [core],
          parameters: {{direction: upload, max_duration_s: {longest_s}}}}}
      - {{task: responsiveness, peers: [core],
          parameters: {{direction: download, max_duration_s: {loaded_s}, interval_s: 0.3}}}}
  round-trip:
    period_s: 3
    actions:
      - {{task: round_trip, name: stamp, peers: [core],
          parameters: {{method: stamp, packets: 41, interval_s: 0.02, time_out_s: 1}}}}
{icmp}
  watch:
    period_s: 20
    actions:
      - {{task: availability, peers: [core], parameters: {{method: {echo}}}}}
  light:
    period_s: 5
    actions:
      - {{task: dns, parameters: {{name: {name}, record_type: A}}}}
      - {{task: web, peers: [site], parameters: {{path: /small, allow_private: true}}}}
      - {{task: host}}
  line:
    period_s: 10
    actions:
      - {{task: ipv6, peers: [site], parameters: {{packets: 5, interval_s: 0.1}}}}
      - {{task: path, peers: [core]}}
probes:
"""
_ICMP = """\
      - {task: round_trip, name: icmp, peers: [core],
          parameters: {method: icmp, packets: 41, interval_s: 0.02, time_out_s: 1}}
"""
_FLEET_PROBE = """\
  {agent_id}:
    province: {province}
    links:
"""
_FLEET_LINK = "      {name}: {{operator: {operator}, access: {access}{plan}}}\n"
_CONTROLLER = """\
fleet_file = "fleet.yaml"
state_dir = "controller-state"
[broker]
host = "{host}"
port = {port}
[influxdb]
url = "{influxdb_url}"
database = "{database}"
"""
_PROBE = """\
agent_id = "{agent_id}"
state_dir = "{state_dir}"
status_period_s = 5
[broker]
host = "{host}"
port = {port}
[spool]
min_free_disk_bytes = 0
[targets]
networks = {networks}
domains = ["{name}"]
"""
_PROBE_LINK = """\
[[links]]
name = "{name}"
interface = "{interface}"
source_address = "{source}"
resolvers = {resolvers}
"""
# An emulated line is known to 3 % after 2 to 6 s. The loopback has no rate to be found, only a processor to be heated.
_CAPACITY_S_MAX = 8
_LOOPBACK_CAPACITY_S_MAX = 2
# Four intervals, and some more until they agree.
_LOADED_S_MAX = 5
_LOOPBACK_LOADED_S_MAX = 2
_OPERATORS = {"fixed": "isp-a", "mobile": "isp-b"}
_GROUPS_FILE = Path("/proc/sys/net/ipv4/ping_group_range")


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers of the demo listen, as probes and controller see it."""

    broker_port: int
    influxdb_url: str
    resolvers: tuple[str, ...]
    http_port: int
    stamp_port: int


@dataclass(frozen=True, slots=True)
class Files:
    """The files as written."""

    controller: Path
    probes: dict[str, Path]


def write_files(directory: Path, topology: Topology, servers: Servers, *, icmp: bool) -> Files:
    """Write fleet.yaml, controller.toml and each probe's probe.toml."""
    fleet = _FLEET.format(
        peer=topology.peer_address,
        stamp_port=servers.stamp_port,
        http_port=servers.http_port,
        name=RESOLVED_NAME,
        icmp=_ICMP if icmp else "",
        echo="icmp" if icmp else "stamp",
        longest_s=_LOOPBACK_CAPACITY_S_MAX if topology.core is None else _CAPACITY_S_MAX,
        loaded_s=_LOOPBACK_LOADED_S_MAX if topology.core is None else _LOADED_S_MAX,
    )
    fleet += "".join(_fleet_probe(probe) for probe in topology.probes)
    (directory / "fleet.yaml").write_text(fleet, encoding="utf-8")
    controller = directory / "controller.toml"
    broker = {"host": topology.broker_address, "port": servers.broker_port}
    controller.write_text(
        _CONTROLLER.format(**broker, influxdb_url=servers.influxdb_url, database=DATABASE), encoding="utf-8"
    )
    return Files(controller, {probe.agent_id: _probe(directory, probe, topology, servers) for probe in topology.probes})


def write_operator_file(path: Path, broker: str, influxdb_url: str) -> None:
    """Write a controller.toml for commands typed on this host; `broker` is host:port."""
    host, _, port = broker.rpartition(":")
    text = _CONTROLLER.format(host=host, port=port, influxdb_url=influxdb_url, database=DATABASE)
    path.write_text(text, encoding="utf-8")


def icmp_allowed() -> bool:
    """Whether this host lets every group open ICMP datagram sockets (ping_group_range; the usual setting)."""
    try:
        first, last = _GROUPS_FILE.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False
    return int(first) == 0 and int(last) > 0


def _fleet_probe(probe: DemoProbe) -> str:
    head = _FLEET_PROBE.format(agent_id=probe.agent_id, province=PROVINCES[probe.agent_id])
    return head + "".join(_fleet_link(link) for link in probe.links)


def _fleet_link(link: DemoLink) -> str:
    plan = ""
    if link.profile is not None:
        plan = f", plan_download_bps: {link.profile.download_bps}, plan_upload_bps: {link.profile.upload_bps}"
    access = ACCESS[link.name]
    return _FLEET_LINK.format(name=link.name, operator=_OPERATORS[access], access=access, plan=plan)


def _probe(directory: Path, probe: DemoProbe, topology: Topology, servers: Servers) -> Path:
    home = directory / probe.agent_id
    (home / "state").mkdir(parents=True)
    text = _PROBE.format(
        agent_id=probe.agent_id,
        state_dir=home / "state",
        host=topology.broker_address,
        port=servers.broker_port,
        networks=json.dumps(topology.target_networks),
        name=RESOLVED_NAME,
    )
    for link in probe.links:
        text += _PROBE_LINK.format(
            name=link.name,
            interface=link.interface,
            source=link.source_address,
            resolvers=json.dumps(servers.resolvers),
        )
    path = home / "probe.toml"
    path.write_text(text, encoding="utf-8")
    return path
