"""What the network says goes into results, logs and terminals: as one bounded line of printable characters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probe.errors import DETAIL_CHARACTERS_MAX, MeasurementFailedError, one_line
from probe.messages import FailureKind, Operation


@given(st.text(max_size=2000))
def test_a_detail_can_always_be_shown(text: str) -> None:
    """No control character, no line break, no more than the bound, whatever came."""
    shown = one_line(text)
    assert len(shown) <= DETAIL_CHARACTERS_MAX
    assert all(character.isprintable() for character in shown)


def test_an_escape_sequence_does_not_reach_a_terminal() -> None:
    """A portal's redirect target that would rename and clear the window is plain text in the failure."""
    error = MeasurementFailedError(
        Operation.REQUEST, FailureKind.REDIRECTED, "302 to http://a/\x1b]0;x\x07\x1b[2J\x00y"
    )
    assert error.failure.detail == "302 to http://a/ ]0;x [2J y"
