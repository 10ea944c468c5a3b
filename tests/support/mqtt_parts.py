"""A minimal controller, an agent's publisher on a real spool, and a relay that can fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import msgspec
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from spool_parts import BOOT_A, LIMITS, ROOMY

from fleet_controller.lab.services import Mosquitto
from probe import config
from probe.clock import Instant, SystemClock
from probe.messages import AgentState, Leaf, Receipt, Report, Result, Status, topic
from probe.publish.publisher import Publisher
from probe.publish.window import Pace
from probe.spool.spool import Batch, Spool

AGENT_ID = "probe-1"
WAIT_S = 30.0
LOG = logging.getLogger("probe")
# A publisher in a hurry. Without receipts nothing goes again within a test.
QUICK = Pace(
    resend_first_s=600.0,
    reconnect_first_s=0.1,
    reconnect_max_s=0.3,
    refused_first_s=0.2,
    refused_max_s=0.4,
    will_delay_s=1,
)
Changes = dict[str, Any]


class Watched:
    """Something that changes, and that a test can wait for. Made inside the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Say so, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._changed.set)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at after each change."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await self._changed.wait()
                self._changed.clear()


class Desk(Watched):
    """A controller that counts what it gets, and sends receipts while `receipting`."""

    def __init__(self, broker: Mosquitto, *, receipting: bool = True, subscribing: bool = True) -> None:
        super().__init__()
        self.receipting = receipting
        self.ready = False
        self.seen: Counter[tuple[str, int]] = Counter()
        self.report_sizes: list[int] = []
        self.report_bytes: list[int] = []
        self.statuses: list[tuple[Status, bool]] = []
        self.progress = 0
        self._leaves: tuple[Leaf, ...] = ("report", "status", "progress") if subscribing else ("status",)
        self._floors: dict[str, int] = {}
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "controller", protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(1000)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho leaves it untyped
        properties.SessionExpiryInterval = 3600
        self._client.connect(broker.host, broker.port, clean_start=False, properties=properties)
        self._client.loop_start()

    def close(self) -> None:
        """Leave."""
        self._client.disconnect()
        self._client.loop_stop()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2)  # the old one closes its sockets as it goes

    def send(self, leaf: Leaf, payload: bytes, *, retain: bool = False) -> None:
        """Publish to the agent."""
        self._client.publish(topic(AGENT_ID, leaf), payload, qos=1, retain=retain)

    def send_receipt(self, space: str) -> None:
        """Name everything that was seen of one space."""
        numbers = sorted(number for name, number in self.seen if name == space)
        contiguous = self._floors[space] - 1
        while contiguous + 1 in numbers:
            contiguous += 1
        beyond = tuple((number, number) for number in numbers if number > contiguous)
        receipt = Receipt(agent_id=AGENT_ID, sequence_space=space, contiguous=contiguous, beyond=beyond)
        self.send("receipt", msgspec.json.encode(receipt))

    def states(self) -> list[AgentState]:
        """The states that the agent was said to have, in order."""
        return [status.state for status, _ in self.statuses]

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(topic(AGENT_ID, leaf), 1) for leaf in self._leaves])

    def _on_subscribe(self, *_: Any) -> None:
        self.ready = True
        self.changed()

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        if message.topic.endswith("/status"):
            self.statuses.append((msgspec.json.decode(message.payload, type=Status), message.retain))
        elif message.topic.endswith("/progress"):
            self.progress += 1
        else:
            self._take(bytes(message.payload))
        self.changed()

    def _take(self, payload: bytes) -> None:
        report = msgspec.json.decode(payload, type=Report)
        self.report_sizes.append(len(report.entries))
        self.report_bytes.append(len(payload))
        self._floors[report.sequence_space] = report.sequence_floor
        for entry in report.entries:
            msgspec.json.decode(bytes(entry.result), type=Result)
            self.seen[report.sequence_space, entry.sequence] += 1
        if self.receipting:
            self.send_receipt(report.sequence_space)


class WatchedSpool(Watched):
    """The real spool as an outbox, which says when a receipt was settled or a result set aside."""

    def __init__(self, spool: Spool) -> None:
        super().__init__()
        self.spool = spool

    def batch(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> Batch | None:
        """As the spool."""
        return self.spool.batch(skip, results_max, bytes_max)

    def settle(self, receipt: Receipt) -> int:
        """As the spool."""
        settled = self.spool.settle(receipt)
        self.changed()
        return settled

    def set_aside(self, space: str, sequences: Sequence[int], cause: str) -> int:
        """As the spool."""
        aside = self.spool.set_aside(space, sequences, cause)
        self.changed()
        return aside


class LogWatch(logging.Handler):
    """Makes each log record of the package, the quiet ones too, a change that can be waited for."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__(logging.DEBUG)
        self._changed = changed

    def emit(self, _record: logging.LogRecord) -> None:
        """Something was logged."""
        self._changed()


class Agent(Watched):
    """A publisher on a spool of its own. What the package logs counts as a change."""

    def __init__(
        self,
        path: Path,
        broker: config.Broker,
        *,
        pace: Pace = QUICK,
        bind_addresses: Sequence[str | None] = (None,),
    ) -> None:
        super().__init__()
        self.clock = SystemClock()
        self.spool = Spool(path / "spool.db", LIMITS, self.clock, BOOT_A, free_disk=lambda _: ROOMY)
        self.outbox = WatchedSpool(self.spool)
        self.instructions: list[bytes] = []
        self.commands: list[bytes] = []
        self.publisher = Publisher(
            broker,
            AGENT_ID,
            self.outbox,
            self._on_instruction,
            self._on_command,
            self.status,
            self.clock,
            bind_addresses,
            pace=pace,
        )

    async def __aenter__(self) -> Self:
        """Start to publish."""
        self._log_watch = LogWatch(self.changed)
        LOG.addHandler(self._log_watch)
        LOG.setLevel(logging.DEBUG)
        await self.publisher.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, and close the spool."""
        await self.publisher.stop()
        self.spool.close()
        LOG.setLevel(logging.NOTSET)
        LOG.removeHandler(self._log_watch)

    def status(self, state: AgentState) -> Status:
        """The agent's word about itself."""
        return Status(agent_id=AGENT_ID, state=state, reported_unix_ns=self.clock.wall_ns())

    def add(self, count: int, text_bytes: int = 10) -> None:
        """Put results into the spool and say so."""
        for number in range(count):
            body = Result(
                task="round_trip",
                task_version=1,
                action="delay",
                schedule="minutely",
                start_unix_ns=self.clock.wall_ns(),
                clock=self.clock.reading(),
                values={"number": number, "text": "x" * text_bytes},
            )
            self.spool.add(body, Instant.now(self.clock))
        self.publisher.notify()

    async def until_empty(self) -> None:
        """Wait until the receipts emptied the spool."""
        await self.outbox.until(lambda: self.spool.status().results == 0)

    def _on_instruction(self, payload: bytes) -> None:
        self.instructions.append(payload)
        self.changed()
        if payload == b"raise":
            raise RuntimeError("a fault of the agent")

    def _on_command(self, payload: bytes) -> None:
        self.commands.append(payload)
        self.changed()


class Relay:
    """A TCP relay before the broker. `silent` keeps both sides open and passes nothing on, as a dead NAT entry does."""

    def __init__(self, broker: Mosquitto) -> None:
        self.silent = False
        self.port = 0
        self._broker = broker
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cut everything."""
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._broker.host, self._broker.port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.create_task(self._pass_on(source, sink))
            self._tasks.add(task)

    async def _pass_on(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while chunk := await source.read(65536):
                    if not self.silent:
                        sink.write(chunk)
                        await sink.drain()
        finally:
            sink.close()


def settings_of(broker: Mosquitto, port: int | None = None, keepalive_s: int = 30) -> config.Broker:
    """The agent's [broker] for a private mosquitto."""
    return config.Broker(host=broker.host, port=port or broker.port, keepalive_s=keepalive_s)


@asynccontextmanager
async def desk_at(broker: Mosquitto, *, receipting: bool = True, subscribing: bool = True) -> AsyncIterator[Desk]:
    """A controller that has subscribed."""
    desk = Desk(broker, receipting=receipting, subscribing=subscribing)
    try:
        await desk.until(lambda: desk.ready)
        yield desk
    finally:
        await asyncio.to_thread(desk.close)


def told(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """The warnings and errors that contain these words."""
    return [r.getMessage() for r in caplog.records if r.levelname in {"WARNING", "ERROR"} and words in r.getMessage()]
