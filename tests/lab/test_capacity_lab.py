"""Capacity against lines of a known rate, in namespaces: a token bucket, an emulated mobile line, a line that dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.line import LinkProfile, tcp_payload_bps
from fleet_controller.lab.namespaces import command_in, namespace, run_ip
from fleet_controller.lab.services import die_with_parent

NEAR, FAR, DEVICE = "198.18.0.2", "198.18.0.1", "wan0"  # RFC 2544's benchmarking range
STREAMS_MAX = 16
# A token bucket counts the Ethernet header, an IP-layer rate does not.
ETHERNET_PAYLOAD_RATIO = 1448 / 1514

# Runs in the near namespace: measures once, says when the first byte has come, then what the outcome is.
PROBE = """
import asyncio, json, sys
import msgspec
from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.errors import MeasurementFailedError
from probe.links import Link
from probe.messages import Peer
from probe.tasks.base import Context
from probe.tasks.capacity import TASK, CapacityParameters

async def main(host, parameters):
    link = Link(LinkConfig(name="wan", interface="wan0"))
    context = Context(SystemClock(), 60, link, Peer(name="p", host=host, http_port=8080))
    measuring = asyncio.create_task(TASK.measure(context, CapacityParameters(**parameters)))
    while not (context.usage.sent_bytes or context.usage.received_bytes or measuring.done()):
        await asyncio.sleep(0.01)
    print("moving", flush=True)
    try:
        print(json.dumps(msgspec.to_builtins(await measuring)))
    except MeasurementFailedError as error:
        print(json.dumps(msgspec.to_builtins(error.failure)))

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""
PEER = """
import asyncio
from probe.peer.serve import PeerSettings, serve
asyncio.run(serve(PeerSettings(host="", http_port=8080, stamp_port=8862), lambda *ports: print("ready", flush=True)))
"""


@contextmanager
def running(where: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A program in a namespace, once it has said its first line."""
    with subprocess.Popen(
        command_in(where, [sys.executable, "-c", *command]),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,  # noqa: PLW1509 - only sets a flag, started from one thread
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def measuring(where: str, host: str = FAR, **parameters: Any) -> Iterator[subprocess.Popen[str]]:
    """A measurement whose first byte has come, or that has failed already."""
    with running(where, PROBE, host, json.dumps(parameters)) as process:
        yield process


def outcome(process: subprocess.Popen[str]) -> Any:
    """What it said in the end."""
    assert process.stdout is not None
    return json.loads(process.stdout.read())


def measured(where: str, **parameters: Any) -> Any:
    """One whole measurement."""
    with measuring(where, **parameters) as process:
        return outcome(process)


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    """Two namespaces."""
    with namespace("near") as near, namespace("far") as far:
        yield near, far


@pytest.fixture
def joined(ends: tuple[str, str]) -> tuple[str, str]:
    """Both, with a wire between them."""
    near, far = ends
    run_ip("link", "add", DEVICE, "netns", near, "type", "veth", "peer", "name", DEVICE, "netns", far)
    for where, address in ((near, NEAR), (far, FAR)):
        # Super-packets of 64 KiB would wait for a bucket that never holds as much.
        run_ip("-n", where, "link", "set", DEVICE, "gso_max_segs", "1")
        run_ip("-n", where, "addr", "add", f"{address}/30", "dev", DEVICE)
        run_ip("-n", where, "link", "set", "lo", "up")
        run_ip("-n", where, "link", "set", DEVICE, "up")
    return ends


@pytest.fixture
def bucket(joined: tuple[str, str]) -> Iterator[str]:
    """A 50 Mbit/s token bucket each way and a peer behind it; gives the near namespace."""
    near, far = joined
    for where in joined:
        shaping = [
            "tc",
            "qdisc",
            "add",
            "dev",
            DEVICE,
            "root",
            "tbf",
            "rate",
            "50mbit",
            "burst",
            "15k",
            "limit",
            "300k",
        ]
        subprocess.run(command_in(where, shaping), check=True)
    with running(far, PEER):
        yield near


def shape_each_port(where: str, port: str, rate: str) -> None:
    """A queue of 50 packets and a rate for each of the probe's even ports, modulo 128."""
    tc = "tc {} dev " + DEVICE + " {}"
    commands = [tc.format("qdisc add", "root handle 1: htb")]
    for number in range(1, 65):
        commands += [
            tc.format("class add", f"parent 1: classid 1:{number:x} htb rate {rate} burst 3k cburst 3k quantum 1514"),
            tc.format("qdisc add", f"parent 1:{number:x} pfifo limit 50"),
            tc.format(
                "filter add",
                f"parent 1: protocol ip u32 match ip {port} {2 * number - 2:#x} 0x7e flowid 1:{number:x}",
            ),
        ]
    subprocess.run(command_in(where, ["sh", "-ec", "\n".join(commands)]), check=True)


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_token_bucket_is_measured_at_its_rate(bucket: str, direction: str) -> None:
    """50 Mbit/s within 5 %, with its own uncertainty below 3 %, in a few seconds and megabytes."""
    values = measured(bucket, direction=direction)
    assert values["capacity_bps"] == pytest.approx(50e6 * ETHERNET_PAYLOAD_RATIO, rel=0.05)
    assert values["whole_transfer_bps"] == pytest.approx(50e6 * ETHERNET_PAYLOAD_RATIO, rel=0.1)
    assert not values["lower_bound"]
    # The line is full: one stream more is tried, and four only when the queue has gone before that, or meanwhile.
    # What a receiver's kernel knows of the queue are whole milliseconds, three of them here, and two would be too few.
    assert values["streams"] in ({5, 8, 9} if direction == "download" else {5, 9})
    assert values["streams_failed"] == 0
    assert values["transferred_bytes"] < 80e6


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_line_that_holds_back_each_stream_is_filled_with_more(joined: tuple[str, str], direction: str) -> None:
    """Each stream has a queue of 10 Mbit/s of its own, as some operators shape: one more shows it."""
    near, far = joined
    sender, port = (near, "sport") if direction == "upload" else (far, "dport")
    shape_each_port(sender, port, "10mbit")
    # Ports that differ by a multiple of 128 would share a queue, and the kernel leaves gaps by chance.
    run_ip("netns", "exec", near, "sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 32895")
    with running(far, PEER):
        values = measured(near, direction=direction)
    assert values["streams"] == STREAMS_MAX
    assert values["capacity_bps"] == pytest.approx(STREAMS_MAX * 10e6 * ETHERNET_PAYLOAD_RATIO, rel=0.02)


def test_a_capped_measurement_keeps_to_its_bytes(bucket: str) -> None:
    """1 MB of a 50 Mbit/s line is spent in the ramp: a lower bound, and not a byte more."""
    values = measured(bucket, direction="download", mode="capped", max_bytes=1_000_000)
    assert values["stopped_by"] == "max_bytes"
    assert values["lower_bound"]
    assert 200_000 < values["transferred_bytes"] <= 1_000_000


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_mobile_line_is_measured_at_its_rate(tmp_path: Path, ends: tuple[str, str], direction: str) -> None:
    """40/15 Mbit/s with 45 ms, 5 ms of jitter and 0.1 % of loss: within 5 %, and TCP saw the delay."""
    near, far = ends
    profile = LinkProfile(40_000_000, 15_000_000, 0.045, jitter_s=0.005, loss_ratio=0.001)
    with ExitStack() as stack:
        stack.enter_context(
            EmulatedLink(tmp_path / "line", profile, End(near, DEVICE, f"{NEAR}/30"), End(far, "line0", f"{FAR}/30"))
        )
        stack.enter_context(running(far, PEER))
        values = measured(near, direction=direction)
    rate_bps = profile.download_bps if direction == "download" else profile.upload_bps
    assert values["capacity_bps"] == pytest.approx(tcp_payload_bps(rate_bps), rel=0.05)
    assert values["delay_min_s"] == pytest.approx(0.043, abs=0.005)
    assert values["curve"][-1]["offset_s"] == pytest.approx(values["transfer_s"], abs=1.0)


def test_a_line_that_dies_is_lost(bucket: str) -> None:
    """The interface goes down in the middle: (transfer, link_lost) after three seconds, and no other way out."""
    with measuring(bucket, direction="download", max_duration_s=30) as process:
        run_ip("-n", bucket, "link", "set", DEVICE, "down")
        assert outcome(process)["kind"] == "link_lost"


def test_an_unreachable_peer_is_said_to_be_unreachable(bucket: str) -> None:
    """Nobody on the line has that address: (connect, host_unreachable), before the connection's own time is over."""
    with measuring(bucket, "198.18.9.9") as process:
        failure = outcome(process)
    assert (failure["operation"], failure["kind"]) == ("connect", "host_unreachable")
