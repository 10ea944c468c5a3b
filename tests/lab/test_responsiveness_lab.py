"""Responsiveness on lines whose buffers are known: what the instrument says is what the buffer holds."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_controller.lab.site import Site


def measured(profile: str, direction: str) -> dict[str, Any]:
    """The values of one measurement."""
    with Site(profile) as site:
        result = site.run("responsiveness", {"direction": direction})
    assert result.values is not None, result
    return result.values


@pytest.mark.parametrize(
    ("profile", "direction", "idle_s", "full_s"),
    [
        ("ftth_300_300", "download", 0.006, 0.056),
        ("cable", "upload", 0.014, 0.264),
    ],
)
def test_a_full_buffer_is_seen_by_all_three_kinds_of_probes(
    profile: str, direction: str, idle_s: float, full_s: float
) -> None:
    """Packets of their own, new connections and the loaded ones agree on a buffer that is 60 % to all full.

    CUBIC keeps a tail-drop buffer between 70 % (its reduction after a loss, RFC 9438) and full; the streams that start
    one after the other reach a little below.
    """
    values = measured(profile, direction)
    assert values["delay_idle_median_s"] == pytest.approx(idle_s, abs=0.0015)
    least_s, most_s = idle_s + 0.6 * (full_s - idle_s), full_s * 1.05
    assert least_s < values["delay_loaded_median_s"] < most_s
    assert least_s < values["self_s"] < most_s
    assert least_s < values["tcp_s"] < most_s
    assert least_s < values["http_s"] < most_s
    assert 60 / most_s < values["rpm"] < 60 / least_s
    assert values["loaded_packets_received"] >= 10


def test_a_capacity_measurement_can_see_the_buffer_it_fills() -> None:
    """The same packets beside `capacity`: idle and loaded delay for no more bulk than it needs anyway."""
    with Site("ftth_300_300") as site:
        values = site.run("capacity", {"direction": "download", "loaded_delay": True}).values
        plain = site.run("capacity", {"direction": "download"}).values
    assert values is not None
    assert plain is not None
    assert values["delay_idle_median_s"] == pytest.approx(0.006, abs=0.0005)
    assert 0.006 + 0.5 * 0.05 < values["delay_loaded_median_s"] < 0.06
    assert values["loaded_packets_received"] >= 5
    assert values["capacity_bps"] == pytest.approx(plain["capacity_bps"], rel=0.02)
    assert "delay_loaded_median_s" not in plain


def test_a_managed_queue_stays_short() -> None:
    """CoDel (RFC 8289) keeps its queue near 5 ms: a fraction of the 500 ms that the same buffer could hold."""
    values = measured("dsl", "download")
    assert values["delay_loaded_median_s"] < 0.018 + 0.1
    assert values["rpm"] > 60 / 0.15
