"""Deliver what the outbox keeps, and hear what the controller wants.

Reports go to the broker a few at a time and are forgotten only on the controller's receipt. The connection is watched,
and made anew with a random, growing pause, over each of the given source addresses in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final, Protocol, TypeVar

import msgspec

import probe
from probe import config
from probe.clock import Clock
from probe.errors import SpoolError
from probe.messages import (
    REPORT_BYTES_MAX,
    AgentId,
    AgentState,
    Progress,
    Receipt,
    Report,
    Status,
    encode,
    topic,
)
from probe.publish.session import Farewell, Session, Welcome, Will, remedy
from probe.publish.window import Guilty, Outgoing, Pace, Window

log = logging.getLogger(__name__)
T = TypeVar("T")

# A report's own fields, its topic and the packet's header: what is left of a packet is for entries.
_ENVELOPE_BYTES: Final = 1024
# Receipts are cumulative: of more than this the oldest says nothing that the newest does not.
_RECEIPTS_MAX: Final = 256
# Progress is for a live view: when it does not leave at once it is of no use.
_PROGRESS_MAX: Final = 20
# MQTT lets a broker answer late, but a ping is answered within one keepalive; paho gives up after two.
_SILENT_KEEPALIVES: Final = 2.5
# After a failed read of the outbox. It may be a full disk, which is somebody's to mend.
_OUTBOX_PAUSE_S: Final = 5.0
# A connection that is being made cannot be interrupted; one that stands ends at once. Nobody waits longer for either.
_JOIN_S: Final = 1.0
# Nothing here wakes up more often than this for a timer.
_TICK_S: Final = 1.0
# Reasons told since the last connection; a broker that finds ever new words is not worth a line each.
_REASONS_TOLD_MAX: Final = 20


class Outbox(Protocol):
    """What the publisher needs of the spool. Synchronous: called in an executor."""

    def batch(self, skip: Sequence[tuple[int, int]], results_max: int, bytes_max: int) -> Outgoing | None:
        """The oldest rows outside `skip`, within these bounds."""

    def settle(self, receipt: Receipt) -> int:
        """Delete what the receipt names; returns how many."""

    def set_aside(self, space: str, sequences: Sequence[int], cause: str) -> int:
        """Take results out of the line that can never be delivered."""


class Publisher:
    """The agent's side of MQTT. Everything but the outbox is called in the asyncio loop that `start` ran in.

    Args:
        broker: where to.
        agent_id: this agent, which is also the client id.
        outbox: where results wait.
        on_instruction: takes the retained Instruction's bytes, at each connection and change.
        on_command: takes a Command's bytes.
        status: makes the agent's word about itself. Called in the loop: it must not block.
        clock: the clocks.
        bind_addresses: source addresses to try in turn; `None` is the host's choice. Read anew at each attempt.
        executor: runs the outbox's methods; absent, the loop's own threads do.
        pace: times and bounds.
    """

    def __init__(
        self,
        broker: config.Broker,
        agent_id: AgentId,
        outbox: Outbox,
        on_instruction: Callable[[bytes], None],
        on_command: Callable[[bytes], None],
        status: Callable[[AgentState], Status],
        clock: Clock,
        bind_addresses: Sequence[str | None] = (None,),
        *,
        executor: Executor | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.dropped_progress = 0
        self._broker = broker
        self._agent_id = agent_id
        self._outbox = outbox
        self._status = status
        self._clock = clock
        self._bind_addresses = bind_addresses
        self._executor = executor
        self._pace = pace or Pace()
        self._spread = random.Random()  # noqa: S311 - jitter, not a secret; each process its own
        self._window = Window(self._pace, clock.monotonic_s, self._spread)
        self._handlers = {
            topic(agent_id, "instruction"): on_instruction,
            topic(agent_id, "command"): on_command,
            topic(agent_id, "receipt"): self._take_receipt,
        }
        self._receipts: deque[Receipt] = deque(maxlen=_RECEIPTS_MAX)
        self._guilty: deque[Guilty] = deque(maxlen=_RECEIPTS_MAX)
        self._statuses: set[int] = set()
        self._progress: set[int] = set()
        self._status_due = False
        # Whether the outbox may have something to send: it is on disk, and not to be asked after every message.
        self._may_have_more = True
        self._reasons_told: set[str] = set()
        self._outbox_failed = False
        self._refused = False
        self._stopping = False
        self._farewell = Farewell("")
        self._bind_index = 0
        self._attempts = 0
        self._session: Session | None = None
        self._welcome: Welcome | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._over = asyncio.Event()

    async def start(self) -> None:
        """Begin to connect and to publish; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._keep_connected()), asyncio.create_task(self._keep_publishing())]

    async def stop(self) -> None:
        """Leave the retained status `stopped`, say goodbye and end, within a bounded time."""
        if not self._tasks:
            return
        self._stopping = True
        connecting, publishing = self._tasks
        publishing.cancel()
        try:
            async with asyncio.timeout(self._pace.stop_s):
                await self._say_stopped()
        except TimeoutError:
            log.warning("The broker did not confirm the goodbye; it will call this probe lost")
        connecting.cancel()
        await asyncio.gather(connecting, publishing, return_exceptions=True)
        if self._session is not None:
            self._session.abandon()
            await asyncio.to_thread(self._session.join, _JOIN_S)
            self._session, self._welcome = None, None
        self._tasks = []

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and it is not known to be lost."""
        return self._welcome is not None

    @property
    def alive(self) -> bool:
        """Whether the work of connecting and publishing goes on; the connection itself may be down."""
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    def notify(self) -> None:
        """There are new rows in the outbox."""
        self._may_have_more = True
        self._work.set()

    def publish_status(self) -> None:
        """Publish the agent's status as soon as there is a connection; a newer one takes its place meanwhile."""
        self._status_due = True
        self._work.set()

    def publish_progress(self, progress: Progress) -> None:
        """Say what goes on, at most once; dropped when it cannot leave now."""
        if self._session is None or self._welcome is None or len(self._progress) >= _PROGRESS_MAX:
            self.dropped_progress += 1
            return
        payload = encode(progress)
        self._progress.add(self._session.publish(topic(self._agent_id, "progress"), payload, qos=0))

    # What the session tells

    def welcomed(self, session: Session, welcome: Welcome) -> None:
        """The broker accepted the connection."""
        if session is not self._session:
            return
        self._welcome = welcome
        self._reasons_told.clear()
        at = (self._broker.host, self._broker.port)
        log.info("Connected to the broker at %s:%d; it takes %d bytes a packet", *at, welcome.packet_bytes_max)
        session.subscribe(*self._handlers)
        if not welcome.session_present:
            self._window.session_forgotten()
        self._may_have_more = True
        self.publish_status()

    def acknowledged(self, session: Session, message_id: int, failure: str | None) -> None:
        """The broker answered a publication."""
        if session is not self._session:
            return
        self._progress.discard(message_id)
        self._statuses.discard(message_id)
        is_report = self._window.acknowledged(message_id, accepted=failure is None)
        if is_report:
            self._note_answer(failure)
            self._may_have_more = self._may_have_more or failure is not None  # what was refused goes again
        self._work.set()

    def heard(self, session: Session, name: str, payload: bytes) -> None:
        """A message came."""
        handler = self._handlers.get(name)
        if session is not self._session or handler is None:
            return
        try:
            handler(payload)
        except Exception:
            log.exception("A message on %s could not be handled", name)

    def ended(self, session: Session, farewell: Farewell) -> None:
        """The connection is over, or could not be made."""
        if session is not self._session:
            return
        self._farewell = farewell
        self._over.set()

    # Connecting

    async def _keep_connected(self) -> None:
        while not self._stopping:
            try:
                await self._connect_once()
            except Exception:
                log.exception("Connecting failed in a way that it should not")
            bound_s = min(self._pace.reconnect_max_s, self._pace.reconnect_first_s * 2.0 ** min(self._attempts, 30))
            self._attempts += 1
            # Full jitter: after an outage a fleet must not come back in step.
            await asyncio.sleep(self._spread.uniform(0.0, bound_s))

    def _last_will(self) -> Status:
        """What will still be true when the broker says it: not how full the spool is or what is in force by then."""
        status = self._status(AgentState.LOST)
        return Status(
            agent_id=self._agent_id,
            state=AgentState.LOST,
            reported_unix_ns=status.reported_unix_ns,
            agent_version=status.agent_version,
            boot_id=status.boot_id,
            started_unix_ns=status.started_unix_ns,
        )

    async def _connect_once(self) -> None:
        """One connection from its beginning to its end."""
        self._over.clear()
        will = Will(topic(self._agent_id, "status"), encode(self._last_will()), self._pace.will_delay_s)
        addresses = self._bind_addresses or (None,)
        address = addresses[self._bind_index % len(addresses)]
        session = Session(self._broker, self._agent_id, will, address, self, self._loop)
        self._session = session
        started_s = self._clock.monotonic_s()
        session.start()
        farewell = await self._watch(session, started_s)
        if self._welcome is None:
            self._bind_index += 1  # the other line may work
        elif self._clock.monotonic_s() - started_s >= self._pace.stable_s:
            self._attempts = 0
        self._note_end(farewell)

    async def _watch(self, session: Session, started_s: float) -> Farewell:
        """Wait for the connection's end; end it when the broker is not heard any more."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_TICK_S, self._broker.keepalive_s / 4)):
                    await self._over.wait()
            if self._over.is_set():
                return self._farewell
            problem = self._problem(session, started_s)
            if problem is not None:
                session.abandon()
                return Farewell(problem)

    def _problem(self, session: Session, started_s: float) -> str | None:
        if not session.alive:
            return "the thread of the MQTT client has died"
        if self._welcome is None:
            too_long = self._clock.monotonic_s() - started_s > self._pace.connect_s
            return f"no answer within {self._pace.connect_s:g} s" if too_long else None
        limit_s = _SILENT_KEEPALIVES * (self._welcome.keepalive_s or self._broker.keepalive_s)
        return "the broker has fallen silent" if session.silent_s() > limit_s else None

    def _note_end(self, farewell: Farewell) -> None:
        was_connected = self.connected
        self._session, self._welcome = None, None
        self._statuses.clear()
        self._progress.clear()
        guilty = self._window.connection_ended(by_word=farewell.by_word)
        self._may_have_more = True
        if guilty is not None:
            self._guilty.append(guilty)
        self._work.set()
        if self._stopping:
            log.info("Left the broker: %s", farewell.reason)
            return
        if was_connected:
            log.warning("Lost the broker: %s", farewell.reason)
            return
        hint = remedy(farewell, self._broker)
        self._tell(f"Cannot connect to {self._broker.host}:{self._broker.port}: {farewell.reason}", hint)

    def _note_answer(self, failure: str | None) -> None:
        if failure is not None and not self._refused:
            log.warning("The broker does not take reports: %s; they stay here and are offered again", failure)
        elif failure is None and self._refused:
            log.info("The broker takes reports again")
        self._refused = failure is not None

    def _tell(self, problem: str, hint: str = "") -> None:
        """Log a problem once until the next connection."""
        new = problem not in self._reasons_told and len(self._reasons_told) < _REASONS_TOLD_MAX
        self._reasons_told.add(problem)
        log.log(logging.WARNING if new else logging.DEBUG, "%s%s", problem, f" ({hint})" if hint else "")

    async def _say_stopped(self) -> None:
        session = self._session
        if session is None or self._welcome is None:
            return
        payload = encode(self._status(AgentState.STOPPED))
        message_id = session.publish(topic(self._agent_id, "status"), payload, qos=1, retain=True)
        self._statuses.add(message_id)
        while message_id in self._statuses:
            self._work.clear()
            await self._work.wait()
        if session is self._session:
            session.disconnect()
            await self._over.wait()

    # Publishing

    async def _keep_publishing(self) -> None:
        while True:
            await self._wait_for_work()
            try:
                await self._settle_receipts()
                self._may_have_more = self._window.expire() or self._may_have_more
                while await self._send_next():
                    pass
                self._outbox_failed = False
            except SpoolError as error:
                log.log(logging.DEBUG if self._outbox_failed else logging.ERROR, "The outbox failed: %s", error)
                self._outbox_failed = True
                await self._pause()
            except Exception:
                log.exception("Publishing failed in a way that it should not")
                await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(_OUTBOX_PAUSE_S)
        self._may_have_more = True  # it was asked, and could not say
        self._work.set()

    async def _wait_for_work(self) -> None:
        due_s = self._window.next_due_s()
        wait_s = None if due_s is None else max(_TICK_S, due_s - self._clock.monotonic_s())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._work.wait()
        self._work.clear()

    async def _settle_receipts(self) -> None:
        while self._receipts:
            receipt = self._receipts.popleft()
            with _kept_for_later(self._receipts, receipt):
                self._window.settled(receipt, await self._call(partial(self._outbox.settle, receipt)))
        while self._guilty:
            guilty = self._guilty.popleft()
            with _kept_for_later(self._guilty, guilty):
                await self._call(partial(self._outbox.set_aside, guilty.space, (guilty.sequence,), guilty.cause))

    async def _send_next(self) -> bool:
        """Send one message if one may go; says whether it is worth asking again."""
        session, welcome = self._session, self._welcome
        if session is None or welcome is None:
            return False
        slots = welcome.inflight_max - len(self._statuses)
        if self._status_due and slots > self._window.in_flight:
            self._send_status(session)
            return True
        room = self._window.room(slots) if self._may_have_more else 0
        if room == 0:
            return False
        self._may_have_more = False  # until it says otherwise, or somebody does meanwhile
        bytes_max = min(REPORT_BYTES_MAX, welcome.packet_bytes_max) - _ENVELOPE_BYTES
        batch = await self._call(partial(self._outbox.batch, self._window.skip(), room, bytes_max))
        if batch is None:
            return False
        self._may_have_more = True
        if session is self._session:
            self._send_report(session, batch)
        return True

    def _send_status(self, session: Session) -> None:
        self._status_due = False
        payload = encode(self._status(AgentState.ONLINE))
        self._statuses.add(session.publish(topic(self._agent_id, "status"), payload, qos=1, retain=True))

    def _send_report(self, session: Session, batch: Outgoing) -> None:
        report = Report(
            agent_id=self._agent_id,
            sequence_space=batch.space,
            sequence_floor=batch.floor,
            entries=batch.entries,
            sent_unix_ns=self._clock.wall_ns(),
            agent_version=probe.__version__,
        )
        message_id = session.publish(topic(self._agent_id, "report"), encode(report), qos=1)
        self._window.handed_over(message_id, batch)

    def _take_receipt(self, payload: bytes) -> None:
        try:
            receipt = msgspec.json.decode(payload, type=Receipt)
        except msgspec.DecodeError as error:
            self._tell(f"Ignored a receipt that cannot be read: {error}")
            return
        if receipt.agent_id == self._agent_id:
            self._receipts.append(receipt)
            self._work.set()

    async def _call(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._executor, work)


@contextlib.contextmanager
def _kept_for_later(waiting: deque[T], first: T) -> Iterator[None]:
    """Put back what the outbox could not take now: else the results that it names would go over the line again."""
    try:
        yield
    except SpoolError:
        if len(waiting) != waiting.maxlen:
            waiting.appendleft(first)
        raise
