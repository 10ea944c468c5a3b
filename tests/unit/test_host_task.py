from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.clock import SystemClock
from probe.messages import ClockReading, ClockState
from probe.tasks import TASKS
from probe.tasks.host import (
    TASK,
    CoreTimes,
    HostValues,
    busy_ratio,
    look,
    nic_speed_bps,
    read_cores,
    temperature_celsius,
)

# A Raspberry Pi 4 as its kernel shows it, cut to what is read.
PI_4 = {
    "proc/loadavg": "0.42 0.36 0.30 2/165 2290\n",
    "proc/uptime": "86400.25 340000.00\n",
    "proc/meminfo": "MemTotal:        1881380 kB\nMemFree:          100 kB\nMemAvailable:    1500000 kB\n"
    "HugePages_Total:  0\n",
    "proc/stat": "cpu  300 0 100 600 0 0 0 0 0 0\ncpu0 200 0 50 250 0 0 0 0 0 0\n"
    "cpu1 100 0 50 350 0 0 0 0 0 0\nintr 5\nctxt 6\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48686\n",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    "sys/class/net/eth0/type": "1\n",
    "sys/class/net/eth0/speed": "100\n",
    "sys/class/net/eth0/device/uevent": "\n",
    "sys/class/net/wlan0/type": "1\n",
    "sys/class/net/wlan0/speed": "54\n",
    "sys/class/net/wlan0/device/uevent": "\n",
    "sys/class/net/wlan0/phy80211/name": "phy0\n",
    "sys/class/net/lo/type": "772\n",
    "sys/class/net/br0/type": "1\n",
    "sys/class/net/br0/speed": "10\n",
}
LATER_STAT = "cpu0 260 0 70 270 0 0 0 0 0 0\ncpu1 110 0 50 440 0 0 0 0 0 0\n"


class KnownClock(SystemClock):
    """A clock in a known state."""

    def reading(self) -> ClockReading:
        """Synchronised to 2 ms."""
        return ClockReading(state=ClockState.SYNCHRONISED, max_error_s=0.002)


def plant(root: Path, files: dict[str, str]) -> Path:
    """Write a tree of files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


async def look_at(root: Path) -> HostValues:
    """Look without letting time pass."""
    return await look(root, KnownClock(), 0)


async def test_a_pi_under_low_voltage(tmp_path: Path) -> None:
    """Every figure of a Pi, in the units of its name; 0x50005 is under-voltage and throttled, now and before."""
    values = await look_at(plant(tmp_path, PI_4))
    assert (values.load_1m, values.load_5m, values.uptime_s) == (0.42, 0.36, 86400.25)
    assert (values.memory_total_bytes, values.memory_available_bytes) == (1881380 * 1024, 1500000 * 1024)
    assert (values.cpu_count, values.temperature_celsius, values.nic_speed_bps) == (2, 48.686, 100_000_000)
    assert (values.throttled, values.throttled_seen) == (True, True)
    assert (values.under_voltage, values.under_voltage_seen) == (True, True)
    assert (values.clock_synchronised, values.clock_error_bound_s) == (True, 0.002)
    assert values.disk_free_bytes is not None
    assert values.disk_free_bytes > 0


async def test_a_host_that_has_nothing(tmp_path: Path) -> None:
    """What is not there is absent: no zero, no -1, no error."""
    values = await look_at(tmp_path)
    present = {name for name in values.__struct_fields__ if getattr(values, name) is not None}
    assert present - {"disk_free_inodes"} == {"clock_synchronised", "clock_error_bound_s", "disk_free_bytes"}


async def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    """Not even a file system to ask."""
    values = await look_at(tmp_path / "absent")
    assert (values.disk_free_bytes, values.disk_free_inodes) == (None, None)


async def test_load_is_that_of_the_window(tmp_path: Path) -> None:
    """Between the readings core 0 worked 80 of 100 ticks and core 1 10 of 100: busiest 0.8, all 0.45."""
    plant(tmp_path, PI_4)
    looking = asyncio.create_task(look(tmp_path, KnownClock(), 0))
    await asyncio.sleep(0)  # the first reading is taken, the second is not
    (tmp_path / "proc/stat").write_text(LATER_STAT)
    values = await looking
    assert values.cpu_busiest_core_ratio == 0.8
    assert values.cpu_busy_ratio == 0.45


async def test_no_tick_passed(tmp_path: Path) -> None:
    """Over no time there is no load: absent, not 0/0."""
    values = await look_at(plant(tmp_path, PI_4))
    assert (values.cpu_busy_ratio, values.cpu_busiest_core_ratio) == (None, None)


def test_waiting_for_the_disk_is_not_busy(tmp_path: Path) -> None:
    """Idle and iowait are both time in which the core could have worked; guest time is not counted twice."""
    plant(tmp_path, {"proc/stat": "cpu0 1 2 4 8 16 32 64 128 256 512\n"})
    assert read_cores(tmp_path) == {"cpu0": CoreTimes(busy=1 + 2 + 4 + 32 + 64 + 128, all=255)}


@given(*(st.integers(min_value=0, max_value=1000),) * 4)
def test_a_ratio_is_a_ratio(busy_0: int, idle_0: int, busy_1: int, idle_1: int) -> None:
    """Whatever the counters do (a core that went off line starts again), the ratio is in 0..1 or absent."""
    ratio = busy_ratio(CoreTimes(busy_0, busy_0 + idle_0), CoreTimes(busy_1, busy_1 + idle_1))
    assert ratio is None or 0 <= ratio <= 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("0", (False, False, False, False)),
        ("1", (False, False, True, False)),
        ("4", (True, False, False, False)),
        ("80000", (False, True, False, False)),
        ("0x10000", (False, False, False, True)),
        ("garbage", (None, None, None, None)),
    ],
)
async def test_throttle_flags(tmp_path: Path, flags: str, expected: tuple[bool | None, ...]) -> None:
    """Each bit of the firmware's word, with and without a prefix."""
    plant(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": flags})
    values = await look_at(tmp_path)
    assert (values.throttled, values.throttled_seen, values.under_voltage, values.under_voltage_seen) == expected


@pytest.mark.parametrize(("alarm", "expected"), [("0\n", False), ("1\n", True), ("", None)])
async def test_voltage_alarm_of_a_mainline_kernel(tmp_path: Path, alarm: str, expected: bool | None) -> None:
    """Without the firmware's word, the hwmon driver says whether the voltage is low; nothing about throttling."""
    plant(tmp_path, {"sys/class/hwmon/hwmon0/name": "cpu_thermal", "sys/class/hwmon/hwmon1/name": "rpi_volt\n"})
    plant(tmp_path, {"sys/class/hwmon/hwmon1/in0_lcrit_alarm": alarm})
    values = await look_at(tmp_path)
    assert (values.under_voltage, values.throttled) == (expected, None)


@pytest.mark.parametrize(
    ("zones", "expected"),
    [
        ([("cpu-thermal", "48686")], 48.686),
        ([("acpitz", "90000"), ("x86_pkg_temp", "51000")], 51.0),
        ([("acpitz", "30000"), ("pch", "40000")], 40.0),
        ([("cpu-thermal", "-274000"), ("iwlwifi", "35000")], 35.0),
        ([("cpu-thermal", "2147483647")], None),
        ([("cpu-thermal", "")], None),
        ([], None),
    ],
)
def test_temperature(tmp_path: Path, zones: list[tuple[str, str]], expected: float | None) -> None:
    """The processor's zone if it has one, else the hottest; what no board survives is not a temperature."""
    for number, (kind, text) in enumerate(zones):
        zone = f"sys/class/thermal/thermal_zone{number}"
        plant(tmp_path, {f"{zone}/type": kind, f"{zone}/temp": text})
    assert temperature_celsius(tmp_path) == expected


def test_nic_speed_is_the_lowest_with_a_cable(tmp_path: Path) -> None:
    """Of two ports the slower one counts; one without a cable says -1 and does not."""
    for name, speed in (("eth0", "1000"), ("eth1", "100"), ("eth2", "-1"), ("eth3", "")):
        port = f"sys/class/net/{name}"
        plant(tmp_path, {f"{port}/type": "1", f"{port}/speed": speed, f"{port}/device/uevent": ""})
    assert nic_speed_bps(tmp_path) == 100_000_000


async def test_this_very_host() -> None:
    """On the real machine: what every Linux has is there and plausible."""
    values = await look(Path("/"), SystemClock(), 0)
    assert values.cpu_count is not None
    assert values.cpu_count > 0
    assert values.memory_available_bytes is not None
    assert 0 < values.memory_available_bytes <= (values.memory_total_bytes or 0)
    assert values.uptime_s is not None
    assert values.cpu_busy_ratio is None or 0 <= values.cpu_busy_ratio <= 1


def test_the_task_needs_neither_link_nor_peer() -> None:
    """It is light, and runs once per slot whatever the links."""
    assert TASKS["host"] is TASK
    assert not TASK.needs_link
    assert not TASK.needs_peer
    assert TASK.time_out_s(TASK.parameters()) > 1
    assert set(TASK.baseline_fields) <= set(TASK.values.__struct_fields__)
