"""STAMP against another implementation: scapy's layers of RFC 8762, both ways, byte by byte and over sockets.

Scapy has the unauthenticated mode alone; of the authenticated one the golden bytes are in test_stamp_authenticated.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from scapy.contrib.stamp import (  # type: ignore[import-untyped,unused-ignore]
    ErrorEstimate,
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
)

from probe.clock import SystemClock
from probe.config import LinkConfig
from probe.flows.echo.stamp_packets import NTP_UNIX_OFFSET_S, ReflectorPacket, SenderPacket, ntp_of
from probe.links import Link
from probe.messages import Peer
from probe.peer.reflector import Reflector
from probe.tasks.base import Context
from probe.tasks.round_trip import RoundTripParameters, measure

LO = Link(LinkConfig(name="lo", interface="lo", source_address="127.0.0.1"))
HALF_PAST_NS = 1_704_067_200_500_000_000
HALF_PAST_NTP_S = 1_704_067_200.5 + NTP_UNIX_OFFSET_S


def estimate(scale: int, multiplier: int, *, synchronised: bool) -> Any:
    """Scapy's error estimate."""
    return ErrorEstimate(S=int(synchronised), Z=0, scale=scale, multiplier=multiplier)


def test_sender_packets_are_the_same_bytes() -> None:
    """One packet, written by scapy and by us: the same 44 bytes; and scapy reads from ours what we wrote."""
    theirs = STAMPSessionSenderTestUnauthenticated(
        seq=41, ts=HALF_PAST_NTP_S, err_estimate=estimate(12, 200, synchronised=True), ssid=7
    )
    ours = SenderPacket(41, ntp_of(HALF_PAST_NS), 0x8CC8, 7)
    assert ours.encode() == bytes(theirs)
    read = STAMPSessionSenderTestUnauthenticated(ours.encode())
    assert (read.seq, read.ts, read.ssid) == (41, HALF_PAST_NTP_S, 7)
    assert (read.err_estimate.S, read.err_estimate.Z, read.err_estimate.scale) == (1, 0, 12)


def test_reflector_packets_are_the_same_bytes() -> None:
    """As above, for the answer."""
    theirs = STAMPSessionReflectorTestUnauthenticated(
        seq=3,
        ts=HALF_PAST_NTP_S + 0.5,
        err_estimate=estimate(1, 1, synchronised=False),
        ssid=7,
        ts_rx=HALF_PAST_NTP_S + 0.25,
        seq_sender=41,
        ts_sender=HALF_PAST_NTP_S,
        err_estimate_sender=estimate(12, 200, synchronised=True),
        ttl_sender=63,
    )
    times = [ntp_of(HALF_PAST_NS + later_ns) for later_ns in (500_000_000, 250_000_000, 0)]
    ours = ReflectorPacket(3, times[0], 0x0101, 7, times[1], 41, times[2], 0x8CC8, 63)
    assert ours.encode() == bytes(theirs)
    assert ReflectorPacket.decode(bytes(theirs)) == ours


async def test_scapys_sender_and_our_reflector() -> None:
    """Three packets made by scapy are answered, and scapy reads the answers."""
    loop = asyncio.get_running_loop()
    reflector = Reflector()
    await reflector.start("127.0.0.1", 0)
    answers = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        sock.connect(("127.0.0.1", reflector.port))
        before_s = time.time() + NTP_UNIX_OFFSET_S
        for number in (5, 6, 9):
            asked = STAMPSessionSenderTestUnauthenticated(seq=number, ts=HALF_PAST_NTP_S, ssid=77)
            await loop.sock_sendall(sock, bytes(asked))
            async with asyncio.timeout(5):
                answers.append(STAMPSessionReflectorTestUnauthenticated(await loop.sock_recv(sock, 9000)))
        after_s = time.time() + NTP_UNIX_OFFSET_S
    await reflector.stop()
    assert [(one.seq, one.seq_sender) for one in answers] == [(0, 5), (1, 6), (2, 9)]
    for one in answers:
        assert (one.ssid, one.ts_sender, one.ttl_sender, one.mbz1, one.mbz2) == (77, HALF_PAST_NTP_S, 64, 0, 0)
        # A microsecond is what a float keeps of a time since 1900.
        assert before_s - 1e-6 <= one.ts_rx <= one.ts <= after_s + 1e-6
        assert one.err_estimate.multiplier
        assert one.err_estimate_sender.multiplier == 1


async def test_our_sender_and_scapys_reflector() -> None:
    """A reflector of scapy's packets answers each but the third: the loss, its way and the delay come out right."""
    count = 0

    def answer(sock: socket.socket) -> None:
        nonlocal count
        datagram, source = sock.recvfrom(2048)
        received_s = time.time() + NTP_UNIX_OFFSET_S
        asked = STAMPSessionSenderTestUnauthenticated(datagram)
        reply = STAMPSessionReflectorTestUnauthenticated(
            seq=count,
            err_estimate=estimate(0, 1, synchronised=False),
            ssid=asked.ssid,
            ts_rx=received_s,
            seq_sender=asked.seq,
            ts_sender=0,
            err_estimate_sender=asked.err_estimate,
            ttl_sender=64,
            ts=time.time() + NTP_UNIX_OFFSET_S,
        )
        count += 1
        # Scapy keeps times as floats; what it repeats of ours has to be the bits that came.
        raw = bytearray(bytes(reply))
        raw[28:36] = datagram[4:12]
        if asked.seq != 3:
            sock.sendto(bytes(raw), source)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)  # noqa: FBT003 - the socket API takes it so
        asyncio.get_running_loop().add_reader(sock, answer, sock)
        peer = Peer(name="scapy", host="127.0.0.1", stamp_port=sock.getsockname()[1])
        context = Context(clock=SystemClock(), time_out_s=30, link=LO, peer=peer)
        values = await measure(context, RoundTripParameters(packets=6, interval_s=0.05, time_out_s=0.5))
        asyncio.get_running_loop().remove_reader(sock)
    assert (values.packets_sent, values.packets_received) == (6, 5)
    assert (values.packets_lost_forward, values.packets_lost_backward, values.loss_bursts) == (0, 1, 1)
    assert values.delay_median_s == pytest.approx(0.0, abs=0.01)
