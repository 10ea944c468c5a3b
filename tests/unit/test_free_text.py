"""What strangers wrote: stored without, and shown with, what a terminal would obey."""

from __future__ import annotations

import json
import os

from hypothesis import given
from hypothesis import strategies as st

from fleet_controller.free_text import stripped, visible, visible_json

GARBAGE = os.urandom(4096).decode("latin-1") + "\ud800\U000e0001\u202e\u2028"


def test_what_can_be_printed_stays() -> None:
    """Vietnamese, Thai, emoji: not one letter is changed."""
    text = "Bà Rịa - Vũng Tàu, กรุงเทพ, 📡 e\u0301"
    assert stripped(text) == visible(text) == visible_json(text) == text


def test_garbage_is_stripped_to_one_line() -> None:
    """Every byte value, surrogates and direction marks: a blank for each, and no line break."""
    clean = stripped(GARBAGE)
    assert clean.isprintable()
    assert len(clean) == len(GARBAGE)


def test_garbage_is_shown() -> None:
    """What was there can be read from its escapes; line breaks and tabs stay."""
    assert visible("a\tb\nc\x1b[2J\x9b\u202e") == "a\tb\nc\\x1b[2J\\x9b\\u202e"
    assert visible(GARBAGE.replace("\n", "").replace("\t", "")).isprintable()


@given(st.text(st.characters(exclude_categories=())))
def test_json_stays_the_same_json(text: str) -> None:
    """Only the writing of the strings changes, and nothing is left that a terminal obeys."""
    written = json.dumps({"text": text}, ensure_ascii=False, indent=2)
    shown = visible_json(written)
    assert json.loads(shown) == json.loads(written)
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
