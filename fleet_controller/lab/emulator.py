"""An access line in user space: rate, delay, jitter, loss and a buffer between two network namespaces.

Two TUN devices, one at each end, and a process that carries packets between them as the line would: a buffer with
tail drop, a serialiser of an exact rate, random loss, a delay and jitter that keeps the order. It needs root and
/dev/net/tun, and no kernel module. Rates are of the IP layer (RFC 5136): an IP packet of n bytes takes 8 n / rate.

    python -m fleet_controller.lab.emulator '{"profile": {…}, "near": {…}, "far": {…}, "seed": 1}'

The devices belong to the process: when it ends, they are gone. It ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from fleet_controller.lab.entry_stamps import EntryStamps
from fleet_controller.lab.line import Line, LineCounters, line_pair, seed_of
from fleet_controller.lab.namespaces import entered, run_ip, use_ipv6
from fleet_controller.lab.packets import VNET_HEADER_BYTES, ip_version, largest_packet_bytes, too_big
from fleet_controller.lab.profile import ETHERNET_MTU_BYTES, Direction, LinkProfile
from fleet_controller.lab.punctual import READING_NS, Patience, be_punctual
from fleet_controller.lab.rates import least_ratio, mean_bps, rate_plan
from fleet_controller.lab.services import Service

_TUNSETIFF = 0x400454CA  # linux/if_tun.h, this and the next six
_TUNSETOFFLOAD = 0x400454D0
_IFF_TUN_NO_PI_VNET_HDR = 0x0001 | 0x1000 | 0x4000
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
# Below this rate a super-packet of a few segments would hold the line for so long that it shows in the delay.
_OFFLOAD_BPS_MIN = 50_000_000
# The longest that one super-packet may hold the line: what a probe packet can wait behind it.
_SUPER_PACKET_S_MAX = 0.001
_GSO_BYTES_MAX = 65_536  # the kernel's own limit of an IPv4 super-packet
_FRAME_BYTES_MAX = _GSO_BYTES_MAX + VNET_HEADER_BYTES
# Packets taken from one end before the other has its turn.
_BATCH = 64
# The device's own queue only bridges the time until the next turn; a drop there would be an unplanned loss.
_DEVICE_QUEUE_PACKETS = 10_000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None, use_errno=True)
READY = "the line is up"
_COUNTED = ("upload", "download")  # in the order in which the process prints them


@dataclass(frozen=True, slots=True)
class End:
    """Where one side of the line is: the device that appears in a namespace, its addresses with prefix length.

    The IPv6 address, where there is one, makes the namespace use IPv6 on this device.
    """

    namespace: str
    device: str
    address: str | None
    address_v6: str | None = None


@dataclass(slots=True)
class Way:
    """One direction of the line between its two devices. `back` is the other one: ICMP errors return over it.

    `stamps` are those of the source device.
    """

    line: Line
    back: Line
    profile: LinkProfile
    source: int
    sink: int
    stamps: EntryStamps
    write_errors: int = 0
    _refused_versions: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Know what vanishes."""
        families = ((4, self.profile.ipv4), (6, self.profile.ipv6))
        self._refused_versions = frozenset(version for version, state in families if state != "works")

    def take(self, now_ns: int) -> None:
        """Read what the source device has, at most one batch."""
        for _ in range(_BATCH):
            try:
                frame = os.read(self.source, _FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            if self._admits(frame, now_ns):
                self.line.offer(frame, self._entered_ns(frame, now_ns))

    def _entered_ns(self, frame: bytes, now_ns: int) -> int:
        """When a frame that was read now entered the source device, or seems to have."""
        entered_ns = self.stamps.entered_ns(frame, now_ns)
        # Every packet is delivered earlier by what reading usually takes; one whose moment is known must not be.
        return now_ns if entered_ns is None else entered_ns + READING_NS

    def _admits(self, frame: bytes, now_ns: int) -> bool:
        """Whether the line carries such a packet at all. Fragments are not made: too long is too long."""
        profile = self.profile
        if self._refused_versions and ip_version(frame) in self._refused_versions:
            self.line.refuse(frame)
            return False
        if profile.path_mtu_bytes < ETHERNET_MTU_BYTES and largest_packet_bytes(frame) > profile.path_mtu_bytes:
            self.line.refuse(frame)
            reply = too_big(frame, profile.path_mtu_bytes) if profile.too_big == "icmp" else None
            if reply is not None:
                self.back.offer(reply, now_ns)
            return False
        return True

    def give(self, until_ns: int) -> None:
        """Write what is due to the sink device. A device that is down loses it, as an unplugged modem would."""
        for frame in self.line.due(until_ns):
            try:
                os.write(self.sink, frame)
            except OSError:
                self.write_errors += 1


def carry(ways: Sequence[Way]) -> None:
    """Carry packets for ever."""
    by_source = {way.source: way for way in ways}
    sources = list(by_source)
    patience = Patience(time.monotonic_ns())
    while True:
        now_ns = time.monotonic_ns()
        for way in ways:
            way.give(now_ns + patience.early_ns())
        dues = [due for way in ways if (due := way.line.next_due_ns()) is not None]
        wait_ns = patience.wait_ns(min(dues, default=None), time.monotonic_ns())
        readable, _, _ = select.select(sources, (), (), None if wait_ns is None else wait_ns / 1e9)
        now_ns = time.monotonic_ns()
        for source in readable:
            by_source[source].take(now_ns)


def open_device(end: End, *, offload: bool) -> int:
    """Make the TUN device of one end, with a header that tells of super-packets; gives its descriptor.

    Raises:
        OSError: no such namespace, no /dev/net/tun, or not allowed.
    """
    with entered(end.namespace):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", end.device.encode(), _IFF_TUN_NO_PI_VNET_HDR))
    # Checksums are left to the far end's kernel, which accepts the packets unverified: the line makes no bit errors.
    features = _TUN_F_CSUM | (_TUN_F_TSO4 | _TUN_F_TSO6 if offload else 0)
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, features)
    return descriptor


def configure(end: End, rate_bps: int) -> None:
    """Give the device its addresses and bring it up. Its super-packets are at most 1 ms long at `rate_bps`."""
    gso_bytes = min(max(int(rate_bps * _SUPER_PACKET_S_MAX / 8), 2 * 1500), _GSO_BYTES_MAX)
    device = ("-n", end.namespace, "link", "set", "dev", end.device)
    run_ip(*device, "txqueuelen", str(_DEVICE_QUEUE_PACKETS), "gso_max_size", str(gso_bytes))
    assign_addresses(end)
    run_ip(*device, "up")


def assign_addresses(end: End) -> None:
    """Give a device its addresses."""
    if end.address is not None:
        run_ip("-n", end.namespace, "address", "add", end.address, "dev", end.device)
    if end.address_v6 is not None:
        use_ipv6(end.namespace, end.device)
        run_ip("-n", end.namespace, "address", "add", end.address_v6, "dev", end.device, "nodad")


class EmulatedLink(Service):
    """The emulating child process, with its devices up and addressed once it has started. The probe is at `near`."""

    def __init__(self, directory: Path, profile: LinkProfile, near: End, far: End, *, seed: int = 1) -> None:
        self.profile, self.near, self.far = profile, near, far
        self.start_ns = 0
        self._seed = seed
        settings = {"near": asdict(near), "far": asdict(far), "seed": seed}
        settings["profile"] = msgspec.to_builtins(profile)
        command = [
            sys.executable,
            "-m",
            "fleet_controller.lab.emulator",
            json.dumps(settings | {"parent": os.getpid()}),
        ]
        super().__init__(directory, command, self._is_ready)
        self._log_start_bytes = 0

    def start(self) -> Self:
        """Start it, with empty buffers and new devices.

        Raises:
            ServiceError: no such namespace, a device of this name exists, or not allowed; has its words.
        """
        self._log_start_bytes = self.log_file.stat().st_size if self.log_file.exists() else 0
        return super().start()

    def counters(self) -> dict[str, LineCounters]:
        """What became of the packets of the last run, by direction. Only after `stop`."""
        lines = self.log_file.read_text(encoding="utf-8").splitlines()
        return {name: LineCounters(**json.loads(line)) for name, line in zip(_COUNTED, lines[-2:], strict=True)}

    def mean_rate_bps(self, direction: Direction, from_ns: int, to_ns: int) -> float:
        """The time-average of the IP-layer rate that it enforced between two moments of CLOCK_MONOTONIC.

        Raises:
            ValueError: the interval is empty or begins before the line was up.
        """
        plan = rate_plan(self.profile, direction, seed_of(direction, self._seed))
        if plan is None:
            return float(self.profile.rate_bps(direction))
        return mean_bps(plan, from_ns - self.start_ns, to_ns - self.start_ns)

    def _is_ready(self) -> bool:
        said = self.log_file.read_bytes()[self._log_start_bytes :]
        if READY.encode() not in said:
            return False
        ready = json.loads(next(line for line in said.splitlines() if READY.encode() in line))
        self.start_ns = int(ready["start_ns"])
        return True


def main(arguments: Sequence[str]) -> int:
    """Set the line up, say so on standard output, and carry packets until a signal; then print the counters."""
    settings: dict[str, Any] = json.loads(arguments[0])
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        return 1  # the parent died before the kernel knew that we go with it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started us, and it ends us
    start_ns = time.monotonic_ns()
    profile = msgspec.convert(settings["profile"], LinkProfile)
    ways = _set_up(profile, End(**settings["near"]), End(**settings["far"]), settings["seed"], start_ns)
    ready = {"event": READY, "realtime": be_punctual(), "start_ns": start_ns}
    print(json.dumps(ready), flush=True)  # noqa: T201 - the parent waits for it
    with contextlib.suppress(SystemExit):
        carry(ways)
    for way in ways:
        print(json.dumps(asdict(way.line.counters)), flush=True)  # noqa: T201 - `EmulatedLink.counters` reads it
    return 0


def _set_up(profile: LinkProfile, near: End, far: End, seed: int, start_ns: int) -> tuple[Way, Way]:
    up_bps, down_bps = _least_bps(profile, "upload"), _least_bps(profile, "download")
    near_device = open_device(near, offload=up_bps >= _OFFLOAD_BPS_MIN)
    far_device = open_device(far, offload=down_bps >= _OFFLOAD_BPS_MIN)
    configure(near, up_bps)
    configure(far, down_bps)
    upload, download = line_pair(profile, seed, start_ns)
    return (
        Way(upload, download, profile, near_device, far_device, EntryStamps(near.namespace, near.device)),
        Way(download, upload, profile, far_device, near_device, EntryStamps(far.namespace, far.device)),
    )


def _least_bps(profile: LinkProfile, direction: Direction) -> int:
    """The lowest rate that a direction may come to."""
    return round(profile.rate_bps(direction) * least_ratio(profile))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
