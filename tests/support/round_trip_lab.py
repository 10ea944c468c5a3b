"""`round_trip` in the lab: a probe's namespace, a peer's, a line between them, and measurements inside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile
from fleet_controller.lab.namespaces import command_in, entered
from probe.peer.reflector import Reflector

NEAR = {4: "198.18.0.2", 6: "2001:db8:18::2"}  # RFC 2544's benchmarking range, RFC 3849's documentation range
FAR = {4: "198.18.0.1", 6: "2001:db8:18::1"}
TIME_OUT_S = 60.0

# Runs inside the namespace: says "started", measures once, prints what came out and which kind of socket ICMP got.
INSIDE = """
import asyncio, json, os, sys
import msgspec
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.echo.icmp import open_echo
from probe.links import Link
from probe.messages import Peer
from probe.tasks.base import Context
from probe.tasks.round_trip import RoundTripParameters, measure

settings = json.loads(sys.argv[1])
if settings.get("nobody"):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
link = Link(LinkConfig(name="l", interface=settings["interface"], source_address_v6=settings.get("source_v6")))
parameters = msgspec.convert(settings["parameters"], RoundTripParameters)
peer = Peer(name="p", host=settings["host"], stamp_port=settings["port"], http_port=settings["port"])
context = Context(clock=SystemClock(), time_out_s=60, link=link, peer=peer)
print("started", flush=True)
try:
    result = {"values": msgspec.to_builtins(asyncio.run(measure(context, parameters)))}
except MeasurementFailedError as error:
    result = {"failure": [error.failure.operation, error.failure.kind]}
except NotRunError as error:
    result = {"not_run": error.not_run.reason, "detail": error.not_run.detail}
if "values" in result and parameters.method == "icmp":
    with open_echo(link, parameters.ip_version, 56)[0] as sock:
        result["socket"] = sock.type.name
print(json.dumps(result))
"""


def line_between(tmp_path: Path, near: str, far: str, profile: LinkProfile) -> EmulatedLink:
    """A line, not yet started."""
    ends = [
        End(name, device, f"{addresses[4]}/30", f"{addresses[6]}/64")
        for name, device, addresses in ((near, "wan0", NEAR), (far, "line0", FAR))
    ]
    return EmulatedLink(tmp_path / "line", profile, *ends)


@contextlib.asynccontextmanager
async def reflector_in(name: str, host: str = "0.0.0.0") -> AsyncIterator[Reflector]:  # noqa: S104 - a test's own namespace
    """A reflector that lives in a namespace."""
    reflector = Reflector()
    with entered(name):
        await reflector.start(host, 0)
    try:
        yield reflector
    finally:
        await reflector.stop()


@contextlib.contextmanager
def listener_in(name: str, version: int, port: int) -> Any:
    """Something that TCP can connect to in a namespace."""
    with entered(name):
        sock = socket.create_server((FAR[version], port), family=socket.AF_INET6 if version == 6 else socket.AF_INET)
    with sock:
        yield sock


async def start(name: str, settings: dict[str, Any]) -> Process:
    """Start a measurement in a namespace."""
    program = [sys.executable, "-W", "error", "-c", INSIDE, json.dumps({"host": FAR[4], "port": 862} | settings)]
    process = await asyncio.create_subprocess_exec(*command_in(name, program), stdout=PIPE, stderr=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(TIME_OUT_S):
        assert (await process.stdout.readline()).strip() == b"started", (await process.communicate())[1].decode()
    return process


async def finish(process: Process) -> Any:
    """What came out of it."""
    async with asyncio.timeout(TIME_OUT_S):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def measured(name: str, interface: str, **settings: Any) -> Any:
    """Measure once in a namespace."""
    return await finish(await start(name, {"interface": interface, "parameters": {}} | settings))
