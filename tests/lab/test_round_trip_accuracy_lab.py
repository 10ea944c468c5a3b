"""`round_trip` against what the line did: its delay on a busy host, its losses, its jitter, its order, its clocks."""

from __future__ import annotations

import asyncio
import ctypes
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from round_trip_lab import FAR, finish, line_between, measured, reflector_in, start

from fleet_controller.lab.line import LinkProfile, line_pair
from fleet_controller.lab.namespaces import entered
from probe.clock import _LIBC, SystemClock, _Timex
from probe.config import LinkConfig
from probe.flows.echo.delays import loss_pattern
from probe.flows.echo.engine import Echo, Plan, prepare
from probe.flows.echo.stamp import StampProtocol
from probe.links import Link
from probe.tasks.base import Usage
from probe.tasks.round_trip import RoundTripValues, values_of

RATE_BPS = 100_000_000
_ADJ_SETOFFSET, _ADJ_NANO = 0x0100, 0x2000  # linux/timex.h
_NS_PER_S = 1_000_000_000
STEP_NS = 20_000_000


async def dense_series(near: str, port: int, packets: int) -> RoundTripValues:
    """A series with a packet every millisecond, which the task does not allow itself."""
    with entered(near):
        sock = Link(LinkConfig(name="l", interface="wan0")).socket(4, socket.SOCK_DGRAM)
    with sock:
        prepare(sock)
        sock.connect((FAR[4], port))
        protocol = StampProtocol(SystemClock().reading())
        return values_of(await Echo(sock, protocol, Plan(packets, 0.001, 0.5), Usage()).run())


def is_in_95_percent(hits: int, trials: int, ratio: float) -> bool:
    """Whether a count lies within the central 95 % of the binomial distribution, summed up term by term."""
    below = above = 0.0
    for count in range(trials + 1):
        log_p = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
        p = math.exp(log_p + count * math.log(ratio) + (trials - count) * math.log1p(-ratio))
        below += p if count <= hits else 0.0
        above += p if count >= hits else 0.0
    return min(below, above) > 0.025


async def test_loss_is_unbiased(tmp_path: Path, near: str, far: str) -> None:
    """Of 10,000 packets over 1 % loss each way: the line's own count to the packet, and in the binomial 95 %."""
    with line_between(tmp_path, near, far, LinkProfile(RATE_BPS, RATE_BPS, 0.01, loss_ratio=0.01)) as line:
        async with reflector_in(far) as reflector:
            values = await dense_series(near, reflector.port, 10_000)
        line.stop()
        lost = {direction: counters.lost for direction, counters in line.counters().items()}
    assert values.packets_sent == 10_000
    assert values.packets_lost_unattributed is not None
    assert values.packets_sent - values.packets_received == lost["upload"] + lost["download"]
    assert abs((values.packets_lost_forward or 0) - lost["upload"]) <= values.packets_lost_unattributed
    assert abs((values.packets_lost_backward or 0) - lost["download"]) <= values.packets_lost_unattributed
    assert is_in_95_percent(values.packets_sent - values.packets_received, 10_000, 1 - 0.99**2)


def losses_of(profile: LinkProfile, packets: int) -> set[int]:
    """Which of packets 1, 2, … the line loses on either way, by the same draws as the emulator's first run."""
    upload, download = (line._loss for line in line_pair(profile, 1))
    assert upload is not None
    assert download is not None
    # The reply to what was lost on the way there never comes to the way back, so nothing is drawn for it.
    return {number for number in range(1, packets + 1) if upload.hits(1) or download.hits(1)}


async def test_losses_in_bursts(tmp_path: Path, near: str, far: str) -> None:
    """Runs of four on average, each way: the same losses in the same bursts as the line drew."""
    profile = LinkProfile(RATE_BPS, RATE_BPS, 0.01, loss_ratio=0.05, loss_burst_packets=4)
    with line_between(tmp_path, near, far, profile) as line:
        async with reflector_in(far) as reflector:
            values = await dense_series(near, reflector.port, 2000)
        line.stop()
        lost = sum(counters.lost for counters in line.counters().values())
    numbers = range(1, 2001)
    drawn = losses_of(profile, 2000)
    expected = loss_pattern(numbers, set(numbers) - drawn)
    assert values.packets_sent - values.packets_received == lost == len(drawn)
    assert values.loss_bursts == expected.bursts < lost / 2
    assert values.loss_burst_max_packets == expected.burst_max_packets
    assert values.loss_distance_median_packets == expected.distance_median_packets == 1


@pytest.mark.parametrize(("jitter_s", "interval_s"), [(0.002, 0.01), (0.02, 0.02)])
async def test_pdv_is_the_jitter_of_the_line(
    tmp_path: Path, near: str, far: str, jitter_s: float, interval_s: float
) -> None:
    """p95 - minimum is what the line varies by, to 5 % or 0.2 ms; the median is the line's; nothing is reordered."""
    profile = LinkProfile(RATE_BPS, RATE_BPS, 0.03, jitter_s=jitter_s)
    with line_between(tmp_path, near, far, profile):
        async with reflector_in(far) as reflector:
            parameters = {"packets": 250, "interval_s": interval_s}
            values = (await measured(near, "wan0", port=reflector.port, parameters=parameters))["values"]
    assert values["pdv_s"] == pytest.approx(profile.expected_pdv_s(), rel=0.05, abs=0.0002)
    assert values["packets_reordered"] == 0
    # A step between neighbours is no more than the jitter, and less than half of it on average.
    assert 0 < values["ipdv_mean_abs_s"] < jitter_s / 2


async def test_reordering_and_duplicates(tmp_path: Path, near: str, far: str) -> None:
    """Every copy that the line made is a duplicate; nearly every packet that it held back was overtaken."""
    profile = LinkProfile(RATE_BPS, RATE_BPS, 0.01, reorder_ratio=0.05, reorder_gap_s=0.015, duplicate_ratio=0.05)
    with line_between(tmp_path, near, far, profile) as line:
        async with reflector_in(far) as reflector:
            parameters = {"packets": 200, "interval_s": 0.01}
            values = (await measured(near, "wan0", port=reflector.port, parameters=parameters))["values"]
        line.stop()
        counters = line.counters().values()
    assert (values["packets_sent"], values["packets_received"]) == (200, 200)
    assert values["packets_duplicated"] == sum(one.duplicated for one in counters) > 0
    # Held back twice, or beside another one that was: not overtaken, or only once. And so are copies.
    delayed = sum(one.delayed for one in counters)
    assert 0.5 * delayed <= values["packets_reordered"] <= delayed


@contextmanager
def clock_put_back() -> Iterator[list[int]]:
    """Takes back every step noted in the list, however the block ends."""
    steps: list[int] = []
    try:
        yield steps
    finally:
        if sum(steps):
            step_clock(-sum(steps))


def step_clock(offset_ns: int) -> None:
    """Step the host's wall clock by some milliseconds: relative, so that nothing is lost when it is stepped back."""
    seconds, nanoseconds = divmod(offset_ns, _NS_PER_S)
    timex = _Timex(modes=_ADJ_SETOFFSET | _ADJ_NANO)
    timex.time.tv_sec, timex.time.tv_usec = seconds, nanoseconds
    if _LIBC.adjtimex(ctypes.byref(timex)) == -1:
        raise OSError(ctypes.get_errno(), "adjtimex: not allowed to step the clock here")


@pytest.mark.parametrize("method", ["stamp", "tcp"])
async def test_clock_steps_in_mid_series_are_no_delays(tmp_path: Path, near: str, far: str, method: str) -> None:
    """The wall clock jumps 20 ms to and fro, six times: nothing is lost, and no delay is off by any of it."""
    with line_between(tmp_path, near, far, LinkProfile(RATE_BPS, RATE_BPS, 0.03)):
        async with reflector_in(far) as reflector:
            with entered(far):
                server = socket.create_server((FAR[4], reflector.port), backlog=200)
            with server, clock_put_back() as steps:
                parameters = {"method": method, "packets": 100, "interval_s": 0.02, "time_out_s": 1.0}
                settings = {"interface": "wan0", "port": reflector.port, "parameters": parameters}
                process = await start(near, settings)
                for sign in (1, -1) * 3:
                    await asyncio.sleep(0.3)
                    step_clock(sign * STEP_NS)
                    steps.append(sign * STEP_NS)
                values = (await finish(process))["values"]
    assert (values["packets_sent"], values["packets_received"], values["packets_reordered"]) == (100, 100, 0)
    assert values["delay_min_s"] >= 0.0298
    assert values["delay_median_s"] == pytest.approx(0.03, abs=0.0005)
    # A process that was held up delays a packet; a step would take or add 20 ms.
    assert values["delay_p95_s"] < 0.04
    assert (values["delays_rejected"] > 0) == (method == "stamp")


@contextmanager
def one_busy_core() -> Iterator[None]:
    """A program that wants one core for itself."""
    with subprocess.Popen(["taskset", "-c", "0", sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("method", ["stamp", "icmp", "tcp"])
async def test_delay_with_a_busy_core(tmp_path: Path, near: str, far: str, method: str) -> None:
    """With one core loaded the median is still that of the line to a quarter of a millisecond."""
    profile = LinkProfile(RATE_BPS, RATE_BPS, 0.02)
    with line_between(tmp_path, near, far, profile), one_busy_core():
        async with reflector_in(far) as reflector:
            with entered(far):
                server = socket.create_server((FAR[4], reflector.port))
            with server:
                parameters = {"method": method, "packets": 60, "interval_s": 0.02}
                values = (await measured(near, "wan0", port=reflector.port, parameters=parameters))["values"]
    # The benchmark holds the median of five runs to 0.1 ms; one run on a shared machine is given more.
    assert values["delay_median_s"] == pytest.approx(profile.expected_delay_s(44), abs=0.00025)
