"""`fleet-controller`: what a person types."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from fleet_controller import __version__
from fleet_controller.commands.terminal import complain, forget_output
from fleet_controller.config import load
from fleet_controller.errors import BrokerError, ControllerError, ServiceError, StoreError

OK: Final = 0  # 1, "found problems", is for each command to give
USAGE: Final = 2
UNREACHABLE: Final = 3
_INTERRUPTED: Final = 130  # what shells give a program that Ctrl-C ended: 128 + SIGINT

_EPILOG: Final = """\
examples:
  fleet-controller demo                            two probes, measured and stored, on this machine
  fleet-controller check fleet.yaml                every mistake of the fleet file, with its line
  fleet-controller apply --dry-run                 what the probes would be told anew
  fleet-controller serve                           take in what the probes report
  fleet-controller status                          who measures, who is silent, who is lost
  fleet-controller measure hn-01 round_trip --link fixed --peer hn-vnix --wait 30
  fleet-controller quarantine list
  fleet-controller lab run 4g_edge capacity        a task over an emulated line, configured against measured

exit codes:
  0  all is well
  1  it worked, and found problems: mistakes in the fleet file, agents that do not measure, nothing measured
  2  wrong usage, or a configuration that cannot be used
  3  the broker or the database cannot be reached, or refused
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives its exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    # It logs every request at INFO: a line for each batch that is stored.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        code = run(args)
        sys.stdout.flush()  # who reads our output may have enough of it (`| head`): that must come out here
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        forget_output()
        return OK
    except ControllerError as error:
        complain(str(error))
        return _code_of(error)
    return code


def _code_of(error: ControllerError) -> int:
    if isinstance(error, BrokerError | StoreError | ServiceError):
        return UNREACHABLE
    return USAGE


def build_parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    parser = argparse.ArgumentParser(
        prog="fleet-controller",
        description="The controller of a fleet of measurement probes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fleet-controller {__version__}")
    parser.add_argument("--verbose", "-v", action="store_true", help="log what happens, to standard error")
    commands_ = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands_)
    _add_serve(commands_)
    _add_check(commands_)
    _add_apply(commands_)
    _add_status(commands_)
    _add_measure(commands_)
    _add_quarantine(commands_)
    _add_lab(commands_)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse has no public name for what add_subparsers gives


def _add(
    to: _Commands[argparse.ArgumentParser], name: str, help_: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser = to.add_parser(name, help=help_, description=help_[0].upper() + help_[1:] + ".", allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _later(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """A command whose module is imported only when it runs: `--help` and a Ctrl-C at the start wait for nothing."""

    def run(args: argparse.Namespace) -> int:
        command: Callable[[argparse.Namespace], int] = getattr(
            import_module(f"fleet_controller.commands.{module}"), name
        )
        return command(args)

    return run


def _with_config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--config", "-c", type=Path, default=Path("controller.toml"), metavar="FILE", help="default: controller.toml"
    )
    return parser


def _with_json(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    return parser


def _add_demo(to: _Commands[argparse.ArgumentParser]) -> None:
    parser = _with_json(_add(to, "demo", "run two probes, a broker and a database on this machine", _demo))
    parser.add_argument(
        "--for", dest="for_s", type=_positive, default=90.0, metavar="S", help="how long, in seconds; default: 90"
    )
    parser.add_argument("--keep", action="store_true", help="leave it running until Ctrl-C and print the addresses")


def _add_serve(to: _Commands[argparse.ArgumentParser]) -> None:
    _with_config(_add(to, "serve", "take in what the probes report, until it is stopped", _serve))


def _add_check(to: _Commands[argparse.ArgumentParser]) -> None:
    parser = _with_json(
        _with_config(_add(to, "check", "show every mistake of the fleet file", _later("fleet", "check")))
    )
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="a fleet file; default: the one that the configuration names"
    )


def _add_apply(to: _Commands[argparse.ArgumentParser]) -> None:
    help_ = "tell the probes what the fleet file says; sends only what changed"
    parser = _with_json(_with_config(_add(to, "apply", help_, _later("fleet", "apply"))))
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")
    parser.add_argument(
        "--remove", action="store_true", help="clear the instructions of agents that the fleet file does not have"
    )


def _add_status(to: _Commands[argparse.ArgumentParser]) -> None:
    help_ = "show how each probe is; exit code 1 unless all of the fleet are measuring"
    _with_json(_with_config(_add(to, "status", help_, _later("fleet", "status"))))


def _add_measure(to: _Commands[argparse.ArgumentParser]) -> None:
    parser = _with_json(_with_config(_add(to, "measure", "ask one probe to measure now", _later("measure", "measure"))))
    parser.add_argument("agent", metavar="AGENT", help="the probe's id")
    parser.add_argument("task", metavar="TASK", help="what to measure, such as round_trip")
    parser.add_argument("--link", action="append", default=[], metavar="NAME", help="default: every link; repeatable")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME", help="who answers; repeatable")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the task; repeatable"
    )
    parser.add_argument(
        "--expires",
        type=_positive,
        default=300.0,
        metavar="S",
        help="the probe may start so long from now; default: 300",
    )
    parser.add_argument(
        "--wait", type=_positive, metavar="S", help="wait so long for the results in the database, and print them"
    )


def _add_quarantine(to: _Commands[argparse.ArgumentParser]) -> None:
    group = to.add_parser("quarantine", help="see and replay what could not be accepted", allow_abbrev=False)
    inner = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    list_ = _with_json(
        _with_config(_add(inner, "list", "list what is held, newest first", _later("quarantine", "list_")))
    )
    list_.add_argument("--reason", metavar="WORD", help="only what is held for this reason")
    list_.add_argument("--limit", type=int, default=100, metavar="N", help="default: 100")
    show = _with_json(_with_config(_add(inner, "show", "show one item and its payload", _later("quarantine", "show"))))
    show.add_argument("id", type=int, metavar="ID")
    replay = _with_json(_with_config(_add(inner, "replay", "try again after a fix", _later("quarantine", "replay"))))
    which = replay.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", nargs="*", type=int, default=[], metavar="ID")
    which.add_argument("--reason", metavar="WORD", help="all that is held for this reason")
    which.add_argument("--all", action="store_true", help="all that is held")


def _add_lab(to: _Commands[argparse.ArgumentParser]) -> None:
    group = to.add_parser("lab", help="measure over emulated lines of known quality (as root)", allow_abbrev=False)
    inner = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    list_ = _add(inner, "list", "list the lines that there are", _later("lab", "list_"))
    run = _add(inner, "run", "run one task over one line, configured against measured", _later("lab", "run"))
    run.add_argument("profile", metavar="PROFILE", help="see `lab list`")
    run.add_argument("task", metavar="TASK", help="such as round_trip")
    run.add_argument(
        "--set",
        "-p",
        dest="parameter",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the task; repeatable",
    )
    run.add_argument("--peer", choices=("peer", "nginx"), default="peer", help="who answers; default: our own peer")
    run.add_argument(
        "--shaper", choices=("emulator", "kernel"), default="emulator", help="kernel: rate and buffer only"
    )
    run.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of losses, jitter and wandering rates; default: 1"
    )
    run.add_argument("--runs", type=_count, default=1, metavar="N", help="default: 1")
    all_ = _add(inner, "matrix", "run round_trip and capacity over all lines", _later("lab", "run_matrix"))
    all_.add_argument("--profiles", metavar="A,B", help="default: all; with --file those of the file")
    all_.add_argument("--nginx", action="store_true", help="capacity against nginx instead of our own peer")
    all_.add_argument("--runs", type=_count, default=2, metavar="N", help="default: 2")
    _with_json(_add(inner, "check", "measure the emulated line's own errors", _later("lab", "check")))
    for parser in (list_, run, all_):
        _with_json(parser).add_argument(
            "--file",
            type=Path,
            metavar="TOML",
            help="profiles of your own, beside the built-in ones; one of the same name replaces the built-in one",
        )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of runs")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def _demo(args: argparse.Namespace) -> int:
    from fleet_controller.demo.run import main_demo  # noqa: PLC0415 - `status` has two seconds and needs none of it

    return main_demo(args)


def _serve(args: argparse.Namespace) -> int:
    # A reload asked for while this still starts must not end it: the fleet file is read later than this anyway.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from fleet_controller.controller import serve  # noqa: PLC0415 - as above

    config = load(args.config)
    logging.getLogger().setLevel(logging.DEBUG if args.verbose else config.log_level)
    serve(config)
    return OK


if __name__ == "__main__":
    sys.exit(main())
