"""The memory file that uploads and the peer send from."""

from __future__ import annotations

import os
import zlib

import pytest

from probe.flows.bulk.random_source import PERIOD_BYTES, random_source


@pytest.mark.parametrize("length_bytes", [64 * 1024, 2 << 20])
def test_it_is_as_long_as_was_asked_for_and_does_not_compress(length_bytes: int) -> None:
    """What a line or a proxy compresses would be measured as faster than it is."""
    source = random_source(length_bytes)
    try:
        content = os.pread(source, length_bytes + 1, 0)
    finally:
        os.close(source)
    assert len(content) == length_bytes
    assert len(zlib.compress(content)) > length_bytes


def test_two_of_them_differ() -> None:
    """What was sent once must not be known to whoever carries it the next time."""
    sources = [random_source(64 * 1024) for _ in range(2)]
    try:
        first, second = (os.pread(source, 1024, 0) for source in sources)
    finally:
        for source in sources:
            os.close(source)
    assert first != second


def test_it_repeats_itself() -> None:
    """Whoever sends from it may begin anywhere in its first period, and go on from there as if it had no end."""
    source = random_source(4 * PERIOD_BYTES)
    try:
        first, last = (os.pread(source, PERIOD_BYTES, offset) for offset in (0, 3 * PERIOD_BYTES))
    finally:
        os.close(source)
    assert first == last
