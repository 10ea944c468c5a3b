"""Capacity on the lines that are hard to measure: far, bloated, policed, poor; and with a quarter of the bytes."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_controller.lab.profile import Direction
from fleet_controller.lab.site import Site


def values_of(site: Site, **parameters: Any) -> dict[str, Any]:
    """One measurement that must give values."""
    result = site.run("capacity", parameters)
    assert result.values is not None, result
    return dict(result.values)


@pytest.mark.parametrize(
    ("profile", "direction"),
    [
        *(("satellite", "download"), ("dsl_bloat", "upload"), ("policed", "download"), ("4g_edge", "upload")),
        *(("ftth_shallow", "download"), ("ftth_shallow", "upload")),
    ],
)
def test_a_hard_line_is_measured_at_its_rate(profile: str, direction: Direction) -> None:
    """Within 5 %: 600 ms away, a second of buffer, a token bucket's burst, losses in bursts, hardly any buffer.

    The last one shows whether what comes is confirmed as it comes: who leaves it in the socket until the next look gets
    it in bursts that such a line drops.
    """
    with Site(profile) as site:
        values = values_of(site, direction=direction)
        expected_bps = site.profile.expected_capacity_bps(direction)
    assert values["capacity_bps"] == pytest.approx(expected_bps, rel=0.05)
    assert not values["lower_bound"]


def test_one_stream_that_uploads_is_filled_up_in_time() -> None:
    """Within 5 % at 500 Mbit/s: what waits to be sent lasts longer than one look fills it up for."""
    with Site("ftth_1000_500") as site:
        values = values_of(site, direction="upload", streams_max=1)
        expected_bps = site.profile.expected_capacity_bps("upload")
    assert values["streams"] == 1
    assert values["capacity_bps"] == pytest.approx(expected_bps, rel=0.05)


@pytest.mark.parametrize(("profile", "direction"), [("4g_edge", "download"), ("4g_good", "upload")])
def test_a_quarter_of_the_bytes_is_enough(profile: str, direction: Direction) -> None:
    """A cap of what 2.5 s at the line's rate would bring: within 8 %, and never more than that."""
    with Site(profile) as site:
        expected_bps = site.profile.expected_capacity_bps(direction)
        max_bytes = int(expected_bps / 8 * 2.5)
        values = values_of(site, direction=direction, mode="capped", max_bytes=max_bytes)
    assert values["capacity_bps"] == pytest.approx(expected_bps, rel=0.08)
    assert values["transferred_bytes"] <= max_bytes


def test_a_cap_that_a_far_line_was_never_full_for_tells_its_rate() -> None:
    """600 ms away, a quarter of the bytes: what is no lower bound is within 8 %, as one of three runs is at least."""
    with Site("satellite") as site:
        expected_bps = site.profile.expected_capacity_bps("download")
        max_bytes = int(expected_bps / 8 * 2.5)
        runs = [values_of(site, direction="download", mode="capped", max_bytes=max_bytes) for _ in range(3)]
    figures_bps = [values["capacity_bps"] for values in runs if not values["lower_bound"]]
    assert figures_bps
    assert figures_bps == pytest.approx([expected_bps] * len(figures_bps), rel=0.08)
