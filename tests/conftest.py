"""What every suite shares: the real broker and the real database on free ports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.lab.services import Influxd, Mosquitto

LAB = Path(__file__).parent / "lab"


def pytest_configure(config: pytest.Config) -> None:
    """Name the one mark that the suites use."""
    config.addinivalue_line("markers", "needs_root: makes network namespaces or binds to low ports")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in the lab makes network namespaces."""
    for item in items:
        if LAB in item.path.parents:
            item.add_marker(pytest.mark.needs_root)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say plainly what a user cannot run; in CI that is a failure."""
    if item.get_closest_marker("needs_root") is None or os.geteuid() == 0:
        return
    reason = "this test makes network namespaces: run `sudo make test`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


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
