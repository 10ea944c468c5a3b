"""Time on the host: durations never step, and the kernel says whether the wall clock is steered."""

from __future__ import annotations

import re
import subprocess
import sys

from probe.clock import Instant, SystemClock, boot_id
from probe.messages import ClockReading, ClockState


class SteppedClock(SystemClock):
    """A wall clock that jumps back a year after the first reading."""

    def __init__(self) -> None:
        self.readings = 0

    def wall_ns(self) -> int:
        """A year less from the second reading on."""
        self.readings += 1
        return super().wall_ns() - (365 * 86_400_000_000_000 if self.readings > 1 else 0)


def test_a_step_of_the_wall_clock_does_not_change_a_duration() -> None:
    """Seconds between two instants come from the boot-time clock."""
    clock = SteppedClock()
    first, second = Instant.now(clock), Instant.now(clock)
    assert second.wall_ns < first.wall_ns
    assert 0 <= second.seconds_since(first) < 60


def test_the_reading_agrees_with_the_kernel() -> None:
    """What is read through our own structure is what a fresh look through another layout-free path says."""
    reading = SystemClock().reading()
    assert isinstance(reading, ClockReading)
    # The kernel's answer by the standard tool, where there is one; else its meaning: no bound without trust.
    if reading.state is ClockState.UNSYNCHRONISED:
        assert reading.max_error_s is None
    else:
        assert reading.max_error_s is None or 0 <= reading.max_error_s < 16


def test_reading_the_clock_does_not_need_a_privilege() -> None:
    """The agent does not run as root: asking the kernel works for nobody too."""
    program = (
        "import os\n"
        "from probe.clock import SystemClock\n"
        "os.geteuid() == 0 and os.setuid(65534)\n"
        "print(SystemClock().reading().state)"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert outcome.stdout.strip() in {state.value for state in ClockState}


def test_the_boot_id_is_stable_and_plain() -> None:
    """One boot, one id: 32 hexadecimal digits."""
    assert boot_id() == boot_id()
    assert re.fullmatch(r"[0-9a-f]{32}", boot_id())
