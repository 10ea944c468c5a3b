"""How the emulated line waits: on time while packets are sparse, never spinning for ever, with time passed in."""

from __future__ import annotations

import pytest

from fleet_controller.lab.punctual import Patience

US = 1_000
MS = 1_000_000


def test_the_last_bit_before_a_sparse_packet_is_spent_awake() -> None:
    """Ten packets, 20 ms apart: each time it sleeps until shortly before, then looks again and again."""
    now_ns, patience = 0, Patience(0)
    for number in range(1, 11):
        due_ns = number * 20 * MS
        slept_ns = patience.wait_ns(due_ns, now_ns)
        assert slept_ns is not None
        assert due_ns - 300 * US < now_ns + slept_ns < due_ns
        now_ns += slept_ns + 60 * US  # waking up takes its time
        while now_ns < due_ns - patience.early_ns():
            assert patience.wait_ns(due_ns, now_ns) == 0
            now_ns += 3 * US
        assert patience.early_ns() < 50 * US


def test_under_load_it_sleeps_and_does_not_spin() -> None:
    """A packet every 50 us for a second: awake for a tenth of it and the first allowance, else asleep for a grain."""
    now_ns, patience, awake_ns = 0, Patience(0), 0
    while now_ns < 1000 * MS:
        wait_ns = patience.wait_ns(now_ns - now_ns % (50 * US) + 50 * US, now_ns)
        assert wait_ns is not None
        assert wait_ns == 0 or wait_ns >= 10 * US
        step_ns = wait_ns or 5 * US
        awake_ns += 0 if wait_ns else step_ns
        now_ns += step_ns
    assert awake_ns < 110 * MS


def test_what_is_overdue_is_looked_at_without_a_sleep_of_negative_length() -> None:
    """A moment that has passed, with and without an allowance."""
    patience = Patience(0)
    assert patience.wait_ns(0, 5 * MS) == 0
    assert (patience.wait_ns(0, 500 * MS) or 0) > 0  # half a second awake: the allowance is gone


@pytest.mark.parametrize("gap_ns", [5 * MS, 3_600_000 * MS])
def test_what_an_empty_line_waits_is_no_time_awake(gap_ns: int) -> None:
    """Packets that each come to an empty line: awake until each has left, asleep until the next one comes."""
    now_ns, patience = 0, Patience(0)
    for _ in range(20):
        due_ns = now_ns + MS
        now_ns += patience.wait_ns(due_ns, now_ns) or 0
        assert patience.wait_ns(due_ns, now_ns + 60 * US) == 0
        assert patience.wait_ns(None, due_ns) is None
        now_ns = due_ns + gap_ns
        assert patience.early_ns() < 50 * US
