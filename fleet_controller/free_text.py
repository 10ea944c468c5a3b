"""Text that strangers wrote: a probe's words, and those of whoever a probe spoke with.

A terminal obeys control characters (ECMA-48), and direction marks make a line read as another one (Unicode TR 36). What
is stored has none of them; what is printed shows them, so that a person sees that they were there.
"""

from __future__ import annotations

_LAST_OF_TWO_DIGITS = 0xFF
_LAST_OF_FOUR_DIGITS = 0xFFFF


def stripped(text: str) -> str:
    """The text with a blank for everything that cannot be printed, line breaks included; no longer than before."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " for letter in text)


def visible(text: str) -> str:
    r"""The text with `\x1b` and the like in place of what cannot be printed; line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _escape(letter) for letter in text)


def visible_json(text: str) -> str:
    r"""JSON with `\u009b` and the like within its strings, which is the same JSON; its line breaks stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _json_escape(letter) for letter in text)


def _escape(letter: str) -> str:
    number = ord(letter)
    if number <= _LAST_OF_TWO_DIGITS:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number <= _LAST_OF_FOUR_DIGITS else f"\\U{number:08x}"


def _json_escape(letter: str) -> str:
    """RFC 8259 section 7: beyond the first plane by the two halves of UTF-16."""
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index : index + 2].hex()}" for index in range(0, len(units), 2))
