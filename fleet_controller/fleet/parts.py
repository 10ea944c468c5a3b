"""One part of a fleet file at a time: every mistake of it, not only the first, in a person's words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any, TypeVar

import msgspec

from fleet_controller.fleet.yaml_lines import Lined, Mistake, Step, dotted
from probe.messages import AGENT_ID_PATTERN, NAME_PATTERN
from probe.tasks.fit import Misfit, MisfitError

S = TypeVar("S", bound=msgspec.Struct)
Path = tuple[Step, ...]

NAME_REMEDY = "small letters a-z, digits and . _ - inside, at most 32"
AGENT_ID_REMEDY = "small letters a-z, digits and - inside, at most 63: it is a host name"
_STEP = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[]+)")
_REGEX = re.compile(r"^Expected `str` matching regex ('.*'|\".*\")$")
# What msgspec says, and what to write instead. The first that is found in the problem counts.
_REMEDIES = (
    ("got `null`", "write a value, or remove the key"),
    ("expected `int`, got `float`", "write a whole number"),
    ("expected `int`, got", "write a plain number, without a unit"),
    ("expected `float`, got", "write a plain number, without a unit"),
    ("expected `str`, got", "put it in quotes"),
    ("expected `bool`", "write true or false"),
    ("expected `list`", "write a list: [a, b]"),
    ("expected `mapping`", "write a mapping: `key: value`"),
    ("datetime", "write 2027-02-05T00:00:00+07:00"),
    ("RFC3339", "write 2027-02-05T00:00:00+07:00"),
)


class Collector:
    """Collects the mistakes of a file."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def say(self, line: int, path: Path, problem: str, remedy: str = "") -> None:
        """Note a mistake."""
        self.mistakes.append(Mistake(line, dotted(path), problem, remedy))

    def warn(self, line: int, path: Path, problem: str, remedy: str = "") -> None:
        """Note what is allowed and yet probably not meant."""
        self.mistakes.append(Mistake(line, dotted(path), problem, remedy, "warning"))

    def name(self, line: int, path: Path, name: str) -> None:
        """Check the name of a link, peer, schedule, action, operator or suppression."""
        if re.match(NAME_PATTERN, name) is None:
            self.say(line, path, f"{name!r} is not a name", NAME_REMEDY)

    def agent_id(self, line: int, path: Path, name: str) -> None:
        """Check the id of a probe."""
        if re.match(AGENT_ID_PATTERN, name) is None:
            self.say(line, path, f"{name!r} is not an agent id", AGENT_ID_REMEDY)

    def reference(self, spot: Lined | None, path: Path, kind: str, known: Collection[str]) -> None:
        """Check that a name, or each of a list of names, is known; what is no text is another check's matter."""
        if spot is None:
            return
        if isinstance(spot.value, list):
            for step, child in spot.children.items():
                self.reference(child, (*path, step), kind, known)
        elif isinstance(spot.value, str) and spot.value not in known:
            self.say(spot.line, path, f"unknown {kind} {spot.value!r}", suggest(spot.value, known, kind))

    def misfit(self, spot: Lined, path: Path, misfit: Misfit) -> None:
        """Note what a task cannot do, at the field of `spot` that is at fault; at `spot` where that is not written."""
        written = (
            "" if misfit.example is None else f"write `{misfit.field}: {msgspec.json.encode(misfit.example).decode()}`"
        )
        remedy = ": ".join(filter(None, (misfit.remedy, written)))
        self.say(spot.at(misfit.field).line, (*path, misfit.field), misfit.problem, remedy)

    def convert(self, spot: Lined, path: Path, wanted: type[S], ready: dict[str, Any] | None = None) -> S | None:
        """Give a mapping the shape `wanted`; absent when there are mistakes in it.

        `ready` has the fields that the caller converted: `None` where it has noted a mistake.
        """
        if not isinstance(spot.value, dict):
            self.say(spot.line, path, f"expected a mapping, got {_kind(spot.value)}", "write `key: value` lines")
            return None
        before = len(self.mistakes)
        fields = {field.encode_name: field for field in msgspec.structs.fields(wanted)}
        self._unknown_keys(spot, path, fields)
        values: dict[str, Any] = dict(ready or {})
        for key, field in fields.items():
            child = spot.children.get(key)
            if key in values:
                continue
            if child is not None:
                self._field(child, (*path, key), field, values)
            elif field.required:
                self.say(spot.line, path, f"misses the key `{key}`", "add it")
        if len(self.mistakes) > before or None in (ready or {}).values():
            return None
        return self._build(spot, path, wanted, values)

    def _unknown_keys(self, spot: Lined, path: Path, known: Collection[str]) -> None:
        for key, child in spot.children.items():
            if key not in known:
                self.say(child.line, (*path, key), "unknown key", suggest(str(key), known, "key"))

    def _field(self, spot: Lined, path: Path, field: msgspec.structs.FieldInfo, values: dict[str, Any]) -> None:
        try:
            values[field.name] = msgspec.convert(spot.value, field.type)
        except msgspec.ValidationError as error:
            problem, _, where = str(error).partition(" - at `")
            steps = _steps(where.rstrip("`"))
            inner = spot.at(*steps)
            self.say(inner.line, (*path, *steps), *_in_words(problem, field.type, inner.value))

    def _build(self, spot: Lined, path: Path, wanted: type[S], values: dict[str, Any]) -> S | None:
        try:
            return wanted(**values)
        except MisfitError as error:  # raised by a task's own __post_init__
            self.misfit(spot, path, error.misfit)
            return None
        except ValueError as error:  # raised by the type's own __post_init__
            self.say(spot.line, path, str(error))
            return None


def suggest(word: str, known: Collection[str], kind: str) -> str:
    """The known word that was probably meant, or all of them where they are few."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    if not known:
        return f"there is no {kind} in this file"
    few = 8  # what still fits on a line
    return f"one of {', '.join(sorted(known))}" if len(known) <= few else "remove it or correct it"


def _steps(where: str) -> Path:
    """The steps of msgspec's `$[0].name`."""
    return tuple(int(index) if index.isdigit() else (index or name) for index, name in _STEP.findall(where))


def _in_words(problem: str, wanted: Any, value: Any) -> tuple[str, str]:
    """The problem and its remedy, as a person would say them."""
    regex = _REGEX.match(problem.replace(" | null`", "`"))
    if regex is not None:
        return _PATTERNS.get(regex[1].strip("'\""), (f"does not match {regex[1]}", ""))
    enum = re.match(r"Invalid enum value (.*)$", problem)
    if enum is not None:
        return f"unknown value {enum[1]}", suggest(enum[1].strip("'\""), _choices(wanted), "value")
    said = (problem[0].lower() + problem[1:]).replace(" | null`", "`")
    said = said.replace("`array`", "`list`").replace("`object`", "`mapping`")
    if re.search(r"` [<>]=? ", said):  # a bound: the number itself is not in the words
        return f"{said}, got {value}", ""
    remedy = next((remedy for fragment, remedy in _REMEDIES if fragment in said), "")
    return said, remedy


def _choices(wanted: Any) -> tuple[str, ...]:
    """The values of every `Literal` inside a type."""
    pending, found = [wanted], []
    while pending:
        part = pending.pop()
        for argument in getattr(part, "__args__", ()):
            if isinstance(argument, str | int):
                found.append(str(argument))
            else:
                pending.append(argument)
    return tuple(found)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    return {str: "text", int: "a number", float: "a number", bool: "a truth value", list: "a list"}[type(value)]


_PATTERNS = {
    NAME_PATTERN: ("is not a name", NAME_REMEDY),
    r"^[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?$": (
        "is not a host",
        "a name or an address, without http:// and without a port",
    ),
    r'^/[!"$->@-~]{0,255}$': (
        "is not a path",
        "it starts with / and has plain letters, no blanks, ? or #, at most 256",
    ),
    r"^[^\\s/]{1,15}$": ("is not an interface name", "at most 15 characters, without blanks and /"),
    r"^([01][0-9]|2[0-3]):[0-5][0-9]$": ("is not a time of day", 'write "01:30", Vietnam time'),
}
