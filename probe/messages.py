"""THE CONTRACT between probe and controller: every message, every word of the closed vocabularies, every topic.

JSON on the wire, frozen structs in the code. Times are integers of nanoseconds since 1970-01-01 UTC
(`_unix_ns`); JSON has no type that keeps a nanosecond and a time zone any better. Absent is `None`: never 0,
-1 or NaN. The wire is read tolerantly: an unknown field is skipped, a new field has a default, and each result of
a report is decoded on its own, so that one that is not understood spoils no other.
"""

from __future__ import annotations

import re
import zlib
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec

SCHEMA_VERSION: Final = 1

# The broker refuses a packet over 256 KiB; a report stays clear of that with its topic and properties.
REPORT_BYTES_MAX: Final = 200 * 1024
PACKET_BYTES_MAX: Final = 256 * 1024

# A shard has one owner at a time. 32 lets a fleet grow to 32 controllers without a change of topics.
SHARDS: Final = 32

# A host name label: it is the MQTT client id, the certificate's CN and a topic level at once.
AGENT_ID_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
# Names of links, peers, schedules and actions. They become tags and topic levels.
NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9_.-]{0,30}[a-z0-9])?$"

# Commands are nobody's schedule: they stand under this name in results and counters.
COMMAND_SCHEDULE: Final = "command"
# Bounds of what one device is asked to do: an agent refuses an instruction beyond them. A real one has a tenth of each;
# a runaway one must not take memory.
SCHEDULES_MAX: Final = 64
PEERS_MAX: Final = 256
SUPPRESSIONS_MAX: Final = 64
LINKS_MAX: Final = 16
MEASUREMENTS_MAX: Final = 256  # of one slot of a schedule, on one link

AgentId = str
LinkName = str
PeerName = str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The base of what travels: immutable, tolerant of unknown fields.

    The parts of a message leave out what has its default value; whole messages write everything, because a
    `schema_version` that were left out would be read as the reader's own.
    """


class Operation(StrEnum):
    """The step of a measurement at which the network said no."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    TLS = "tls"
    SEND = "send"
    RECEIVE = "receive"
    REQUEST = "request"
    TRANSFER = "transfer"


class FailureKind(StrEnum):
    """How the network said no. A closed list: a new kind is a change of this contract."""

    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    REFUSED = "refused"
    RESET = "reset"
    CLOSED = "closed"
    NETWORK_UNREACHABLE = "network_unreachable"
    HOST_UNREACHABLE = "host_unreachable"
    LINK_LOST = "link_lost"
    ADDRESS_UNAVAILABLE = "address_unavailable"
    PERMISSION_DENIED = "permission_denied"
    MESSAGE_TOO_LONG = "message_too_long"
    NAME_NOT_FOUND = "name_not_found"
    NO_ANSWER = "no_answer"
    SERVER_FAILURE = "server_failure"
    QUERY_REFUSED = "query_refused"
    MALFORMED = "malformed"
    CERTIFICATE_INVALID = "certificate_invalid"
    HANDSHAKE_FAILED = "handshake_failed"
    HTTP_STATUS = "http_status"
    REDIRECTED = "redirected"
    PEER_BUSY = "peer_busy"
    INTERCEPTED = "intercepted"
    OTHER = "other"


class NotRunReason(StrEnum):
    """Why a measurement was not made. None of these says anything about the line's quality."""

    OVERLAP = "overlap"
    SUPPRESSED = "suppressed"
    BUDGET = "budget"
    LINK_DOWN = "link_down"
    BUSY_LINE = "busy_line"
    NO_SLOT = "no_slot"
    TOOL_MISSING = "tool_missing"
    HOST_HOT = "host_hot"
    CLOCK = "clock"
    MISSED = "missed"
    INTERRUPTED = "interrupted"
    UNKNOWN_TASK = "unknown_task"
    UNKNOWN_LINK = "unknown_link"
    UNKNOWN_PEER = "unknown_peer"
    BAD_PARAMETERS = "bad_parameters"
    TARGET_REFUSED = "target_refused"
    TASK_TIMED_OUT = "task_timed_out"
    TASK_CRASHED = "task_crashed"


class Failure(Message, frozen=True):
    """The network said no. This is data: it counts in success ratios."""

    operation: Operation
    kind: FailureKind
    detail: str = ""


class NotRun(Message, frozen=True):
    """The measurement was not made. It never enters a baseline and is always visible in coverage."""

    reason: NotRunReason
    detail: str = ""


class ClockState(StrEnum):
    """How far the result's start time can be trusted."""

    SYNCHRONISED = "synchronised"  # the kernel says that a time source steers it
    CORRECTED = "corrected"  # taken on a wrong clock, stamped later from the boot-time clock
    UNSYNCHRONISED = "unsynchronised"  # nobody vouches for it


class ClockReading(Message, frozen=True):
    """The clock's state when the measurement started.

    `max_error_s` is the kernel's own bound (adjtimex `maxerror`), absent when it gives none.
    """

    state: ClockState
    max_error_s: float | None = None


class HostLimit(StrEnum):
    """What of the probe itself limited a measurement, so that its figure says less about the line."""

    CPU = "cpu"  # the thread that measured had no more of a core, or none for too long
    THERMAL = "thermal"  # the same, while the firmware slowed the host down (heat or under-voltage)
    CGROUP = "cgroup"  # the CPU quota of its own control group stopped it
    STEAL = "steal"  # the hypervisor gave the core to somebody else
    SOFTIRQ = "softirq"  # a core was full of the kernel's own packet work
    MEMORY = "memory"  # everything on the host waited for memory
    NIC = "nic"  # the rate came up to the negotiated speed of the interface


class Fitness(Message, frozen=True):
    """Whether the host was fit to measure: a result from a busy or throttled host says so.

    Every field is absent where the host has no such figure. Ratios are shares (0..1) of the measurement's time:
    `busiest_core_ratio` busy, `steal_ratio` and `softirq_ratio` of whichever core had most of it; `cpu_pressure_ratio`
    some task of the host waited for a core (PSI); `cpu_wait_ratio` the thread that measured did; `own_cpu_ratio` it
    ran (above 1: several threads); `cgroup_throttled_ratio` is of the accounting periods of the own control group,
    those in which its quota was used up. `cross_traffic_bytes` is what others moved over the link meanwhile, both
    ways, `cross_traffic_before_bps` their rate shortly before; `own_load` says that a heavy task of this probe loaded
    the same link at the same time. `host_limited` says that the instrument was, or may have been, the limit, and
    `host_limited_by` what of it.
    """

    busiest_core_ratio: float | None = None
    throttled: bool | None = None
    nic_speed_bps: int | None = None
    cross_traffic_bytes: int | None = None
    own_load: bool = False
    cross_traffic_before_bps: int | None = None
    steal_ratio: float | None = None
    softirq_ratio: float | None = None
    cpu_pressure_ratio: float | None = None
    cpu_wait_ratio: float | None = None
    own_cpu_ratio: float | None = None
    cgroup_throttled_ratio: float | None = None
    host_limited: bool | None = None
    host_limited_by: HostLimit | None = None


class Result(Message, frozen=True):
    """One measurement: exactly one of `values`, `failure`, `not_run`.

    `variant` has the parameters that tell one series of the task from another (those typed `Literal` in the task's
    `Parameters`, such as direction, method and ip_version), as strings. `values` is a plain mapping, converted by
    task name where it is read. `bytes_sent`/`bytes_received` are what the measurement cost, headers of the
    transport excluded. `duration_s` comes from the monotonic clock.
    """

    task: str
    task_version: int
    action: str
    schedule: str
    start_unix_ns: int
    clock: ClockReading
    link: LinkName | None = None
    peer: PeerName | None = None
    variant: dict[str, str] = {}
    cycle_number: int | None = None
    command_id: str | None = None
    duration_s: float | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    fitness: Fitness = Fitness()
    values: dict[str, Any] | None = None
    failure: Failure | None = None
    not_run: NotRun | None = None

    def __post_init__(self) -> None:
        """Refuse a result that says two things, or nothing."""
        said = [n for n in ("values", "failure", "not_run") if getattr(self, n) is not None]
        if len(said) != 1:
            raise ValueError(f"a result has exactly one of values, failure, not_run; this one has {said or 'none'}")


class Entry(Message, frozen=True):
    """One numbered result in a report. The number is the sequence within the report's `sequence_space`."""

    sequence: int
    result: msgspec.Raw


class Report(Message, frozen=True, omit_defaults=False):
    """What an agent sends to the collector.

    `sequence_space` names the counter that the sequences come from: one per boot and spool file, so that a power
    cut that took the last writes with it can never give two results one number. Sequences start at 1.
    `sequence_floor` is the lowest number of that space which the agent may still send: all below it was taken by the
    controller or is lost for good, and the controller need not wait for it.
    """

    agent_id: AgentId
    sequence_space: str
    sequence_floor: int
    entries: tuple[Entry, ...]
    sent_unix_ns: int
    agent_version: str = ""
    schema_version: int = SCHEMA_VERSION


class Receipt(Message, frozen=True, omit_defaults=False):
    """The controller's word that the database has the points: only this lets the agent delete.

    Everything up to `contiguous` was taken, and the inclusive ranges of `beyond` too. What was quarantined counts
    as taken: it is on the controller's disk.
    """

    agent_id: AgentId
    sequence_space: str
    contiguous: int
    beyond: tuple[tuple[int, int], ...] = ()
    schema_version: int = SCHEMA_VERSION


# How a peer speaks bulk transfer: HTTP as our own peer and nginx do, LibreSpeed's backend, M-Lab's ndt7.
BulkProtocol = Literal["http", "librespeed", "ndt7"]
# The paths of each: of a download, of an upload.
BULK_PATHS: Final[dict[BulkProtocol, tuple[str, str]]] = {
    "http": ("/download", "/upload"),
    "librespeed": ("/backend/garbage.php", "/backend/empty.php"),
    "ndt7": ("/ndt/v7/download", "/ndt/v7/upload"),
}


class Peer(Message, frozen=True):
    """Who answers a measurement, as an agent needs to know it.

    `tls` says that `http_port` speaks TLS; `protocol` is a `BulkProtocol`, or one that came after this agent.
    """

    name: PeerName
    host: str
    stamp_port: int = 862  # RFC 8762 section 4.1
    http_port: int = 80
    tls: bool = False
    download_path: str = "/download"
    upload_path: str = "/upload"
    protocol: str = "http"
    small_path: str = "/small"  # an object of one byte (draft-ietf-ippm-responsiveness)
    # The name of the key that authenticates STAMP with this peer (RFC 8762 section 4.4); the key itself is a file on
    # the device and travels in no message. Empty: unauthenticated.
    stamp_key: str = ""


class Action(Message, frozen=True):
    """A task in a schedule. Run for each of `peers` in turn; without peers, once."""

    name: str
    task: str
    peers: tuple[PeerName, ...] = ()
    parameters: dict[str, Any] = {}


class Schedule(Message, frozen=True):
    """When its actions run: once in every slot of `period_s`, at an instant of the agent's own.

    The actions of one schedule run in order on each of `links` (empty: on every link of the agent); tasks that
    need no link run once per slot.
    """

    name: str
    period_s: float
    actions: tuple[Action, ...]
    links: tuple[LinkName, ...] = ()


class Suppression(Message, frozen=True):
    """The order not to measure now. An empty `schedules` means all of them.

    Either one window (`start_unix_ns`, `end_unix_ns`; an absent end is open) or one that returns every day
    (`daily_start_s`, `daily_end_s`: seconds after 00:00 UTC; it may cross midnight).
    """

    name: str
    schedules: tuple[str, ...] = ()
    start_unix_ns: int | None = None
    end_unix_ns: int | None = None
    daily_start_s: int | None = None
    daily_end_s: int | None = None


class Instruction(Message, frozen=True, omit_defaults=False):
    """The retained desired state of one agent. `revision` is a digest of its content."""

    agent_id: AgentId
    revision: str
    issued_unix_ns: int
    peers: tuple[Peer, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    suppressions: tuple[Suppression, ...] = ()
    schema_version: int = SCHEMA_VERSION


class Command(Message, frozen=True, omit_defaults=False):
    """One on-demand action. An agent that reads it after `expires_unix_ns` leaves it alone."""

    command_id: str
    action: Action
    expires_unix_ns: int
    links: tuple[LinkName, ...] = ()
    schema_version: int = SCHEMA_VERSION


class AgentState(StrEnum):
    """What an agent's last word was. `LOST` is its Last Will: the broker says it when the agent cannot."""

    ONLINE = "online"
    STOPPED = "stopped"
    LOST = "lost"


class SpoolStatus(Message, frozen=True):
    """What waits in the spool, and what it had to drop since it was made."""

    results: int
    bytes: int
    oldest_unix_ns: int | None = None
    dropped_age: int = 0
    dropped_bytes: int = 0
    dropped_disk: int = 0
    set_aside: int = 0
    lost_writes: int = 0


class ScheduleStatus(Message, frozen=True):
    """Counters of one schedule on one link since the agent started (RFC 8194 `lmapt`)."""

    schedule: str
    link: LinkName | None
    invocations: int = 0
    overlaps: int = 0
    suppressions: int = 0
    failures: int = 0


class LinkStatus(Message, frozen=True):
    """What the agent sees of one of its links."""

    link: LinkName
    interface: str
    up: bool
    addresses: tuple[str, ...] = ()


class Status(Message, frozen=True, omit_defaults=False):
    """The retained word of an agent about itself, and its Last Will."""

    agent_id: AgentId
    state: AgentState
    reported_unix_ns: int
    agent_version: str = ""
    boot_id: str = ""
    started_unix_ns: int | None = None
    instruction_revision: str | None = None
    instruction_problem: str | None = None
    clock: ClockReading | None = None
    spool: SpoolStatus | None = None
    schedules: tuple[ScheduleStatus, ...] = ()
    links: tuple[LinkStatus, ...] = ()
    schema_version: int = SCHEMA_VERSION


class Progress(Message, frozen=True, omit_defaults=False):
    """What an agent does at this moment, for a live view. Sent at most once, never kept."""

    agent_id: AgentId
    task: str
    state: Literal["started", "finished"]
    at_unix_ns: int
    link: LinkName | None = None
    peer: PeerName | None = None
    outcome: Literal["values", "failure", "not_run"] | None = None
    schema_version: int = SCHEMA_VERSION


def bulk_protocol(peer: Peer) -> BulkProtocol | None:
    """What is spoken with a peer; absent when this agent is older than it."""
    return next((protocol for protocol in BULK_PATHS if protocol == peer.protocol), None)


Leaf = Literal["report", "status", "instruction", "command", "progress", "receipt"]
_TOPIC = re.compile(r"^fleet/v1/([0-9]{1,2})/([^/]+)/([a-z]+)$")


def shard_of(agent_id: AgentId) -> int:
    """The shard of an agent: CRC-32 of its id modulo 32, stable for ever and computable anywhere."""
    return zlib.crc32(agent_id.encode()) % SHARDS


def topic(agent_id: AgentId, leaf: Leaf) -> str:
    """The topic of one kind of message of one agent."""
    return f"fleet/v1/{shard_of(agent_id)}/{agent_id}/{leaf}"


def topic_filter(leaf: Leaf, shard: int | None = None) -> str:
    """The subscription for one kind of message of every agent, or of those of one shard."""
    return f"fleet/v1/{'+' if shard is None else shard}/+/{leaf}"


def parse_topic(name: str) -> tuple[AgentId, str]:
    """Take the agent id and the leaf out of a topic.

    Raises:
        ValueError: the topic is not one of this contract, or stands under another agent's shard.
    """
    match = _TOPIC.match(name)
    if match is None:
        raise ValueError(f"topic {name!r} is not fleet/v1/<shard>/<agent_id>/<leaf>")
    shard, agent_id, leaf = int(match[1]), match[2], match[3]
    if re.match(AGENT_ID_PATTERN, agent_id) is None:
        raise ValueError(f"topic {name!r} has no valid agent id")
    if shard != shard_of(agent_id):
        raise ValueError(f"topic {name!r}: agent {agent_id} belongs to shard {shard_of(agent_id)}")
    return agent_id, leaf


def encode(message: Message) -> bytes:
    """The wire form of a message."""
    return msgspec.json.encode(message)
