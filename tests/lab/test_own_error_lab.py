"""The lab measures its own errors: by the kernel's stamps, at both ends of the line."""

from __future__ import annotations

import pytest

from fleet_controller.lab import own_error


def test_the_line_says_what_it_adds_to_the_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, with a sane figure: a fraction of a millisecond about the configured delay."""
    monkeypatch.setattr(own_error, "_PACKETS", 50)
    errors = own_error.measure_delays(busy_cores=0)
    assert [one.direction for one in errors] == ["download", "upload"]
    for one in errors:
        assert one.packets == 50
        assert one.p1_s <= one.median_s <= one.p99_s
        assert abs(one.median_s) < 0.0005


def test_the_line_says_how_exact_its_rate_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full packets of 20 Mbit/s arrive at 20 Mbit/s: the clock that is used for it is the kernel's, at the end."""
    monkeypatch.setattr(own_error, "_RATES_BPS", (20_000_000,))
    (error,) = own_error.measure_rates()
    assert error.rate_bps == 20_000_000
    assert error.error_ratio == pytest.approx(0, abs=0.01)
