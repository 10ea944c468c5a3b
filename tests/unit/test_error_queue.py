from __future__ import annotations

import errno
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from probe.flows.error_queue import read_error

STAMP = (socket.SOL_SOCKET, 64, struct.pack("=qq", 1_704_067_200, 5))


def told_v4(origin: int = 2, kind: int = 11, code: int = 0, info: int = 0) -> tuple[int, int, bytes]:
    """What the kernel says by IP_RECVERR: the error, then who reported it."""
    error = struct.pack("=IBBBBII", errno.EHOSTUNREACH, origin, kind, code, 0, info, 0)
    return socket.IPPROTO_IP, 11, error + struct.pack("=HH4s8x", socket.AF_INET, 0, bytes((10, 0, 0, 1)))


def test_a_routers_report() -> None:
    """Who, what, when, and what it quotes."""
    error = read_error(b"quoted", [STAMP, told_v4(info=1400)])
    assert error is not None
    assert (error.icmp_version, error.icmp_type, error.icmp_code, error.info) == (4, 11, 0, 1400)
    assert (error.reporter, error.stamp_ns, error.quoted) == ("10.0.0.1", 1_704_067_200 * 10**9 + 5, b"quoted")
    assert error.as_error().errno == errno.EHOSTUNREACH


def test_a_report_by_ipv6() -> None:
    """The address stands at another place."""
    address = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    content = struct.pack("=IBBBBII", errno.EMSGSIZE, 3, 2, 0, 0, 1280, 0)
    content += struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address, 0)
    error = read_error(b"", [(socket.IPPROTO_IPV6, 25, content)])
    assert error is not None
    assert (error.icmp_version, error.icmp_type, error.info, error.reporter) == (6, 2, 1280, "2001:db8::1")
    assert error.stamp_ns is None


def test_our_own_kernels_word_is_told_apart() -> None:
    """A packet larger than the interface takes: nobody on the path has said so."""
    error = read_error(b"", [told_v4(origin=1)])
    assert error is not None
    assert (error.icmp_version, error.reporter) == (None, None)


def test_news_of_the_kernel_is_no_error() -> None:
    """Transmit stamps (4) and zero-copy completions (5) come by the same queue."""
    assert read_error(b"", [told_v4(origin=4)]) is None
    assert read_error(b"", [told_v4(origin=5)]) is None
    assert read_error(b"", [STAMP]) is None


@given(st.binary(max_size=64))
def test_a_message_cut_short_is_read_as_far_as_it_goes(content: bytes) -> None:
    """Whatever stands in it, reading it does not fail."""
    for level, kind in ((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)):
        error = read_error(b"", [(level, kind, content)])
        assert error is None or error.reporter is None or len(content) >= 24
