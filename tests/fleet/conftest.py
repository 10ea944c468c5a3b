"""What the fleet's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Three probes with two links each, everything running."""
    fleet = Fleet(tmp_path, [f"durable-{number}" for number in (1, 2, 3)])
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.stop()
