"""What the suites of the lab share: the two ends of a line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet_controller.lab.namespaces import namespace


@pytest.fixture
def near() -> Iterator[str]:
    """The probe's namespace."""
    with namespace("near") as name:
        yield name


@pytest.fixture
def far() -> Iterator[str]:
    """The peer's namespace."""
    with namespace("far") as name:
        yield name
