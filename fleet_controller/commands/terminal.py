"""What commands say: results on standard output, complaints on standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Final

from rich.console import Console

from fleet_controller.free_text import visible, visible_json

# Wide enough for every column that there is: what is piped into a program or a file must not be cut to 80.
_PIPE_COLUMNS: Final = 240


def say(text: str = "") -> None:
    """One line of the result. What strangers wrote into it cannot command the terminal."""
    sys.stdout.write(f"{visible(text)}\n")


def say_json(value: Any) -> None:
    """The result for programs."""
    say(visible_json(json.dumps(value, ensure_ascii=False, indent=2)))


def complain(text: str) -> None:
    """One line about what went wrong."""
    sys.stderr.write(f"fleet-controller: {visible(text)}\n")


def forget_output() -> None:
    """Let what is still to be written go nowhere: the interpreter writes it at its end, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def open_console() -> Console:
    """The console for tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_PIPE_COLUMNS)
