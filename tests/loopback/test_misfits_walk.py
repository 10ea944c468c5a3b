"""Every task at every kind of peer, against real servers: what the check lets pass can be measured."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from librespeed_server import LibreSpeedServer
from ndt7_server import Ndt7Server

from fleet_controller.lab.services import Dnsmasq
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.links import Link
from probe.measure.outcome import outcome_of
from probe.messages import BULK_PATHS, BulkProtocol, FailureKind, Peer
from probe.peer.http_peer import HttpPeer
from probe.peer.reflector import Reflector
from probe.tasks import TASKS
from probe.tasks.base import Context, Load, Parameters

V4, V6, NAME = "127.0.0.1", "::1", "dual.test"
KEY = bytes(range(32))
# At one time: what is measured here is only whether it can be.
_HEAVY_AT_A_TIME, _LIGHT_AT_A_TIME = 6, 12
_QUICK: Mapping[str, dict[str, Any]] = {
    "availability": {"interval_s": 0.5, "time_out_s": 1.0, "losses": 2},
    "capacity": {"streams_max": 2},
    "dns": {"name": NAME, "time_out_s": 1.0},
    "host": {"window_s": 0.1},
    "ipv6": {"packets": 2, "interval_s": 0.02, "time_out_s": 3.0},
    "path": {"time_out_s": 1.5, "limit_s": 10.0, "silent_hops_max": 1},
    "responsiveness": {"max_duration_s": 2.0, "interval_s": 0.2, "max_bytes": 20_000_000},
    "round_trip": {"packets": 2, "interval_s": 0.02, "time_out_s": 3.0},
    "web": {"time_out_s": 2.0, "allow_private": True},
}
_SIZES: list[dict[str, Any]] = [
    {"mode": "full", "max_duration_s": 1.0},
    {"mode": "capped", "max_bytes": 12_000_000},
    {"mode": "file", "file_bytes": 12_000_000},
]
_DEFAULT_METHOD = {"availability": "icmp"}
_METHODS = {"availability": ("icmp", "stamp"), "path": ("udp", "icmp"), "round_trip": ("stamp", "icmp", "tcp")}


def wishes(task: str) -> Iterator[dict[str, Any]]:
    """The parameters to try: every one that changes what a task needs of its peer."""
    versions = [{"ip_version": version} for version in (4, 6)]
    if task in _METHODS:
        grid: list[list[dict[str, Any]]] = [versions, [{"method": method} for method in _METHODS[task]]]
    elif task == "capacity":
        grid = [versions, _SIZES, [{"direction": "download"}, {"direction": "upload", "loaded_delay": True}]]
    elif task == "responsiveness":
        grid = [versions]
    elif task == "dns":
        grid = [[{"transport": "udp"}, {"transport": "tcp"}], [{"record_type": "A"}, {"record_type": "AAAA"}]]
    elif task == "ipv6":
        hosts: list[dict[str, Any]] = [{}, {"host": NAME}, {"host": V4}, {"host": V6}, {"host": V4, "host_v6": V6}]
        grid = [[{"method": "stamp"}, {"method": "icmp"}], hosts]
    elif task == "web":
        urls = [{}, *({"url": f"http://{host}:{{port}}/small"} for host in (V4, f"[{V6}]", NAME)), {"path": "/small"}]
        grid = [versions, urls]  # without either it is the page `/` of the peer, if there is one
    else:
        grid = [[{}]]
    for parts in itertools.product(*grid):
        yield _QUICK[task] | {key: value for part in parts for key, value in part.items()}


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[dict[str, Peer]]:
    """One of each kind that there can be: by its addresses, by a name, with a key, of each protocol."""
    http, plain, keyed = HttpPeer(None, "test"), [Reflector(), Reflector()], Reflector(keys=(KEY,))
    http.start("", 0)
    await plain[0].start(V4, 0)
    await plain[1].start(V6, plain[0].port)
    await keyed.start(V4, 0)
    (tmp_path / "stamp.key").write_text(KEY.hex())
    (tmp_path / "stamp.key").chmod(0o600)

    def peer(name: str, host: str, port: int = http.port, protocol: BulkProtocol = "http", key: str = "") -> Peer:
        download_path, upload_path = BULK_PATHS[protocol]
        stamp_port = keyed.port if key else plain[0].port
        return Peer(
            name=name,
            host=host,
            http_port=port,
            stamp_port=stamp_port,
            stamp_key=key,
            protocol=protocol,
            download_path=download_path,
            upload_path=upload_path,
        )

    with Ndt7Server() as ndt7, LibreSpeedServer("go") as librespeed:
        made = [
            peer("v4", V4),
            peer("v6", V6),
            peer("named", NAME),
            peer("keyed", V4, key="fleet"),
            peer("ndt7", V4, ndt7.port, "ndt7"),
            peer("librespeed", V4, librespeed.port, "librespeed"),
        ]
        yield {one.name: one for one in made}
    for reflector in (*plain, keyed):
        await reflector.stop()
    http.stop()


def filled(wish: dict[str, Any], port: int) -> dict[str, Any]:
    """The port of the page becomes known only when the server runs."""
    return wish if "url" not in wish else wish | {"url": wish["url"].format(port=port)}


def has_icmp() -> bool:
    """Whether this host lets the tasks ping (net.ipv4.ping_group_range); elsewhere that half is left out."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except PermissionError:
        return False
    return True


async def outcome(task: str, parameters: Parameters, peer: Peer | None, link: Link, folder: Path) -> str:
    """What came of it: `values`, or the words of what did not."""
    kind = TASKS[task]
    context = Context(
        clock=SystemClock(),
        time_out_s=30,
        link=link,
        peer=peer,
        stamp_keys={"fleet": str(folder / "stamp.key")},
        window_s=1.2 if kind.continuous else None,
    )
    said = await outcome_of(kind, context, parameters)
    values, failure = said.get("values"), said.get("failure")
    if failure is not None and failure.kind == FailureKind.HTTP_STATUS:
        return "values"  # it was asked for, and has no such page
    if values is None:
        return repr(said)
    # Values too can say that it was for nothing.
    is_vain = (
        values.get("packets_received") == 0
        or (task == "path" and not values["reached"])
        or (task == "availability" and values["up_s"] == 0)
        or (task == "ipv6" and values["state"] != "works")
    )
    return repr(values) if is_vain else "values"


async def test_what_the_check_lets_pass_can_be_measured(tmp_path: Path, peers: dict[str, Peer]) -> None:
    """Nine tasks by all kinds of peers and parameters: each either has a misfit, or measures."""
    busy = {Load.HEAVY: asyncio.Semaphore(_HEAVY_AT_A_TIME), Load.LIGHT: asyncio.Semaphore(_LIGHT_AT_A_TIME)}
    refused: list[str] = []
    may_ping = has_icmp()
    with Dnsmasq(tmp_path / "dns", names={NAME: f"{V4},{V6}"}) as resolver:
        link = Link(
            LinkConfig(
                name="lo",
                interface="lo",
                source_address=V4,
                source_address_v6=V6,
                resolvers=(f"127.0.0.1:{resolver.port}",),
            )
        )

        async def look(task: str, wish: dict[str, Any], peer: Peer | None) -> str | None:
            parameters = msgspec.convert(filled(wish, peers["v4"].http_port), TASKS[task].parameters)
            label = f"{task} {wish} at {peer.name if peer else None}"
            misfits = list(TASKS[task].misfits(parameters, peer))
            if misfits:
                refused.append(f"{label}: {misfits[0]}")
                return None
            async with busy[TASKS[task].load]:
                said = await outcome(task, parameters, peer, link, tmp_path)
            return None if said == "values" else f"{label}: {said}"

        cases = [
            look(name, wish, peer)
            for name, task in TASKS.items()
            for wish in wishes(name)
            for peer in (*peers.values(), *(() if task.needs_peer else (None,)))
            if may_ping or wish.get("method", _DEFAULT_METHOD.get(name)) != "icmp"
        ]
        found = await asyncio.gather(*cases)
    in_vain = [one for one in found if one is not None]
    assert in_vain == [], "\n" + "\n".join(in_vain)
    assert len(refused) > 80
    assert len(cases) - len(refused) > 80
