"""YAML as plain data that remembers its lines, so that a mistake can be shown where it stands.

Read by the core schema of YAML 1.2, not by 1.1: `no` is a word, `19:30` is a time of day that a person wrote, and
`true` and `false` are the only truth values. A key given twice is a mistake; PyYAML would keep the last one silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

# 500 probes are 250 KB. What is far beyond any fleet is a wrong file, and an alias bomb grows when it is read.
FILE_BYTES_MAX = 16 * 1024 * 1024
NODES_MAX = 500_000
DEPTH_MAX = 20

# What has more digits is no number of a fleet's, and Python refuses to read some thousands of them.
_INT = re.compile(r"^[-+]?[0-9][0-9_]{0,99}$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_CORE_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}
Step = str | int


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake of a file: where it stands, what is wrong, what to write instead. A warning stops nothing."""

    line: int
    path: str
    problem: str
    remedy: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        """One line for a person."""
        place = f"{self.path}: " if self.path else ""
        return f"{place}{self.problem}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Lined:
    """A value, the line it starts at, and the same of everything in it."""

    value: Any
    line: int
    children: dict[Step, Lined] = field(default_factory=dict)

    def at(self, *steps: Step) -> Lined:
        """The innermost value on the way that exists."""
        spot = self
        for step in steps:
            inner = spot.children.get(step)
            if inner is None:
                break
            spot = inner
        return spot


def read_lined(path: Path, mistakes: list[Mistake]) -> Lined | None:
    """Read a YAML file; absent when it cannot be read at all, with the reason in `mistakes`."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        mistakes.append(Mistake(line, "", "is not UTF-8 text", "save the file as UTF-8"))
        return None
    except OSError as error:
        mistakes.append(Mistake(1, "", f"cannot be read: {error.strerror}"))
        return None
    if len(raw) > FILE_BYTES_MAX:
        mistakes.append(Mistake(1, "", f"has {len(raw)} bytes, more than {FILE_BYTES_MAX}", "split the fleet"))
        return None
    return parse_lined(text, mistakes)


def parse_lined(text: str, mistakes: list[Mistake]) -> Lined | None:
    """Parse YAML; absent when it is none, with the reason and its line in `mistakes`."""
    try:
        root = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        mistakes.append(Mistake(line, "", f"is not YAML: {error.problem or error.context}", _syntax_remedy(error)))
        return None
    except yaml.YAMLError as error:  # a character that YAML does not allow: it has an offset and no line
        offset = getattr(error, "position", 0)
        mistakes.append(Mistake(text.count("\n", 0, offset) + 1, "", f"is not YAML: {getattr(error, 'reason', error)}"))
        return None
    except RecursionError:
        mistakes.append(Mistake(1, "", "is nested too deeply"))
        return None
    if root is None:
        return Lined({}, 1)
    try:
        return _Builder(mistakes).build(root, root.start_mark.line + 1, ())
    except _TooMuchError:
        return None


def _syntax_remedy(error: yaml.MarkedYAMLError) -> str:
    if "\\t" in str(error.problem):
        return "indent with spaces"
    return "look at this line and the one above it: indentation, colons, quotes"


class _TooMuchError(Exception):
    """The file is nested or repeated beyond all bounds; a mistake says so already."""


class _Builder:
    """Turns YAML nodes into plain data, and collects what is wrong with them."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        self._mistakes = mistakes
        self._nodes = 0

    def build(self, node: yaml.Node, line: int, path: tuple[Step, ...]) -> Lined:
        """The value of a node. `line` is where its key stands: that is where a person looks."""
        self._nodes += 1
        if len(path) > DEPTH_MAX or self._nodes > NODES_MAX:
            self._say(node, path[:3], "is nested too deeply, or repeats itself", "write it without aliases")
            raise _TooMuchError
        if node.tag not in _CORE_TAGS:
            self._say(node, path, f"has the tag {node.tag}", "remove the tag: plain text, numbers, lists, mappings")
            return Lined(None, line)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, line, path)
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(item, item.start_mark.line + 1, (*path, i)) for i, item in enumerate(node.value)]
            return Lined([item.value for item in items], line, dict(enumerate(items)))
        assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - the third and last kind of node
        return Lined(_scalar(node), line)

    def _mapping(self, node: yaml.MappingNode, line: int, path: tuple[Step, ...]) -> Lined:
        children: dict[Step, Lined] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                self._say(key_node, path, "has a key that is not plain text", "write `name: value`")
            elif key_node.tag == "tag:yaml.org,2002:merge":
                self._say(key_node, path, "merges another mapping with `<<`", "write its keys out")
            elif key in children:
                first = children[key].line
                self._say(key_node, (*path, key), f"is given twice, first in line {first}", "remove one of them")
            else:
                children[key] = self.build(value_node, key_node.start_mark.line + 1, (*path, key))
        return Lined({key: child.value for key, child in children.items()}, line, children)

    def _say(self, node: yaml.Node, path: tuple[Step, ...], problem: str, remedy: str) -> None:
        self._mistakes.append(Mistake(node.start_mark.line + 1, dotted(path), problem, remedy))


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if node.style:  # quoted, or a block of text; a plain one has none
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    return text


def dotted(path: tuple[Step, ...]) -> str:
    """A path as people read it: `probes.hn-01.links[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")
