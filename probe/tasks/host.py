"""`host`: how the probe itself fares. What a host does not have is absent; nothing of it is a failure."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from probe.clock import Clock
from probe.messages import ClockState
from probe.tasks.base import Context, Load, Parameters, TaskType, Values
from probe.tasks.fit import no_peer_misfits

# Reading a few files, on a host whose disk may be slow.
MARGIN_S = 5.0

# Sensors answer nonsense when they are absent or asleep (-274 degrees, 0x7fffffff): no board works beyond these.
TEMPERATURE_CELSIUS_MIN = -40.0
TEMPERATURE_CELSIUS_MAX = 150.0
# Names of the processor's own zone, on boards and on PCs; other zones are batteries, radios and the case.
CPU_ZONES = frozenset({"cpu-thermal", "cpu_thermal", "soc-thermal", "soc_thermal", "x86_pkg_temp"})

# Raspberry Pi firmware, `get_throttled`.
UNDER_VOLTAGE_BIT = 1 << 0
THROTTLED_BITS = 1 << 1 | 1 << 2 | 1 << 3  # frequency capped, throttled, soft temperature limit
SINCE_BOOT_SHIFT = 16  # the same bits again, kept since they were last true

_ARPHRD_ETHER = 1  # linux/if_arp.h
_BITS_PER_MEGABIT = 1_000_000
_BYTES_PER_KIB = 1024


class HostParameters(Parameters, frozen=True):
    """How to look. `window_s` is the time over which the processor's load is taken."""

    window_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 1.0


class HostValues(Values, frozen=True):
    """The state of the host.

    `cpu_busy_ratio` is over all cores, `cpu_busiest_core_ratio` of the busiest one (0..1), both within the window.
    `throttled` and `under_voltage` are about now, the `_seen` ones about some time since the firmware last forgot.
    `nic_speed_bps` is the lowest speed that a wired port with a cable negotiated. Disk figures are of the root file
    system, what an ordinary user may have of it. `clock_error_bound_s` is the kernel's own bound.
    """

    clock_synchronised: bool
    load_1m: float | None = None
    load_5m: float | None = None
    cpu_count: int | None = None
    cpu_busy_ratio: float | None = None
    cpu_busiest_core_ratio: float | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    temperature_celsius: float | None = None
    throttled: bool | None = None
    throttled_seen: bool | None = None
    under_voltage: bool | None = None
    under_voltage_seen: bool | None = None
    disk_free_bytes: int | None = None
    disk_free_inodes: int | None = None
    nic_speed_bps: int | None = None
    uptime_s: float | None = None
    clock_error_bound_s: float | None = None


async def measure(context: Context, parameters: HostParameters) -> HostValues:
    """Measure once."""
    return await look(Path("/"), context.clock, parameters.window_s)


async def look(root: Path, clock: Clock, window_s: float) -> HostValues:
    """The state of the host whose file systems hang below `root`."""
    before = read_cores(root)
    await asyncio.sleep(window_s)
    after = read_cores(root)
    loads, memory, flags = _loads(root), _memory(root), _throttle_flags(root)
    free_bytes, free_inodes = _disk_free(root)
    reading = clock.reading()
    return HostValues(
        load_1m=loads[0],
        load_5m=loads[1],
        cpu_count=len(after) or None,
        cpu_busy_ratio=_all_busy(before, after),
        cpu_busiest_core_ratio=_busiest(before, after),
        memory_total_bytes=memory.get("MemTotal"),
        memory_available_bytes=memory.get("MemAvailable"),
        temperature_celsius=temperature_celsius(root),
        throttled=_any_bit(flags, THROTTLED_BITS),
        throttled_seen=_any_bit(flags, THROTTLED_BITS << SINCE_BOOT_SHIFT),
        under_voltage=_voltage_alarm(root) if flags is None else _any_bit(flags, UNDER_VOLTAGE_BIT),
        under_voltage_seen=_any_bit(flags, UNDER_VOLTAGE_BIT << SINCE_BOOT_SHIFT),
        disk_free_bytes=free_bytes,
        disk_free_inodes=free_inodes,
        nic_speed_bps=nic_speed_bps(root),
        uptime_s=_uptime_s(root),
        clock_synchronised=reading.state == ClockState.SYNCHRONISED,
        clock_error_bound_s=reading.max_error_s,
    )


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """What a core did since boot, in ticks of the kernel."""

    busy: int
    all: int


def read_cores(root: Path) -> dict[str, CoreTimes]:
    """The cores that are on line, by name (proc_stat(5))."""
    lines = [line.split() for line in _text(root / "proc/stat").splitlines()]
    return {words[0]: _core_times(words[1:]) for words in lines if words and words[0][:3] == "cpu" and words[0][3:]}


def _core_times(words: list[str]) -> CoreTimes:
    # The first eight columns; those after them, guests, are in the first two already.
    ticks = [int(word) for word in words[:8]]
    waiting = sum(ticks[3:5])  # idle, and idle with a disk request under way
    return CoreTimes(busy=sum(ticks) - waiting, all=sum(ticks))


def busy_ratio(before: CoreTimes, after: CoreTimes) -> float | None:
    """The busy share of the time between two readings; absent when no tick passed or the counters went back."""
    passed = after.all - before.all
    busy = after.busy - before.busy
    return busy / passed if passed > 0 and 0 <= busy <= passed else None


def _all_busy(before: dict[str, CoreTimes], after: dict[str, CoreTimes]) -> float | None:
    """Over the cores that were on line at both readings."""
    both = before.keys() & after.keys()
    return busy_ratio(_sum(before[name] for name in both), _sum(after[name] for name in both))


def _sum(cores: Iterable[CoreTimes]) -> CoreTimes:
    listed = list(cores)
    return CoreTimes(busy=sum(core.busy for core in listed), all=sum(core.all for core in listed))


def _busiest(before: dict[str, CoreTimes], after: dict[str, CoreTimes]) -> float | None:
    ratios = [busy_ratio(before[name], times) for name, times in after.items() if name in before]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def temperature_celsius(root: Path) -> float | None:
    """The processor's temperature; without a zone of its own, that of the hottest."""
    zones = [(_text(zone / "type"), _number(zone / "temp")) for zone in _glob(root, "sys/class/thermal/thermal_zone*")]
    readings = [(kind, thousandths / 1000) for kind, thousandths in zones if thousandths is not None]
    plausible = [(k, t) for k, t in readings if TEMPERATURE_CELSIUS_MIN < t < TEMPERATURE_CELSIUS_MAX]
    of_cpu = [celsius for kind, celsius in plausible if kind in CPU_ZONES]
    return max(of_cpu or [celsius for _, celsius in plausible], default=None)


def nic_speed_bps(root: Path) -> int | None:
    """The lowest speed that a wired port with a cable negotiated."""
    ports = [port for port in _glob(root, "sys/class/net/*") if _is_wired(port)]
    speeds = [_number(port / "speed") for port in ports]
    # A port without a cable says -1, or nothing.
    return min((speed * _BITS_PER_MEGABIT for speed in speeds if speed is not None and speed > 0), default=None)


def _is_wired(port: Path) -> bool:
    """Only hardware has a `device`, and Wi-Fi calls itself Ethernet too."""
    wireless = (port / "wireless").exists() or (port / "phy80211").exists()
    return (port / "device").exists() and _number(port / "type") == _ARPHRD_ETHER and not wireless


def _loads(root: Path) -> tuple[float | None, float | None]:
    words = _text(root / "proc/loadavg").split()
    return (float(words[0]), float(words[1])) if len(words) > 1 else (None, None)


def _memory(root: Path) -> dict[str, int]:
    lines = [line.split() for line in _text(root / "proc/meminfo").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * _BYTES_PER_KIB for words in lines if len(words) > 1}


def _uptime_s(root: Path) -> float | None:
    words = _text(root / "proc/uptime").split()
    return float(words[0]) if words else None


def _disk_free(root: Path) -> tuple[int | None, int | None]:
    try:
        state = os.statvfs(root)
    except OSError:
        return None, None
    # Some file systems (btrfs, FAT) make inodes as they need them, and say that they have none at all.
    return state.f_bavail * state.f_frsize, state.f_favail if state.f_files else None


def _throttle_flags(root: Path) -> int | None:
    try:
        return int(_text(root / "sys/devices/platform/soc/soc:firmware/get_throttled"), 16)
    except ValueError:
        return None


def _voltage_alarm(root: Path) -> bool | None:
    """What mainline kernels offer of the above (driver raspberrypi-hwmon)."""
    sensors = [sensor for sensor in _glob(root, "sys/class/hwmon/hwmon*") if _text(sensor / "name") == "rpi_volt"]
    alarm = _number(sensors[0] / "in0_lcrit_alarm") if sensors else None
    return None if alarm is None else bool(alarm)


def _any_bit(flags: int | None, mask: int) -> bool | None:
    return None if flags is None else bool(flags & mask)


def _glob(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _text(path: Path) -> str:
    """A small file's content; nothing where it is absent or its driver refuses."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


TASK = TaskType(
    name="host",
    # 1: first version.
    version=1,
    parameters=HostParameters,
    values=HostValues,
    measure=measure,
    misfits=lambda _, peer: no_peer_misfits(peer, "remove the peer: `host` looks at the probe itself"),
    load=Load.LIGHT,
    time_out_s=lambda parameters: parameters.window_s + MARGIN_S,
    needs_link=False,
    needs_peer=False,
    baseline_fields=("temperature_celsius", "load_1m", "memory_available_bytes"),
)
