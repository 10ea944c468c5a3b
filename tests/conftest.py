"""What every suite shares: the real broker and the real database on free ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.services import Influxd, Mosquitto


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A private mosquitto with production's durability settings."""
    with Mosquitto(tmp_path / "mosquitto") as service:
        yield service


@pytest.fixture
def influxd(tmp_path: Path) -> Iterator[Influxd]:
    """A private InfluxDB 1.6.7, empty."""
    with Influxd(tmp_path / "influxd") as service:
        yield service
