"""The commands about the fleet: `check`, `apply`, `status`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import msgspec

from fleet_controller.broker_session import BrokerSession
from fleet_controller.commands.terminal import complain, open_console, say, say_json
from fleet_controller.config import ControllerConfig, load
from fleet_controller.fleet.load import CheckedFleet, Fleet, Mistake, check_fleet, load_fleet
from fleet_controller.instruct import (
    Change,
    InstructionTooLongError,
    instructions_for,
    publish_instructions,
    retained_revisions,
)
from fleet_controller.status import FleetView, last_results, view_fleet
from fleet_controller.status_table import print_view
from fleet_controller.store.database import Store
from probe.tasks import TASKS

_OK: Final = 0
_FOUND_PROBLEMS: Final = 1
_UNREACHABLE: Final = 3
_WORDS: Final = {
    "new": "is told for the first time",
    "changed": "is told anew",
    "same": "knows already",
    "unknown": "is not in the fleet file and keeps its instruction (--remove clears it)",
    "removed": "is not in the fleet file: its instruction is cleared",
}


def check(args: argparse.Namespace) -> int:
    """Print every mistake of the fleet file. Exit code 1 if there is one; warnings are none."""
    path: Path = args.file if args.file is not None else load(args.config).fleet_file
    checked = _with_instructions(check_fleet(path))
    errors = [mistake for mistake in checked.mistakes if mistake.severity == "error"]
    if args.json:
        say_json(
            {
                "file": str(path),
                "ok": not errors,
                "mistakes": msgspec.to_builtins(checked.mistakes),
                **(_counts(checked.fleet) if checked.fleet is not None else {}),
            }
        )
    else:
        _print_mistakes(path, checked)
    return _FOUND_PROBLEMS if errors else _OK


def apply(args: argparse.Namespace) -> int:
    """Make the broker retain what the fleet file says."""
    config = load(args.config)
    instructions = instructions_for(load_fleet(config.fleet_file))
    with BrokerSession(config.broker, "apply") as session:
        changes = publish_instructions(session, instructions, remove=args.remove, dry_run=args.dry_run)
    if args.json:
        say_json({"dry_run": args.dry_run, "changes": msgspec.to_builtins(changes)})
    else:
        _print_changes(changes, dry_run=args.dry_run)
    return _OK


def status(args: argparse.Namespace) -> int:
    """Print how each agent is. Exit code 1 unless all of the fleet are measuring, 3 if the database is silent."""
    view = gather(load(args.config))
    if args.json:
        say_json(msgspec.to_builtins(view))
    else:
        print_view(view, open_console())
    if view.database_problem is not None:
        complain(f"the database could not be asked: {view.database_problem}")
        return _UNREACHABLE
    return _OK if view.all_measuring else _FOUND_PROBLEMS


def gather(config: ControllerConfig) -> FleetView:
    """Ask the fleet file, the broker and the database how the fleet is.

    Raises:
        FleetError: the fleet file has mistakes.
        BrokerError: the broker cannot be reached. A database that cannot be is told in the view.
    """
    fleet = load_fleet(config.fleet_file)
    desired = instructions_for(fleet)
    with BrokerSession(config.broker, "status") as session:
        retained = session.retained("status", "instruction")
    store = Store(config.influxdb, TASKS)
    try:
        return view_fleet(
            fleet, desired, retained_revisions(retained), retained, lambda: last_results(store.query, tuple(TASKS))
        )
    finally:
        store.close()


def _with_instructions(checked: CheckedFleet) -> CheckedFleet:
    """The same, and whether each probe's instruction fits into a message."""
    if checked.fleet is None:
        return checked
    try:
        instructions_for(checked.fleet)
    except InstructionTooLongError as error:
        return CheckedFleet(None, (*checked.mistakes, Mistake(1, "probes", str(error))))
    return checked


def _counts(fleet: Fleet) -> dict[str, int]:
    return {
        "probes": len(fleet.probes),
        "links": sum(len(probe.links) for probe in fleet.probes.values()),
        "peers": len(fleet.peers),
        "schedules": len(fleet.schedules),
        "provinces_with_probes": len({probe.province for probe in fleet.probes.values()}),
    }


def _print_mistakes(path: Path, checked: CheckedFleet) -> None:
    for mistake in checked.mistakes:
        warning = "warning: " if mistake.severity == "warning" else ""
        say(f"{path}:{mistake.line}: {warning}{mistake}")
    errors = sum(mistake.severity == "error" for mistake in checked.mistakes)
    if errors:
        say(f"{path}: {errors} {'mistake' if errors == 1 else 'mistakes'}")
    elif checked.fleet is not None:
        counts = _counts(checked.fleet)
        say(
            f"{path}: no mistakes: {counts['probes']} probes with {counts['links']} links in "
            f"{counts['provinces_with_probes']} provinces, {counts['peers']} peers, {counts['schedules']} schedules"
        )


def _print_changes(changes: list[Change], *, dry_run: bool) -> None:
    for change in changes:
        if change.kind != "same":
            revisions = f"{change.retained or '-'} -> {change.desired or '-'}"
            say(f"{change.agent_id}: {_WORDS[change.kind]} ({revisions})")
    sent = sum(change.kind in {"new", "changed", "removed"} for change in changes)
    same = sum(change.kind == "same" for change in changes)
    say(f"{sent} instructions {'would be' if dry_run else 'were'} sent, {same} were up to date")
