"""When packets entered a TUN device, told long after it by the kernel's stamps."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fleet_controller.lab import entry_stamps
from fleet_controller.lab.emulator import End, configure, open_device
from fleet_controller.lab.entry_stamps import EntryStamps
from fleet_controller.lab.namespaces import entered, namespace, run_ip

NEAR_V4, FAR_V4 = "198.18.0.2", "198.18.0.1"  # RFC 2544's benchmarking range
NEAR_V6, FAR_V6 = "2001:db8::2", "2001:db8::1"
PORT = 7
LATE_S = 0.01
CLOCKS_S = 0.001  # the wall clock and the monotonic one are read one after the other


@dataclass
class Device:
    """A TUN device that nobody reads but the test."""

    end: End
    descriptor: int
    stamps: EntryStamps

    def connection(self, host: str, kind: socket.SocketKind) -> socket.socket:
        """A socket that sends to the device."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with entered(self.end.namespace):
            sock = socket.socket(family, kind)
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.connect_ex((host, PORT))
        return sock

    def frames(self) -> Iterator[tuple[bytes, int]]:
        """What waits in the device, and when it was read; without what the kernel says on its own."""
        while True:
            try:
                frame = os.read(self.descriptor, 70_000)
            except BlockingIOError:
                return
            if frame[10] >> 4 == 4 or frame[16] != socket.IPPROTO_ICMPV6:
                yield frame, time.monotonic_ns()


@pytest.fixture
def device() -> Iterator[Device]:
    """In a namespace of its own, up, its packets looked at."""
    with namespace("near") as near:
        end = End(near, "wan0", f"{NEAR_V4}/30", f"{NEAR_V6}/64")
        descriptor = open_device(end, offload=False)
        stamps = EntryStamps(near, "wan0")
        try:
            configure(end, 100_000_000)
            yield Device(end, descriptor, stamps)
        finally:
            stamps.close()
            os.close(descriptor)


def moments_s(device: Device) -> list[float | None]:
    """When each waiting packet entered, in order, by the monotonic clock; absent without a stamp."""
    found = [device.stamps.entered_ns(frame, read_ns) for frame, read_ns in device.frames()]
    return [None if entered_ns is None else entered_ns / 1e9 for entered_ns in found]


@pytest.fixture
def no_age_is_too_great(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may leave the test waiting for longer than the line ever does."""
    monkeypatch.setattr(entry_stamps, "_AGE_NS_MAX", 60_000_000_000)


@pytest.mark.usefixtures("no_age_is_too_great")
@pytest.mark.parametrize("host", [FAR_V4, FAR_V6])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_packet_that_waited_is_known_to_have_come_before(device: Device, host: str, kind: socket.SocketKind) -> None:
    """Datagram and SYN, IPv4 and IPv6, read 10 ms after they were sent: the stamp is of the sending."""
    before_s = time.monotonic()
    with device.connection(host, kind) as sock:
        if kind is socket.SOCK_DGRAM:
            sock.send(b"short")
        after_s = time.monotonic()
        time.sleep(LATE_S)
        (moment_s,) = moments_s(device)
    assert moment_s is not None
    assert before_s - CLOCKS_S <= moment_s <= after_s + CLOCKS_S


@pytest.mark.usefixtures("no_age_is_too_great")
def test_each_packet_has_its_own_stamp(device: Device) -> None:
    """Ten of them, 3 ms apart, read together; a long one among them has none, and does no harm."""
    sent_s = []
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        for number in range(10):
            sent_s.append(time.monotonic())
            sock.send(bytes(1000) if number == 4 else bytes([number]))
            time.sleep(0.003)
        sent_s.append(time.monotonic())
        moments = moments_s(device)
    assert [moment_s is None for moment_s in moments] == [number == 4 for number in range(10)]
    for moment_s, (from_s, to_s) in zip(moments, itertools.pairwise(sent_s), strict=True):
        assert moment_s is None or from_s - CLOCKS_S <= moment_s <= to_s + CLOCKS_S


def test_a_packet_that_never_came_by_the_device_has_none(device: Device) -> None:
    """Nothing like it among the copies: no stamp of another packet is taken for its own."""
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        sock.send(b"one")
        ((frame, read_ns),) = device.frames()
        other = frame[:-1] + b"?"
        assert device.stamps.entered_ns(other, read_ns) is None


@pytest.mark.usefixtures("no_age_is_too_great")
def test_masses_of_long_packets_leave_room_for_the_stamps_of_short_ones(device: Device) -> None:
    """More than the socket would hold."""
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        for _ in range(4000):
            sock.send(bytes(1000))
        sock.send(b"short")
        *long, short = moments_s(device)
    assert long == [None] * 4000
    assert short is not None


@pytest.mark.usefixtures("no_age_is_too_great")
def test_what_arrives_at_the_device_is_not_looked_at(device: Device) -> None:
    """The line itself writes that."""
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        sock.send(b"there")
        ((frame, read_ns),) = device.frames()
    assert device.stamps.entered_ns(frame, read_ns) is not None
    os.write(device.descriptor, frame)
    assert device.stamps.entered_ns(frame, time.monotonic_ns()) is None


@pytest.mark.usefixtures("no_age_is_too_great")
def test_a_stamp_of_a_clock_that_was_stepped_is_not_used(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward by two minutes and back by two: neither is how long a packet waited."""
    real = time.time_ns
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        for step_ns in (120_000_000_000, -120_000_000_000):
            sock.send(b"short")
            monkeypatch.setattr(time, "time_ns", lambda step_ns=step_ns: real() + step_ns)
            assert moments_s(device) == [None]
            monkeypatch.setattr(time, "time_ns", real)
        sock.send(b"short")
        (moment_s,) = moments_s(device)
        assert moment_s is not None


@pytest.mark.usefixtures("no_age_is_too_great")
def test_a_device_that_was_down_is_looked_at_again(device: Device) -> None:
    """As a line that vanishes and comes back."""
    for state in ("down", "up"):
        run_ip("-n", device.end.namespace, "link", "set", "dev", "wan0", state)
    with device.connection(FAR_V4, socket.SOCK_DGRAM) as sock:
        sock.send(b"short")
        (moment_s,) = moments_s(device)
    assert moment_s is not None


def test_a_device_that_is_not_there_is_an_error() -> None:
    """Said when the line is built, not when the first packet comes."""
    with namespace("near") as near, pytest.raises(OSError, match="No such device"):
        EntryStamps(near, "wan0")
