"""Whether the host was fit: what two readings say."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.config import LinkConfig
from probe.links import Link, LinkCounters
from probe.measure import fitness
from probe.measure.fitness import Reading, judge, read


def reading(
    *cores: tuple[int, int], throttled: bool | None = None, received: int | None = None, sent: int = 0
) -> Reading:
    """One of a host in this state."""
    return Reading(
        cores=cores,
        throttled=throttled,
        counters=None if received is None else LinkCounters(received_bytes=received, sent_bytes=sent),
    )


def test_the_busiest_core_counts() -> None:
    """One busy core of four makes an unfit host, whatever the others do."""
    before = reading((100, 1000), (0, 1000), (0, 1000), (0, 1000))
    after = reading((190, 1100), (10, 1100), (0, 1100), (0, 1100))
    assert judge(before, after, None, payload_bytes=0, own_load=False).busiest_core_ratio == 0.9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (reading((5, 10)), reading((5, 10))),
        (reading((5, 10)), reading((5, 10), (5, 10))),
        (reading(), reading()),
    ],
)
def test_no_figure_is_absent(before: Reading, after: Reading) -> None:
    """Too short a time, a core that came, a host without figures: absent, not zero."""
    judged = judge(before, after, None, payload_bytes=0, own_load=False)
    assert judged.busiest_core_ratio is None
    assert judged.throttled is None
    assert judged.cross_traffic_bytes is None
    assert judged.nic_speed_bps is None


def test_throttled_before_or_after_counts() -> None:
    """A host that was throttled at either end was not fit."""
    judged = judge(reading(throttled=True), reading(throttled=False), None, payload_bytes=0, own_load=True)
    assert judged.throttled
    assert judged.own_load
    assert (
        judge(reading(throttled=False), reading(throttled=False), None, payload_bytes=0, own_load=False).throttled
        is False
    )


@pytest.mark.parametrize(
    ("moved_bytes", "payload_bytes", "expected"),
    [
        # 100 MB in packets of 1448 bytes with 66 of headers, and an acknowledgement of 66 for each second one.
        (int(100e6 * (1 + 66 / 1448 + 33 / 1448)), 100_000_000, 0),
        # 1000 STAMP packets of 44 bytes both ways, 62 of headers each (Ethernet, IPv6, UDP).
        (2000 * (44 + 62), 2000 * 44, 0),
        # A household film beside a small test.
        (50_000_000 + 2000 * (44 + 62), 2000 * 44, 50_000_000),
        (0, 1000, 0),
    ],
)
def test_cross_traffic_is_what_others_moved(moved_bytes: int, payload_bytes: int, expected: int) -> None:
    """The measurement's own bytes and headers are no cross traffic; what others moved is, within 200 kB."""
    before, after = reading(received=10, sent=10), reading(received=10 + moved_bytes, sent=10)
    cross = judge(before, after, None, payload_bytes=payload_bytes, own_load=False).cross_traffic_bytes
    assert cross is not None
    assert 0 <= expected - cross <= 200_000


def test_an_interface_that_came_back_has_no_figure() -> None:
    """Counters that went back to zero say nothing."""
    judged = judge(reading(received=500), reading(received=3), None, payload_bytes=0, own_load=False)
    assert judged.cross_traffic_bytes is None


def test_this_host_can_be_read() -> None:
    """The real files give a figure for each core, and none for the traffic of the loopback."""
    own = read(Link(LinkConfig(name="fixed0", interface="lo")))
    assert len(own.cores) == Path("/proc/stat").read_text(encoding="ascii").count("\ncpu")
    assert all(0 <= busy <= total for busy, total in own.cores)
    assert own.counters is None


def test_a_pi_tells_its_throttling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The firmware's bits of this moment count, those since boot do not; rubbish is no figure."""
    file = tmp_path / "get_throttled"
    monkeypatch.setattr(fitness, "_HAS_FIRMWARE", True)
    monkeypatch.setattr(fitness, "_THROTTLED", str(file))
    for text, expected in (("50005\n", True), ("50000\n", False), ("0", False), ("rubbish", None)):
        file.write_text(text, encoding="ascii")
        assert read(None).throttled is expected
    file.unlink()
    assert read(None).throttled is None
