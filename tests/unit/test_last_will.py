"""What the broker says of a probe that is lost."""

from __future__ import annotations

from typing import cast

from spool_parts import ManualClock

from probe.config import Broker
from probe.messages import AgentState, ScheduleStatus, SpoolStatus, Status, encode
from probe.publish.publisher import Outbox, Publisher

# MQTT 5 section 3.1.3.3: a will has two bytes for its length, and a client that cannot write it cannot connect.
WILL_BYTES_MAX = 65_535


def large_status(state: AgentState) -> Status:
    """A status that fits into a packet of the broker and into no will."""
    return Status(
        agent_id="hn-01",
        state=state,
        reported_unix_ns=1,
        instruction_revision="0a1b2c3d4e5f",
        instruction_problem="y" * 70_000,
        spool=SpoolStatus(results=3, bytes=4096),
        schedules=tuple(ScheduleStatus(schedule=f"s{number}", link="fixed0") for number in range(2000)),
    )


def test_the_will_fits_and_says_only_what_stays_true() -> None:
    """However large the status is, the probe can connect; a lost probe is not said to have an empty spool."""
    outbox = cast("Outbox", None)  # never asked: nothing is sent here
    publisher = Publisher(
        Broker(host="127.0.0.1"), "hn-01", outbox, lambda _: None, lambda _: None, large_status, ManualClock()
    )
    will = publisher._last_will()
    assert len(encode(large_status(AgentState.LOST))) > WILL_BYTES_MAX
    assert len(encode(will)) < WILL_BYTES_MAX
    assert will.state is AgentState.LOST
    assert (will.spool, will.instruction_revision, will.schedules, will.links) == (None, None, (), ())
