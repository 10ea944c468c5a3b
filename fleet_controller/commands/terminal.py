"""What commands say: results on standard output, complaints on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from rich.console import Console

# Wide enough for every column that there is: what is piped into a program or a file must not be cut to 80.
_PIPE_COLUMNS: Final = 240


def say(text: str = "") -> None:
    """One line of the result."""
    sys.stdout.write(f"{text}\n")


def say_json(value: Any) -> None:
    """The result for programs."""
    say(json.dumps(value, ensure_ascii=False, indent=2))


def complain(text: str) -> None:
    """One line about what went wrong."""
    sys.stderr.write(f"fleet-controller: {printable(text)}\n")


def open_console() -> Console:
    """The console for tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)


def printable(text: str) -> str:
    """Text out of strangers' messages, with the control characters that a terminal obeys made visible."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else f"\\x{ord(letter):02x}" for letter in text)
