"""`fleet-probe`: the probe on the command line.

What a sub-command needs is imported when it is called: `--help` answers at once and the agent carries no more than
it uses.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from probe import __version__
from probe.errors import ProbeError

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_USAGE = 2  # argparse's own
EXIT_NOT_RUN = 3
_EXIT_INTERRUPTED = 130  # as a shell says of a program ended by SIGINT
_CONFIG = Path("/etc/fleet-probe/probe.toml")
_NS_PER_S = 1_000_000_000
_PORT_MAX = 65535

_EXAMPLES = """\
examples:
  fleet-probe check --online                     is this device ready?
  fleet-probe run                                be the agent (systemd does this)
  fleet-probe once round_trip --peer near        measure once, now, to a peer of the stored instruction
  fleet-probe once round_trip --peer 192.0.2.1 --set method=icmp --set packets=3
  fleet-probe once capacity --link mobile0 --peer 192.0.2.1:8080 --set direction=upload --json
  fleet-probe outbox                             what waits to be sent
  fleet-probe peer --http-port 8080              answer measurements of others
"""
_ONCE_EXAMPLES = """\
examples:
  fleet-probe once host
  fleet-probe once dns --link fixed0 --set name=vnnic.vn --set record_type=AAAA
  fleet-probe once round_trip --peer 192.0.2.1 --stamp-port 862
  fleet-probe once capacity --peer '[2001:db8::1]:8080' --set ip_version=6 --json
  fleet-probe once capacity --peer ndt.example.vn --peer-protocol ndt7 --peer-tls --set streams_max=1

exit status: 0 measured, 1 the network said no, 2 wrong use or configuration, 3 not run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status. What goes wrong is one line on stderr."""
    parsed = _parser().parse_args(arguments)
    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()  # the reader of our output may have gone (`| head`): that must come out here
    except ProbeError as error:
        sys.stderr.write(f"fleet-probe {parsed.command}: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # What is still to be written goes nowhere: the interpreter writes it at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleet-probe",
        description="Measure Internet access lines, unattended.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fleet-probe {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_once(commands)
    _add_check(commands)
    _add_outbox(commands)
    _add_peer(commands)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=_CONFIG, metavar="FILE", help=f"default {_CONFIG}")


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="be the agent until SIGTERM")
    _add_config(parser)
    parser.set_defaults(run=_run)


def _add_once(commands: Any) -> None:
    parser = commands.add_parser(
        "once",
        help="measure once and print the result",
        epilog=_ONCE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", metavar="TASK", help="round_trip, capacity, dns, host …")
    _add_config(parser)
    parser.add_argument("--link", metavar="NAME", help="default: the first link of the configuration")
    parser.add_argument("--peer", metavar="PEER", help="a peer's name in the stored instruction, or host[:http_port]")
    parser.add_argument("--stamp-port", type=_port, metavar="PORT", help="instead of the peer's own; default 862")
    parser.add_argument(
        "--peer-protocol",
        choices=("http", "librespeed", "ndt7"),
        default="http",
        help="what a peer given by its address speaks for capacity; default http",
    )
    parser.add_argument(
        "--peer-stamp-key",
        default="",
        metavar="NAME",
        help="of [stamp_keys]: authenticated STAMP, instead of the peer's own",
    )
    parser.add_argument("--peer-tls", action="store_true", help="a peer given by its address speaks TLS")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings", help="a parameter of the task"
    )
    parser.add_argument("--wait", type=_seconds, default=60.0, metavar="S", help="for other heavy measurements (60)")
    parser.add_argument("--json", action="store_true", help="print the result as it would travel")
    parser.set_defaults(run=_once)


def _add_check(commands: Any) -> None:
    parser = commands.add_parser("check", help="check the configuration and this device")
    _add_config(parser)
    parser.add_argument("--online", action="store_true", help="connect to the broker too")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_check)


def _add_outbox(commands: Any) -> None:
    parser = commands.add_parser("outbox", help="show what waits to be sent")
    _add_config(parser)
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="show the next N results (10)")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=_outbox)


def _add_peer(commands: Any) -> None:
    parser = commands.add_parser("peer", help="answer measurements: STAMP reflector, HTTP source and sink")
    parser.add_argument("--host", default="", metavar="ADDRESS", help="default: every address of this host")
    parser.add_argument("--http-port", type=_port_or_any, default=80, metavar="PORT", help="0: any (80)")
    parser.add_argument("--stamp-port", type=_port_or_any, default=862, metavar="PORT", help="0: any (862)")
    parser.add_argument(
        "--stamp-key-file",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="authenticate STAMP with this key (hexadecimal, chmod 600); again for a second key while one is replaced",
    )
    parser.add_argument("--tls-certificate", type=Path, metavar="FILE", help="PEM: the HTTP port then speaks TLS only")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="PEM: the certificate's key")
    parser.set_defaults(run=_peer)


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port <= _PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text} is not a port: 1 to {_PORT_MAX}")
    return port


def _port_or_any(text: str) -> int:
    return 0 if text == "0" else _port(text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return seconds


def _log_to_stderr(level: str) -> None:
    """Log lines for journald, which adds the time."""
    import logging  # noqa: PLC0415 - see the module's docstring

    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # APScheduler says at INFO that it does its work.
    logging.getLogger("apscheduler").setLevel(logging.WARNING)


def _run(arguments: argparse.Namespace) -> int:
    from probe import agent, config  # noqa: PLC0415 - see the module's docstring

    settings = config.load(arguments.config)
    _log_to_stderr(settings.log_level)
    agent.run(settings)
    return EXIT_OK


def _once(arguments: argparse.Namespace) -> int:
    from probe import config, once  # noqa: PLC0415 - see the module's docstring

    _log_to_stderr("ERROR")
    result = once.measure_once(
        config.load(arguments.config),
        once.Wish(
            task=arguments.task,
            link=arguments.link,
            peer=arguments.peer,
            stamp_port=arguments.stamp_port,
            settings=tuple(arguments.settings),
            wait_s=arguments.wait,
            peer_protocol=arguments.peer_protocol,
            peer_tls=arguments.peer_tls,
            peer_stamp_key=arguments.peer_stamp_key,
        ),
    )
    sys.stdout.write((once.as_json(result) if arguments.json else once.as_text(result)) + "\n")
    if result.values is not None:
        return EXIT_OK
    if result.not_run is None:
        return EXIT_FAILURE
    # What only the measurement itself found out is wrong use all the same.
    return EXIT_USAGE if result.not_run.reason == "bad_parameters" else EXIT_NOT_RUN


def _check(arguments: argparse.Namespace) -> int:
    from probe import check, config  # noqa: PLC0415 - see the module's docstring

    findings = check.check(config.load(arguments.config), online=arguments.online)
    if arguments.json:
        _print_json([{"what": one.what, "state": one.state, "detail": one.detail} for one in findings])
    else:
        for one in findings:
            sys.stdout.write(f"{one.state:8} {one.what:24} {one.detail}\n")
    return EXIT_FAILURE if any(one.state == "problem" for one in findings) else EXIT_OK


def _outbox(arguments: argparse.Namespace) -> int:
    import msgspec  # noqa: PLC0415 - see the module's docstring

    from probe import config  # noqa: PLC0415 - see the module's docstring
    from probe.spool.view import SpoolView  # noqa: PLC0415 - see the module's docstring

    settings = config.load(arguments.config)
    with SpoolView(Path(settings.state_dir) / "spool.db") as view:
        status, rows = view.status(), view.rows(max(arguments.limit, 0))
    if arguments.json:
        shown = [
            {"state": row.state, "space": row.space, "sequence": row.sequence, "cause": row.cause}
            | {"size_bytes": row.size_bytes, "result": msgspec.to_builtins(row.result)}
            for row in rows
        ]
        _print_json({"status": msgspec.structs.asdict(status), "rows": shown})
        return EXIT_OK
    _print_counts(msgspec.structs.asdict(status))
    for row in rows:
        result = row.result
        outcome = "values" if result.values is not None else "failure" if result.failure is not None else "not_run"
        number = "-" if row.sequence is None else str(row.sequence)
        sys.stdout.write(
            f"{row.state:9} {number:>8}  {_moment(result.start_unix_ns)}  {result.task} {result.link or '-'} "
            f"{result.peer or '-'} {outcome}{f' ({row.cause})' if row.cause else ''}\n"
        )
    return EXIT_OK


def _print_counts(counts: dict[str, Any]) -> None:
    oldest = counts.pop("oldest_unix_ns")
    sys.stdout.write(f"{counts.pop('results')} results wait, {counts.pop('bytes')} bytes on disk")
    sys.stdout.write(f", the oldest since {_moment(oldest)}\n" if oldest is not None else "\n")
    lost = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if lost:
        sys.stdout.write(f"lost so far: {lost}\n")


def _peer(arguments: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415 - see the module's docstring
    import signal  # noqa: PLC0415 - see the module's docstring

    from probe.config import read_stamp_key  # noqa: PLC0415 - see the module's docstring
    from probe.peer.serve import PeerSettings, serve  # noqa: PLC0415 - see the module's docstring
    from probe.peer.server_tls import ServerTls  # noqa: PLC0415 - see the module's docstring

    if (arguments.tls_certificate is None) != (arguments.tls_key is None):
        raise ProbeError("--tls-certificate and --tls-key belong together")
    settings = PeerSettings(
        host=arguments.host,
        http_port=arguments.http_port,
        stamp_port=arguments.stamp_port,
        stamp_keys=tuple(read_stamp_key(path) for path in arguments.stamp_key_file),
        tls=ServerTls(arguments.tls_certificate, arguments.tls_key) if arguments.tls_key else None,
    )

    def say_ready(http_port: int, stamp_port: int) -> None:
        where = arguments.host or "every address"
        sys.stdout.write(f"Answering on {where}: HTTP port {http_port}, STAMP port {stamp_port}\n")
        sys.stdout.flush()

    async def serve_until_told() -> None:
        serving = asyncio.ensure_future(serve(settings, say_ready))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
        await asyncio.wait({serving})
        if not serving.cancelled():
            serving.result()

    _log_to_stderr("INFO")
    asyncio.run(serve_until_told())
    return EXIT_OK


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


def _moment(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // _NS_PER_S, UTC).isoformat().replace("+00:00", "Z")


if __name__ == "__main__":
    sys.exit(main())
