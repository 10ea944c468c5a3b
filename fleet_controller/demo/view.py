"""What the demo shows while it runs: what is being measured, and what has landed in the database."""

from __future__ import annotations

import textwrap
import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import msgspec
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console
from rich.live import Live
from rich.table import Table

from fleet_controller.demo.report import TASKS
from fleet_controller.demo.topology import DemoLink
from probe.messages import Progress, topic_filter

Counts = Counter[tuple[str, str, str]]
_KEEPALIVE_S = 30
# On no terminal a line now and then; more would bury what matters in a log.
_LINE_EVERY_S = 10.0
# Three columns and their frame in 80 characters.
_LINE_WIDTH, _NOW_WIDTH, _LANDED_WIDTH = 14, 14, 40
_NO_BREAK = "\N{NO-BREAK SPACE}"


class Watcher:
    """Hears what the probes say that they are doing. Best effort: the messages are sent at most once."""

    def __init__(self, host: str, port: int) -> None:
        self._running: dict[tuple[str, str, str], None] = {}
        self._lock = threading.Lock()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._host, self._port = host, port

    def start(self) -> Self:
        """Connect and listen, in a thread that stays in the namespace that this was called in."""
        self._client.connect_async(self._host, self._port, _KEEPALIVE_S)
        self._client.loop_start()
        return self

    def stop(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()

    def running(self) -> list[tuple[str, str, str]]:
        """What is being measured: (agent id, link, task); a task without a link has an empty one."""
        with self._lock:
            return list(self._running)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(topic_filter("progress"))

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            progress = msgspec.json.decode(message.payload, type=Progress)
        except msgspec.MsgspecError:
            return  # a view that dies of one bad message shows nothing at all
        key = (progress.agent_id, progress.link or "", progress.task)
        with self._lock:
            self._running.pop(key, None)
            if progress.state == "started":
                self._running[key] = None


class View:
    """A table that is drawn anew on a terminal; plain lines elsewhere."""

    def __init__(self, console: Console, links: Sequence[DemoLink]) -> None:
        self._console = console
        self._links = links
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        """Take the terminal."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        if self._live is not None:
            self._live.stop()

    def show(self, now_s: float, left_s: float | None, running: Sequence[tuple[str, str, str]], stored: Counts) -> None:
        """Show the state. Times are of the monotonic clock; `left_s` is None when there is no end."""
        if self._live is not None:
            self._live.update(self._table(left_s, running, stored), refresh=True)
        elif now_s >= self._next_line_s:
            self._next_line_s = now_s + _LINE_EVERY_S
            self._console.print(_line(left_s, running, stored))

    def _table(self, left_s: float | None, running: Sequence[tuple[str, str, str]], stored: Counts) -> Table:
        table = Table(title=f"fleet-controller demo: {_left(left_s)}", caption=f"{stored.total()} results in InfluxDB")
        # Of a fixed width: nothing jumps when a measurement begins or ends, and 80 columns are enough.
        for heading, width in (("line", _LINE_WIDTH), ("measuring now", _NOW_WIDTH), ("in InfluxDB", _LANDED_WIDTH)):
            table.add_column(heading, min_width=width)
        for link in self._links:
            now = [task for agent, name, task in running if agent == link.agent_id and name in {link.name, ""}]
            line = f"{link.agent_id}\n{link.name}"
            table.add_row(line, "\n".join(now) or "·", _landed(link, stored), end_section=True)
        return table


def _landed(link: DemoLink, stored: Counts) -> str:
    """Each task with its count, in lines; a count is never apart from its task."""
    by_task = ((task, stored[link.agent_id, "" if task == "host" else link.name, task]) for task in TASKS)
    words = "  ".join(f"{task}{_NO_BREAK}{count}" for task, count in by_task)
    return "\n".join(textwrap.wrap(words, _LANDED_WIDTH)).replace(_NO_BREAK, " ")


def _line(left_s: float | None, running: Sequence[tuple[str, str, str]], stored: Counts) -> str:
    by_task: Counter[str] = Counter()
    for (_, _, task), count in stored.items():
        by_task[task] += count
    landed = ", ".join(f"{task} {by_task[task]}" for task in TASKS)
    now = ", ".join(" ".join(filter(None, what)) for what in running) or "nothing"
    return f"{_left(left_s)}: in InfluxDB {landed}; measuring {now}"


def _left(left_s: float | None) -> str:
    return "running until Ctrl-C" if left_s is None else f"{max(left_s, 0):.0f} s left"
