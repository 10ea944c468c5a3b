"""`fleet-controller lab`: any task through any emulated line, configured against measured."""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from fleet_controller.commands.terminal import complain, open_console, say, say_json
from fleet_controller.errors import ConfigError
from fleet_controller.lab import matrix, namespaces, own_error
from fleet_controller.lab.compare import compare, why_nothing
from fleet_controller.lab.comparison import Compared, as_builtins, outcome, shown
from fleet_controller.lab.matrix import Case, Row, Summary
from fleet_controller.lab.profile import LinkProfile
from fleet_controller.lab.profiles import find_profile, load_profiles, read_profiles
from fleet_controller.lab.site import PEER_NAME, TIME_OUT_S, Run, Site
from probe.messages import Peer
from probe.tasks import TASKS
from probe.tasks.base import AnyTask
from probe.tasks.settings import SettingError, check_settings, read_settings

_OK: Final = 0
_PROBLEMS: Final = 1
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MEGA: Final = 1e6
# What is there behind every line: a name to ask for, a page to fetch, at an address that is nobody's on the Internet.
_OF_THE_LAB: Final[dict[str, dict[str, Any]]] = {
    "dns": {"name": PEER_NAME},
    "web": {"path": "/small", "allow_private": True},
}


def list_(args: argparse.Namespace) -> int:
    """Print the profiles."""
    profiles = load_profiles(args.file)
    if args.json:
        say_json({name: msgspec.to_builtins(profile) for name, profile in profiles.items()})
        return _OK
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("profile", "down Mbit/s", "up Mbit/s", "delay ms", "PDV ms", "loss %", "IP", "what it is"):
        table.add_column(heading, justify="right" if heading[-1] in "s%" and heading != "what it is" else "left")
    for name, one in profiles.items():
        figures = (one.download_bps / _MEGA, one.upload_bps / _MEGA, one.delay_s * 1e3, one.jitter_s * 1e3)
        versions = " ".join(str(version) for version in one.ip_versions)
        loss = f"{one.loss_ratio * 100:g}"
        table.add_row(name, *(f"{figure:g}" for figure in figures), loss, versions, one.description)
    open_console().print(table)
    return _OK


def run(args: argparse.Namespace) -> int:
    """Measure one task on one line, some times."""
    profile = find_profile(args.profile, load_profiles(args.file))
    task = _find_task(args.task)
    parameters, typed = _parameters(task, args.parameter, profile, args.peer)
    time_out_s = TIME_OUT_S + task.time_out_s(typed)
    with _leaving_nothing(), Site(profile, shaper=args.shaper, nginx=args.peer == "nginx", seed=args.seed) as site:
        results = []
        for number in range(args.runs):
            peer = _peer(task, parameters, args.peer)
            done = site.measure(task.name, parameters, peer=peer, time_out_s=time_out_s)
            results.append(done)
            if not args.json:
                _say_run(site, done, parameters, f" run {number + 1} of {args.runs}" if args.runs > 1 else "")
        if args.json:
            say_json({"profile": args.profile, "runs": [_run_as_builtins(site, done, parameters) for done in results]})
    return _OK if all(done.result.values is not None for done in results) else _PROBLEMS


def run_matrix(args: argparse.Namespace) -> int:
    """Measure all lines, or some, and say what that says of the instruments."""
    known = load_profiles(args.file)
    # Whoever brings a file of their own wants it measured, and not an hour of everything else.
    names = args.profiles.split(",") if args.profiles is not None else list(read_profiles(args.file))
    profiles = {name: find_profile(name, known) for name in names}
    total = args.runs * sum(1 for name in names for _ in matrix.cases_of(name, profiles[name]))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    done = 0

    def said(case: Case, number: int, what: str) -> None:
        nonlocal done
        done += 1
        console.print(f"{done:4d}/{total}  {case.profile}  {case.name}  run {number + 1}: {what}")

    with _leaving_nothing():
        rows = matrix.run_matrix(profiles, args.runs, said, nginx=args.nginx)
    summary = matrix.summarise(rows, profiles)
    if args.json:
        rows_ = [matrix.row_as_builtins(row) for row in rows]
        say_json({"rows": rows_, "summary": msgspec.to_builtins(summary), "good": summary.is_good})
    else:
        open_console().print(_table(rows))
        _say_summary(summary)
    return _OK if summary.is_good else _PROBLEMS


def check(args: argparse.Namespace) -> int:
    """Measure the emulated line itself: what it adds to the delay and to the rate that it was told."""
    with _leaving_nothing():
        delays = [error for busy_cores in (0, 1) for error in own_error.measure_delays(busy_cores)]
        rates = own_error.measure_rates()
    if args.json:
        rates_ = [msgspec.to_builtins(one) | {"error_ratio": one.error_ratio} for one in rates]
        say_json({"delays": msgspec.to_builtins(delays), "rates": rates_})
        return _OK
    say("What the emulated line adds to the one-way delay that it was told (microseconds, by kernel stamps):")
    for one in delays:
        figures = f"median {one.median_s * 1e6:+6.0f}   1 % {one.p1_s * 1e6:+6.0f}   99 % {one.p99_s * 1e6:+6.0f}"
        say(f"  {one.direction:9} {one.busy_cores} busy cores   {figures}   of {one.packets} packets")
    say("Full packets for a second, as they arrived:")
    for rate in rates:
        say(f"  {rate.rate_bps / _MEGA:6g} Mbit/s   {rate.error_ratio * 100:+.4f} %")
    return _OK


def _find_task(name: str) -> AnyTask:
    if name not in TASKS:
        raise ConfigError(name, "there is no such task", "one of " + ", ".join(sorted(TASKS)))
    return TASKS[name]


def _parameters(task: AnyTask, settings: list[str], profile: LinkProfile, peer: str) -> tuple[dict[str, Any], Any]:
    """What the command line says, and the line's own IP version where it has but one; the same as the task's own type.

    Raises:
        ConfigError: the task cannot work with that.
    """
    fields = task.parameters.__struct_fields__
    versions = profile.ip_versions
    parameters: dict[str, Any] = {"ip_version": versions[0]} if "ip_version" in fields and versions == (6,) else {}
    parameters |= _OF_THE_LAB.get(task.name, {})
    try:
        said = read_settings(task, settings, "--set")
        if "url" in said:
            parameters.pop("path", None)
        parameters |= said
        asked = _peer(task, parameters, peer)
        typed = check_settings(task, parameters, [Peer(name=asked, host=PEER_NAME) if asked else None], "--set")
    except SettingError as error:
        raise ConfigError(error.place, error.problem, error.remedy) from None
    return parameters, typed


def _peer(task: AnyTask, parameters: Mapping[str, Any], wanted: str) -> str | None:
    """Whom to ask; a page that is named by its path is one of the peer's."""
    return wanted if task.needs_peer or "path" in parameters else None


@contextlib.contextmanager
def _leaving_nothing() -> Iterator[None]:
    """Remove what killed ones left, and let the first signal end this one in order; later ones wait for that."""
    for name in namespaces.sweep():
        complain(f"removed {name}, left by one that was killed")

    def end(number: int, _frame: object) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        namespaces.remove_own()


def _say_run(site: Site, done: Run, parameters: Mapping[str, Any], number: str) -> None:
    """One run for people: how it ended, then the figures that the line decides, then the others."""
    result = done.result
    variant = " ".join(result.variant.values())
    head = f"{result.task} {variant}".strip()
    say(f"{head}{number}: {outcome(result)}")
    said = result.failure or result.not_run
    if said is not None and said.detail:
        say(f"  {said.detail}")
    compared = compare(site, done, parameters)
    _say_compared(compared)
    if not compared:
        say(f"  {why_nothing(done)}")
    for key, value in (result.values or {}).items():
        text = f"{len(value)} items, see --json" if isinstance(value, list | dict) else value
        say(f"  {key} = {text}")
    say(f"  CPU of the whole program {done.cpu_s:.2f} s, its start included")


def _say_compared(compared: Sequence[Compared]) -> None:
    """One line a figure, columns aligned."""
    rows = [(one.what, *shown(one)) for one in compared]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for what, configured, measured, error in rows:
        say(
            f"  {what:{widths[0]}}  configured {configured:>{widths[1]}}"
            f"   measured {measured:>{widths[2]}}   {error}".rstrip()
        )


def _run_as_builtins(site: Site, done: Run, parameters: Mapping[str, Any]) -> dict[str, Any]:
    compared = [as_builtins(one) for one in compare(site, done, parameters)]
    why = {} if compared else {"why_nothing_compared": why_nothing(done)}
    return {"compared": compared, **why, "cpu_s": done.cpu_s, "result": msgspec.to_builtins(done.result)}


def _table(rows: list[Row]) -> Table:
    table = Table(title="Configured and measured: medians over the runs", box=box.SIMPLE_HEAD)
    for heading in ("profile", "measurement", "configured", "measured", "error", "agree", "bytes", "CPU s/GB"):
        table.add_column(heading, justify="left" if heading in ("profile", "measurement") else "right", no_wrap=True)
    last = ""
    for row in rows:
        name, last = ("" if row.case.profile == last else row.case.profile), row.case.profile
        figures = _shown_row(row) if row.has_values else (f"{row.outcomes[-1][:60]}", "", "", "", "", "")
        table.add_row(name, row.case.name, *figures)
        if row.case.task == "round_trip" and (pdv := row.median(1)) is not None:
            table.add_row("", "  PDV", *shown(pdv), "", "", "")
    return table


def _shown_row(row: Row) -> tuple[str, ...]:
    one = row.median()
    if one is None:
        return ("", "none", "", "", "", "")
    agreement = row.agreement_ratio()
    return (
        *shown(one),
        "" if agreement is None else f"{agreement * 100:.2f} %",
        f"{statistics.median(row.transferred_bytes) / _MEGA:.2f} MB",
        f"{statistics.median(row.cpu_s_per_gb):.3f}" if row.cpu_s_per_gb else "",
    )


def _say_summary(summary: Summary) -> None:
    say("Over all profiles (bound in brackets):")
    for label, value, bound in (
        ("full capacity, median error", summary.full_error_median_ratio, matrix.FULL_MEDIAN_MAX),
        ("full capacity, worst profile", summary.full_error_worst_ratio, matrix.FULL_WORST_MAX),
        ("capped capacity, median error", summary.capped_error_median_ratio, matrix.CAPPED_MEDIAN_MAX),
        ("capped, most bytes of a 10 s test", summary.capped_bytes_ratio_max, None),
        ("full capacity, runs apart at most", summary.agreement_worst_ratio, None),
    ):
        if value is not None:
            say(f"  {label:34} {value * 100:7.2f} %" + (f"   ({bound * 100:g} %)" if bound is not None else ""))
    for label, value_s in (("median", summary.delay_error_median_s), ("worst profile", summary.delay_error_worst_s)):
        if value_s is not None:
            say(f"  {f'median delay, error: {label}':34} {value_s * 1e3:7.3f} ms")
    if summary.unexpected:
        say(f"  {summary.unexpected} measurements ended otherwise than the line would have it")
