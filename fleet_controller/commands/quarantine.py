"""The commands about what could not be accepted: `quarantine list`, `show`, `replay`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from rich.markup import escape
from rich.table import Table

from fleet_controller.commands.terminal import complain, open_console, say, say_json
from fleet_controller.config import ControllerConfig, load
from fleet_controller.free_text import visible, visible_json
from fleet_controller.quarantine import Item, Quarantine
from fleet_controller.replay import Outcome
from fleet_controller.replay import replay as replay_items
from fleet_controller.status_table import age

_OK: Final = 0
_FOUND_PROBLEMS: Final = 1
_NS_PER_S: Final = 1_000_000_000


def list_(args: argparse.Namespace) -> int:
    """Print what is held, newest first, and what had to be dropped."""
    with _opened(load(args.config)) as quarantine:
        items, totals = quarantine.list(args.limit, args.reason), quarantine.totals()
    if args.json:
        say_json({"items": [_plain(item) for item in items], "totals": msgspec.to_builtins(totals)})
        return _OK
    table = Table("id", "agent", "reason", "last seen", "times", "bytes", "detail", box=None, pad_edge=False)
    for item in items:
        table.add_row(
            str(item.id),
            escape(visible(item.agent_id or "-")),
            item.reason,
            age(item.last_seen_unix_ns, time.time_ns()),
            str(item.seen),
            str(item.payload_bytes),
            escape(visible(item.detail)),
        )
    open_console().print(table)
    dropped = totals.dropped_age + totals.dropped_bytes
    say(f"{totals.items} items, {totals.bytes} bytes; {dropped} were dropped for age or space")
    return _OK


def show(args: argparse.Namespace) -> int:
    """Print one item with its payload. Exit code 1 if there is none."""
    with _opened(load(args.config)) as quarantine:
        item = quarantine.show(args.id)
    if item is None:
        complain(f"there is no item {args.id}")
        return _FOUND_PROBLEMS
    payload = (item.payload or b"").decode(errors="replace")
    if args.json:
        say_json({**_plain(item), "payload": payload})
        return _OK
    for name, value in _plain(item).items():
        say(f"{name}: {value}")
    say()
    say(_readable(payload))
    return _OK


def replay(args: argparse.Namespace) -> int:
    """Try items again. Exit code 1 if one of them is still not accepted."""
    config = load(args.config)
    numbers = args.ids
    if not numbers:
        with _opened(config) as quarantine:
            numbers = quarantine.ids(args.reason)
    outcomes = replay_items(config, numbers)
    if args.json:
        say_json({"items": [msgspec.to_builtins(outcome) for outcome in outcomes.values()]})
    else:
        _print_outcomes(list(outcomes.values()))
    return _OK if all(outcome.kind == "stored" for outcome in outcomes.values()) else _FOUND_PROBLEMS


def _print_outcomes(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        say(f"{outcome.id}: {outcome.kind}: {outcome.detail}")
    stored = sum(outcome.kind == "stored" for outcome in outcomes)
    say(f"{stored} of {len(outcomes)} items were accepted")


@contextmanager
def _opened(config: ControllerConfig) -> Iterator[Quarantine]:
    with closing(Quarantine(config.quarantine_dir, config.quarantine)) as quarantine:
        yield quarantine


def _plain(item: Item) -> dict[str, Any]:
    """What a person wants to know of an item, its payload left out."""
    return {
        "id": item.id,
        "agent_id": item.agent_id,
        "topic": item.topic,
        "reason": item.reason,
        "detail": item.detail,
        "payload_bytes": item.payload_bytes,
        "truncated": item.truncated,
        "seen": item.seen,
        "first_seen": _date(item.first_seen_unix_ns),
        "last_seen": _date(item.last_seen_unix_ns),
    }


def _date(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // _NS_PER_S, UTC).isoformat().replace("+00:00", "Z")


def _readable(payload: str) -> str:
    """JSON with its lines, and everything else as it is."""
    try:
        return visible_json(json.dumps(json.loads(payload), ensure_ascii=False, indent=2))
    except (ValueError, RecursionError):
        return payload
