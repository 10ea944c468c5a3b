"""All InfluxQL that ships stands in constants; this reads the sources for them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import fleet_controller

SOURCES = sorted(Path(fleet_controller.__file__).parent.rglob("*.py"))
STATEMENT = re.compile(r"^\s*(SELECT\s.*\sFROM\s|SHOW\s+[A-Z]+|CREATE\s+DATABASE|DELETE\s+FROM|DROP\s)", re.DOTALL)
# What 3.x does not answer, and what exists in one version only.
DENIED = (
    "SLIMIT", "SOFFSET", "SHOW SERIES", "CARDINALITY", "SHOW DATABASES", "INTEGRAL", "SAMPLE", "HOLT_WINTERS",
    "CHANDE_MOMENTUM_OSCILLATOR", "EXPONENTIAL_MOVING_AVERAGE", "TRIPLE_EXPONENTIAL_DERIVATIVE", "KAUFMANS_",
    "RELATIVE_STRENGTH_INDEX", "CONTINUOUS QUERY", "INTO", "DELETE", "DROP",
)  # fmt: skip
# The one statement that changes something: only sent to a server that says it is 1.x.
ALLOWED_ON_1X = {"CREATE DATABASE {database}"}
# SQLite's own statements.
OTHER_LANGUAGES = {"quarantine.py", "spool.py"}


def strings(path: Path) -> list[str]:
    """Every string of a source file, with {} where a formatted one has an expression."""
    found: list[str] = []
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    pieces = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))  # type: ignore[misc]
    return found


def statements() -> list[tuple[str, str]]:
    """Every InfluxQL statement that ships, with its file."""
    sources = (path for path in SOURCES if path.name not in OTHER_LANGUAGES)
    return [(path.name, text) for path in sources for text in strings(path) if STATEMENT.match(text)]


def problem_of(statement: str) -> str | None:
    """What speaks against a statement."""
    for word in DENIED:
        if re.search(rf"\b{word}", statement, re.IGNORECASE):
            return f"{word} is not answered by every version"
    if statement.lstrip().upper().startswith("SELECT") and not re.search(r"\btime\s*[<>]", statement):
        return "without a time bound 3.x scans everything"
    return None


def test_every_statement_is_answered_by_every_version() -> None:
    """No statement uses what InfluxDB 3 lacks, and every SELECT bounds its time."""
    found = [(name, text) for name, text in statements() if text not in ALLOWED_ON_1X]
    assert [(name, text, problem_of(text)) for name, text in found if problem_of(text)] == []


def test_the_reader_finds_statements() -> None:
    """The check looks at what is really there."""
    assert ("database.py", "CREATE DATABASE {database}") in statements()
    assert problem_of("SELECT SAMPLE(x, 3) FROM m WHERE time > 0") is not None
    assert problem_of("SELECT x FROM m") is not None
    assert problem_of("SELECT x FROM m WHERE time > now() - 1h") is None
    assert problem_of("SHOW SERIES") is not None
