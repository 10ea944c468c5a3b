"""The wall clock is stepped in the middle of each measurement, and no figure moves with it.

CLOCK_REALTIME belongs to the whole machine, so that is really stepped: forward, and back after a moment by exactly what
the monotonic clock says. Where that is forbidden (a container without CAP_SYS_TIME) the probe's process is given the
same step at the seams where a program learns wall time; that is tested everywhere, so that it is known to be the same.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from lab_probe import STEP_NS, LabProbe, lab_probe
from lab_site import FAR, NEAR, far_peer

from fleet_controller.lab.emulator import EmulatedLink, End
from fleet_controller.lab.namespaces import entered, namespace
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.services import Dnsmasq
from probe.messages import Result

STEPPED_S: Final = 0.25
DELAY_S: Final = 0.08
RATE_BPS: Final = 20_000_000
PAYLOAD_BPS: Final = RATE_BPS * 1448 / 1500
PEER: Final = {"host": FAR, "http_port": 8080, "stamp_port": 8862}
LINK: Final = {"interface": "wan0", "resolvers": [f"{FAR}:53"]}

Stepped = Callable[[LabProbe], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A task, when the clock is stepped after its start, and between which figures its values must be."""

    task: str
    step_after_s: float
    within: dict[str, tuple[float, float]]
    duration_s: tuple[float, float]
    parameters: dict[str, Any] = field(default_factory=dict)
    order: dict[str, Any] = field(default_factory=lambda: {"peer": PEER})


def _around(figure: float, error: float) -> tuple[float, float]:
    return figure - error, figure + error


TRAIN: Final = {"packets": 30, "interval_s": 0.03, "time_out_s": 1.0}
# The packets on their way when the clock moves have no delay that could be trusted; the others have theirs.
DELAYS: Final = {
    "packets_sent": (30, 30),
    "packets_received": (30, 30),
    "delays_rejected": (0, 16),
    "delay_min_s": _around(DELAY_S, 0.002),
    "delay_median_s": _around(DELAY_S, 0.002),
    "delay_max_s": (DELAY_S, DELAY_S + 0.02),
}
TRANSFER: Final = {"max_duration_s": 3.0}
RATE: Final = {"capacity_bps": _around(PAYLOAD_BPS, 0.05 * PAYLOAD_BPS), "transfer_s": (0.5, 3.3)}
ROWS: Final = {
    "round_trip-stamp": Row("round_trip", 0.3, DELAYS, (0.8, 1.6), TRAIN),
    "round_trip-icmp": Row("round_trip", 0.3, DELAYS, (0.8, 1.6), TRAIN | {"method": "icmp"}),
    "capacity-download": Row("capacity", 0.8, RATE, (0.5, 4.0), TRANSFER),
    "capacity-upload": Row("capacity", 0.8, RATE, (0.5, 4.0), TRANSFER | {"direction": "upload"}),
    # The answer takes one round trip: the step is within it.
    "dns": Row("dns", 0.04, {"response_time_s": _around(DELAY_S, 0.015)}, (0.07, 0.3), {"name": "peer.test"}, {}),
    # Connect, and ask: two round trips; the step is in the second.
    "web": Row(
        "web",
        0.12,
        {"connect_s": _around(DELAY_S, 0.02), "first_byte_s": _around(DELAY_S, 0.03), "total_s": (0.15, 0.3)},
        (0.15, 0.4),
        {"path": "/small", "allow_private": True},
    ),
    "availability": Row(
        "availability",
        1.0,
        {"outage_count": (0, 0), "up_s": (1.9, 2.6), "unknown_s": (0, 0.01)},
        (1.5, 6.0),
        {"interval_s": 0.5, "time_out_s": 1.0},
        {"peer": PEER, "window_s": 2.0},
    ),
}


@contextmanager
def real_step(probe: LabProbe) -> Iterator[None]:  # noqa: ARG001 - as `seam_step`
    """The machine's own clock; put back by the monotonic one, so that nothing of the step is left."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    time.clock_settime_ns(time.CLOCK_REALTIME, time.monotonic_ns() + offset_ns + STEP_NS)
    try:
        yield
    finally:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.monotonic_ns() + offset_ns)


@contextmanager
def seam_step(probe: LabProbe) -> Iterator[None]:
    """What the probe's process learns of the clock."""
    os.kill(probe.pid, signal.SIGUSR1)
    try:
        yield
    finally:
        os.kill(probe.pid, signal.SIGUSR1)


def may_step() -> bool:
    """Whether this machine's clock may be set: to what it is."""
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, time.time_ns())
    except PermissionError:
        return False
    return True


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProbe]:
    """A probe on a line of known rate and delay, every task warm: what is loaded at first would take time too."""
    folder = tmp_path_factory.mktemp("clock")
    with namespace("near") as near, namespace("far") as far, ExitStack() as stack:
        ends = End(near, "wan0", f"{NEAR}/30"), End(far, "line0", f"{FAR}/30")
        stack.enter_context(EmulatedLink(folder / "line", LinkProfile(RATE_BPS, RATE_BPS, DELAY_S), *ends))
        stack.enter_context(far_peer(far))
        with entered(far):
            stack.enter_context(Dnsmasq(folder / "dns", names={"peer.test": FAR}, hosts=(FAR,), port=53))
        probe = stack.enter_context(lab_probe(near))
        for name in ("round_trip-stamp", "dns", "web"):
            assert measure(probe, ROWS[name]).values is not None
        yield probe


def measure(probe: LabProbe, row: Row, stepped: Stepped | None = None) -> Result:
    """Measure once, and step the clock in the middle."""
    probe.start(row.task, row.parameters, **({"link": LINK} | row.order))
    if stepped is not None:
        time.sleep(row.step_after_s)
        with stepped(probe):
            time.sleep(STEPPED_S)
    return probe.finish()


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("how", ["machine", "process"])
def test_a_step_of_the_wall_clock_changes_no_figure(probe: LabProbe, how: str, name: str) -> None:
    """Stepped by 1.7 s and back: durations, delays and rates are those of the line, and nothing is lost for it."""
    row = ROWS[name]
    # A machine whose clock may not be set has the process's step twice, and its permission said.
    is_real = how == "machine" and may_step()
    print(f"stepping {'the machine' if is_real else 'the process'}")  # noqa: T201 - which of the two was tested
    result = measure(probe, row, real_step if is_real else seam_step)
    if row.task == "capacity":
        time.sleep(0.5)  # what it left in the line's buffers would be the next one's delay
    assert result.values is not None, (result.failure, result.not_run)
    found = {field: result.values.get(field, 0) for field in row.within}
    wrong = {field: found[field] for field, (low, high) in row.within.items() if not low <= found[field] <= high}
    assert not wrong, (wrong, result.values)
    assert result.duration_s is not None
    assert row.duration_s[0] <= result.duration_s <= row.duration_s[1]


def test_the_clock_is_left_as_it_was() -> None:
    """After a step and back, wall and monotonic clock are as far apart as before, to a tenth of a millisecond."""
    if not may_step():
        return  # then nothing was stepped
    before_ns = time.time_ns() - time.monotonic_ns()
    with real_step(None):  # type: ignore[arg-type]  # no probe is needed
        assert time.time_ns() - time.monotonic_ns() - before_ns == pytest.approx(STEP_NS, abs=1_000_000)
    assert abs(time.time_ns() - time.monotonic_ns() - before_ns) < 100_000
