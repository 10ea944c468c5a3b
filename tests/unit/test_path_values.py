from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from ingest_kit import AGENT, START_UNIX_NS, fleet, report, result

from fleet_controller.store.line_protocol import Schema
from fleet_controller.validate import Validator
from probe.errors import MeasurementFailedError
from probe.flows.path.hops import Hop, Reply
from probe.flows.path.traced import Traced, raise_if_failed
from probe.messages import FailureKind, encode, topic
from probe.tasks import TASKS
from probe.tasks.path import PathParameters, source_port_of, values_of

MS = 1_000_000
NO_DEVICE = OSError(19, "no such device")
NO_ROUTE = OSError(101, "no route")


def traced() -> Traced:
    """r1, silence, two routers, the destination."""
    hops = [
        Hop(1, 10_000, 3, [Reply("10.0.0.1", 2 * MS), Reply("10.0.0.1", MS)]),
        Hop(2, 20_000_000, 3),
        Hop(3, 40_000_000, 3, [Reply("10.0.3.2", 4 * MS), Reply("10.0.3.1", None)]),
        Hop(4, 60_000_000, 3, [Reply("10.0.4.1", 5 * MS, from_destination=True)]),
    ]
    return Traced(hops=hops, ended_by="destination", sent=14)


def test_what_a_trace_says() -> None:
    """Counts, the path and its hash, the destination's distance and delay, and each hop."""
    values = values_of(traced(), 20_001, 862)
    assert (values.path, values.hop_count, values.reached) == ("10.0.0.1 * 10.0.3.1|10.0.3.2 10.0.4.1", 4, True)
    assert (values.hops_answered, values.hops_silent, values.one_address_per_hop) == (3, 1, False)
    assert (values.packets_sent, values.packets_answered, values.delay_min_s) == (14, 5, 0.005)
    assert [hop.address for hop in values.hops] == ["10.0.0.1", None, "10.0.3.1", "10.0.4.1"]
    # The 4 ms of the third hop are another router's: of 10.0.3.1 no clock vouches for any.
    assert [hop.delay_min_s for hop in values.hops] == [0.001, None, None, 0.005]


def test_no_delay_is_anothers() -> None:
    """A nearer router answered the destination's TTL too: the delay is the destination's, and each hop's its own."""
    replies = [
        Reply("10.0.9.1", 2 * MS),
        Reply("10.0.9.9", 5 * MS, from_destination=True),
        Reply("10.0.9.9", 6 * MS, from_destination=True),
    ]
    balanced = Hop(1, 0, 2, [Reply("10.0.0.2", MS), Reply("10.0.0.1", 3 * MS)])
    values = values_of(Traced(hops=[balanced, Hop(2, 10, 3, replies)], ended_by="destination", sent=5), 20_001, 862)
    assert (values.hop_count, values.delay_min_s) == (2, 0.005)
    assert [(hop.address, hop.delay_min_s) for hop in values.hops] == [("10.0.0.1", 0.003), ("10.0.9.1", 0.002)]


def test_a_destination_that_did_not_answer_has_no_distance() -> None:
    """Absent, not the number of hops that were seen."""
    values = values_of(Traced(hops=traced().hops[:1], ended_by="silence", sent=9), 20_001, None)
    assert (values.reached, values.hop_count, values.delay_min_s, values.destination_port) == (False, None, None, None)


def test_every_hop_is_a_point_of_its_own(tmp_path: Path) -> None:
    """Stored under four times: hops are told apart by when they were first asked."""
    plain = msgspec.to_builtins(values_of(traced(), 20_001, 862))
    sent = result(values=plain, task="path", variant={"method": "udp", "ip_version": "4"})
    verdict = Validator(fleet(tmp_path), TASKS).validate(topic(AGENT, "report"), encode(report(sent)))
    assert not verdict.rejected
    (one,) = verdict.accepted
    first, *hops = Schema(TASKS).lines(one)
    assert 'path="10.0.0.1 * 10.0.3.1|10.0.3.2 10.0.4.1"' in first
    assert [line.rsplit(" ", 1)[1] for line in hops] == [
        str(START_UNIX_NS + offset_ns) for offset_ns in (10_000, 20_000_000, 40_000_000, 60_000_000)
    ]
    assert all(line.startswith("path_hops,") for line in hops)
    assert "address=" not in hops[1]


@pytest.mark.parametrize(
    ("found", "up", "kind"),
    [
        (Traced(sent=9), True, None),
        (Traced(sent=9), False, FailureKind.LINK_LOST),
        (Traced(sent=9, send_error=NO_DEVICE), True, FailureKind.LINK_LOST),
        (Traced(sent=0, send_error=NO_ROUTE), True, FailureKind.NETWORK_UNREACHABLE),
        (Traced(sent=9, send_error=NO_ROUTE), True, None),
    ],
)
def test_what_is_a_failure_and_what_is_not(found: Traced, up: bool, kind: FailureKind | None) -> None:
    """Silence is a value; a link that went away, or a kernel that takes no probe, is a failure."""
    if kind is None:
        raise_if_failed(found, lambda: up)
        return
    with pytest.raises(MeasurementFailedError) as caught:
        raise_if_failed(found, lambda: up)
    assert caught.value.failure.kind == kind


def test_one_flow_is_one_port_for_ever() -> None:
    """The same on every probe and after every restart; another flow, link or destination is another port."""
    assert source_port_of("fixed", "203.0.113.1", 0) == source_port_of("fixed", "203.0.113.1", 0)
    ports = {source_port_of(link, "203.0.113.1", flow) for link in ("fixed", "mobile") for flow in range(50)}
    assert len(ports) > 90
    assert all(20_000 <= port < 30_000 for port in ports)


def test_the_longest_trace_fits_into_the_time_granted() -> None:
    """Whatever the parameters, the limit holds and is within what the task asks for."""
    parameters = PathParameters(limit_s=60.0)
    assert TASKS["path"].time_out_s(parameters) > parameters.plan().limit_s + 5
