"""What others moved over a link, told from what the probe moved itself."""

from __future__ import annotations

import pytest

from probe.measure.cross_traffic import HEADER_BYTES_MAX, LinkHistory, header_bytes_of, moved_between, own_bytes
from probe.measure.fitness import Begun, Measured, judge
from probe.measure.host_readings import Reading, Traffic, read
from probe.tasks.base import Load, Usage

S = 1_000_000_000
V4_BYTES = 14 + 20 + 32


def moved(received_bytes: int, received_packets: int, sent_bytes: int = 0, sent_packets: int = 0) -> Traffic:
    """What passed the interface."""
    return Traffic(received_bytes, received_packets, sent_bytes, sent_packets)


def cross_bytes(traffic: Traffic, payload_bytes: int, header_bytes: int = V4_BYTES) -> int | None:
    """What a result would say."""
    measured = Measured(Load.LIGHT, None, Usage(received_bytes=payload_bytes), header_bytes=header_bytes)
    begun = Begun(Reading(0, traffic=Traffic(0, 0, 0, 0)), None)
    return judge(begun, Reading(S, traffic=traffic), measured).cross_traffic_bytes


SEGMENTS = 100_000_000 // 1448
BULK = moved(SEGMENTS * (1448 + 66), SEGMENTS, SEGMENTS // 2 * 66, SEGMENTS // 2)
# A thousand STAMP packets of 44 bytes each way, with 42 of headers (Ethernet, IPv4, UDP).
TRAIN = moved(1000 * 86, 1000, 1000 * 86, 1000)
# The same bytes as the kernel counts them on a virtual interface: super-packets of 64 KiB.
SUPER_PACKETS = moved(100_000_000 + 1600 * 66, 1600, 400 * 66, 400)


@pytest.mark.parametrize(
    ("traffic", "payload_bytes"),
    [(BULK, 100_000_000), (TRAIN, 88_000), (SUPER_PACKETS, 100_000_000), (moved(0, 0), 1000)],
    ids=["bulk", "train", "super-packets", "nothing"],
)
def test_the_own_traffic_is_no_cross_traffic(traffic: Traffic, payload_bytes: int) -> None:
    """Payload and headers of the measurement itself, however the interface counts its packets."""
    assert cross_bytes(traffic, payload_bytes) == 0


def test_a_film_beside_a_train_is_seen() -> None:
    """10 MB of others beside a train of small packets: found to 6 %, its headers, where 200 kB used to hide."""
    film_packets = 10_000_000 // 1448
    both = moved(1000 * 86 + film_packets * 1514, 1000 + film_packets, 1000 * 86, 1000)
    assert cross_bytes(both, 88_000) == pytest.approx(10_000_000, rel=0.01)


def test_a_short_page_beside_ten_packets_is_seen() -> None:
    """30 kB of others beside ten packets are more than nothing."""
    both = moved(10 * 86 + 21 * 1514, 31, 10 * 86, 10)
    assert cross_bytes(both, 880) == pytest.approx(30_000, rel=0.1)


def test_a_film_beside_a_bulk_transfer_is_seen() -> None:
    """Of others' 10 MB beside own 100 MB, 2 MB may hide: what is sent again, or under way at the end."""
    film_packets = 10_000_000 // 1448
    both = moved(BULK.received_bytes + film_packets * 1514, SEGMENTS + film_packets, SEGMENTS // 2 * 66, SEGMENTS // 2)
    cross = cross_bytes(both, 100_000_000)
    assert cross is not None
    assert 7_900_000 <= cross <= 10_000_000


def test_an_interface_that_came_back_has_no_figure() -> None:
    """Counters that went back to zero say nothing, and neither does an interface that is gone."""
    assert moved_between(moved(500, 5), moved(3, 1)) is None
    assert moved_between(moved(500, 5), None) is None


def test_the_own_is_never_more_than_everything() -> None:
    """A task that counts more than passed, as it does when the link was lost, leaves nothing negative."""
    assert own_bytes(moved(1000, 10), 50_000, V4_BYTES) == 1000


def test_headers_are_those_of_the_interface() -> None:
    """Where the kind of an interface cannot be read, it is taken for Ethernet; an unknown IP version for IPv6."""
    assert header_bytes_of("absent0", 4) == V4_BYTES
    assert header_bytes_of("absent0", 0) == HEADER_BYTES_MAX == V4_BYTES + 20


def test_traffic_of_a_real_interface_is_read() -> None:
    """One line of /proc/net/dev; an interface that is absent has none."""
    own = read("absent0")
    assert own.traffic is None


class TestHistory:
    """The rate of others shortly before."""

    def test_a_first_measurement_knows_nothing(self) -> None:
        """Without an earlier reading there is no rate; nor after less than a second."""
        history = LinkHistory()
        assert history.rate_before_bps(S, moved(0, 0)) is None
        history.remember(S, moved(0, 0))
        assert history.rate_before_bps(S + S // 2, moved(1000, 1)) is None

    def test_the_rate_is_that_of_others(self) -> None:
        """1.25 MB in 10 s, of which 250 kB were this probe's own: 0.8 Mbit/s."""
        history = LinkHistory()
        history.remember(0, moved(0, 0))
        history.add_own(250_000)
        assert history.rate_before_bps(10 * S, moved(1_250_000, 900)) == pytest.approx(0.8e6)

    def test_who_comes_right_after_has_the_time_before(self) -> None:
        """The second of two measurements in a row looks back beyond the first one's mark."""
        history = LinkHistory()
        history.remember(0, moved(0, 0))
        history.remember(10 * S, moved(1_250_000, 900))
        assert history.rate_before_bps(10 * S + S // 100, moved(1_250_000, 900)) == pytest.approx(1e6, rel=0.01)

    def test_measurements_without_a_pause_do_not_starve_it(self) -> None:
        """A mark every 20 ms: the rate is still that of a recent time."""
        history = LinkHistory()
        for step in range(1, 50 * 400):
            history.remember(step * S // 50, moved(step * 2500, step))
        assert history.rate_before_bps(400 * S, moved(50_000_000, 20_000)) == pytest.approx(1e6, rel=0.1)

    def test_long_ago_is_not_before(self) -> None:
        """A reading of over five minutes ago says nothing of now."""
        history = LinkHistory()
        history.remember(0, moved(0, 0))
        assert history.rate_before_bps(301 * S, moved(1_000_000, 900)) is None

    def test_the_rest_of_a_bulk_transfer_is_nobody_elses(self) -> None:
        """What the line's buffer still holds when a transfer ends is not counted: the history starts after it."""
        history = LinkHistory()
        history.remember(0, moved(0, 0))
        history.forget(10 * S)
        history.remember(11 * S, moved(1_000_000, 900))
        assert history.rate_before_bps(14 * S, moved(9_000_000, 9000)) is None
        history.remember(14 * S, moved(9_000_000, 9000))
        assert history.rate_before_bps(16 * S, moved(9_000_000, 9000)) == 0

    def test_an_interface_that_came_back_starts_anew(self) -> None:
        """Counters at zero again: no rate, and the next one is right."""
        history = LinkHistory()
        history.remember(0, moved(5_000_000, 900))
        assert history.rate_before_bps(2 * S, moved(100, 1)) is None
        history.remember(2 * S, moved(100, 1))
        assert history.rate_before_bps(4 * S, moved(250_100, 1)) == pytest.approx(1e6)
