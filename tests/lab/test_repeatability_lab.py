"""Two measurements of one line say the same: what they differ by is the instrument's, for the line is the same line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from fleet_controller.lab.profile import Direction
from fleet_controller.lab.site import Site

# A fixed line, and one that loses packets and jitters.
ROWS: Final[tuple[tuple[str, Direction], ...]] = (
    ("ftth_150_100", "download"),
    ("ftth_150_100", "upload"),
    ("4g_good", "download"),
)
DIFFERENCE_RATIO: Final = 0.02
# Below this a delay is as exact as the lab is.
DIFFERENCE_S: Final = 0.0001
SERIES: Final = {"packets": 100, "interval_s": 0.01}


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One line for all its measurements."""
    with Site(str(request.param)) as made:
        yield made


def twice(site: Site, task: str, parameters: dict[str, Any], name: str) -> tuple[float, float]:
    """A value of two measurements, one after the other."""
    first, second = (site.run(task, parameters) for _ in range(2))
    assert first.values is not None, first
    assert second.values is not None, second
    return first.values[name], second.values[name]


@pytest.mark.parametrize(("site", "direction"), ROWS, indirect=["site"])
def test_capacity_agrees_with_itself(site: Site, direction: Direction) -> None:
    """Two full measurements are within 2 %."""
    first_bps, second_bps = twice(site, "capacity", {"direction": direction, "mode": "full"}, "capacity_bps")
    assert second_bps == pytest.approx(first_bps, rel=DIFFERENCE_RATIO)


@pytest.mark.parametrize("site", ["ftth_150_100", "4g_good"], indirect=True)
def test_delay_agrees_with_itself(site: Site) -> None:
    """Two medians are within 2 % or 0.1 ms."""
    first_s, second_s = twice(site, "round_trip", SERIES, "delay_median_s")
    assert second_s == pytest.approx(first_s, rel=DIFFERENCE_RATIO, abs=DIFFERENCE_S)
