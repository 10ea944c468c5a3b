"""How many streams a transfer adds, what it makes of them, and how long it leaves uploads alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from bulk_rig import order

from probe.flows.bulk.estimate import GAIN_RATIO_MIN, SAMPLE_PERIOD_S, Advice, CapacityEstimator, Estimate, StopReason
from probe.flows.bulk.run import Run
from probe.flows.bulk.stream import Order, StreamState
from probe.flows.bulk.stream_upload import UploadStream
from probe.flows.bulk.upload_source import UploadSource
from probe.flows.tcp_info import TcpInfo

RTT_MIN_S = 0.01
QUEUED_S = 0.03  # the round trip with packets waiting at the bottleneck
STEP_S = 0.1


class Stream(UploadStream):
    """One that moves ten megabytes a second by its own word, and whose round trip is what a test says."""

    def __init__(self, sock: socket.socket, one: Order, now_s: float, source: UploadSource) -> None:
        super().__init__(sock, one, source)
        self.state, self._moves_since_s = StreamState.MOVING, now_s

    def refresh(self) -> int:
        """Without a connection to ask about."""
        self.counted_bytes += 1_000_000
        return self.counted_bytes

    def tune(self, now_s: float) -> None:
        """Nothing waits in its socket."""
        del now_s
        self.lasts_s = 0.1


class Estimator(CapacityEstimator):
    """Advises what a test says, and remembers how it was asked."""

    advice = Advice.GO_ON
    is_unsure = False
    gain_ratio_min = 0.0

    def advise(
        self, rtt_s: float, *, can_grow: bool, is_unsure: bool = False, gain_ratio_min: float = GAIN_RATIO_MIN
    ) -> tuple[Advice, StopReason | None]:
        """Whatever the samples say."""
        del rtt_s, can_grow
        self.is_unsure, self.gain_ratio_min = is_unsure, gain_ratio_min
        advice, self.advice = self.advice, Advice.GO_ON
        return advice, None


class Rig:
    """A transfer whose time and streams are a test's."""

    def __init__(self, one: Order, streams: int = 4) -> None:
        self._order, self._source = one, UploadSource()
        self.run = Run(one, socket.socket, lambda _: None, threading.Event())
        self.estimator = self.run._estimator = Estimator()
        self.now_s = 100.0
        self.run._began_s = self.run._judged_s = self.now_s
        self.run._rtt_min_s = RTT_MIN_S
        self.run._is_planned = True
        self.run._roster.wanted = streams
        self.add_streams(streams)

    @property
    def wanted(self) -> int:
        """How many streams there should be."""
        return self.run._roster.wanted

    def add_streams(self, count: int) -> None:
        """They run from now on."""
        roster = self.run._roster
        for _ in range(count):
            stream = Stream(socket.socket(), self._order, self.now_s, self._source)
            roster.running[stream.sock.fileno()] = stream
        roster.flowing = list(roster.running.values())

    def pass_by(self, time_s: float, round_trip_s: float) -> None:
        """So much time, with all packets travelling for so long."""
        for _ in range(round(time_s / STEP_S)):
            self.now_s += STEP_S
            for stream in self.run._roster.running.values():
                stream.info = TcpInfo(rtt_s=round_trip_s, min_rtt_s=RTT_MIN_S)
            self.run._judge(self.now_s)

    def grow(self, round_trip_s: float) -> None:
        """A plateau is seen."""
        self.estimator.advice = Advice.GROW
        self.pass_by(STEP_S, round_trip_s)

    def close(self) -> None:
        """End all streams."""
        self.run._roster.close()
        self._source.close()


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Of an upload without a limit; parameters change the order."""
    one = Rig(order(1, "upload", **{"streams_max": 16, "max_duration_s": 10.0, **getattr(request, "param", {})}))
    yield one
    one.close()


def test_a_full_line_tries_one_stream_more(rig: Rig) -> None:
    """A queue stands: a fifth stream is tried, and a smaller gain counts."""
    rig.pass_by(0.5, QUEUED_S)
    assert rig.estimator.gain_ratio_min == GAIN_RATIO_MIN
    rig.grow(QUEUED_S)
    rig.pass_by(STEP_S, QUEUED_S)
    assert rig.wanted == 5
    assert 1 < rig.estimator.gain_ratio_min < GAIN_RATIO_MIN


def test_a_line_without_a_queue_gets_four(rig: Rig) -> None:
    """It may have room: no trial, and what gains nothing is an answer at once."""
    rig.pass_by(0.5, RTT_MIN_S)
    rig.grow(RTT_MIN_S)
    rig.pass_by(STEP_S, RTT_MIN_S)
    assert rig.wanted == 8
    assert (rig.estimator.is_unsure, rig.estimator.gain_ratio_min) == (False, GAIN_RATIO_MIN)


def test_only_the_first_stage_is_a_trial(rig: Rig) -> None:
    """What a fifth stream gained, four more are asked for."""
    rig.pass_by(0.5, QUEUED_S)
    rig.grow(QUEUED_S)
    rig.add_streams(1)
    rig.pass_by(0.5, QUEUED_S)
    rig.grow(QUEUED_S)
    rig.pass_by(STEP_S, QUEUED_S)
    assert rig.wanted == 9
    assert (rig.estimator.is_unsure, rig.estimator.gain_ratio_min) == (False, GAIN_RATIO_MIN)


def test_a_trial_without_time_is_no_answer(rig: Rig) -> None:
    """That a fifth stream gains nothing means nothing while it is not there yet, or has moved for less than 300 ms."""
    rig.pass_by(0.5, QUEUED_S)
    rig.grow(QUEUED_S)
    rig.pass_by(0.5, QUEUED_S)
    assert rig.estimator.is_unsure
    rig.add_streams(1)
    rig.pass_by(0.2, QUEUED_S)
    assert rig.estimator.is_unsure
    rig.pass_by(0.2, QUEUED_S)
    assert not rig.estimator.is_unsure


def test_a_trial_on_a_line_that_is_no_longer_full_is_no_answer(rig: Rig) -> None:
    """The queue went meanwhile: four more may gain what the fifth did not."""
    rig.pass_by(0.5, QUEUED_S)
    rig.grow(QUEUED_S)
    rig.add_streams(1)
    rig.pass_by(0.5, QUEUED_S)
    assert not rig.estimator.is_unsure
    rig.pass_by(STEP_S, RTT_MIN_S)
    assert rig.estimator.is_unsure


def test_what_waits_at_the_bottleneck_lengthens_the_pauses(rig: Rig) -> None:
    """The line is busy with it while the streams have nothing to send."""
    rig.pass_by(0.5, QUEUED_S)
    assert rig.run._phase().queue_s == pytest.approx(QUEUED_S - RTT_MIN_S)


@pytest.mark.parametrize(
    "rig",
    [{"is_load": True}, {"max_bytes": 1 << 40}, {"file_bytes": 1 << 40}],
    ids=["a load", "a cap", "a file"],
    indirect=True,
)
def test_it_stays_there_where_it_must(rig: Rig) -> None:
    """Somebody measures the delay under it; or one look does not fill a stream up again."""
    rig.pass_by(0.5, QUEUED_S)
    assert rig.run._phase().queue_s == 0


def test_it_stays_there_when_bytes_do_not_just_flow(rig: Rig) -> None:
    """Inside TLS each look encrypts what it sends: it must come often."""
    rig.run._roster.flowing = []
    rig.pass_by(0.5, QUEUED_S)
    assert rig.run._phase().queue_s == 0


@pytest.mark.parametrize(
    ("rig", "periods"), [({}, 2), ({"max_bytes": 1 << 40}, 1)], ids=["no limit", "a cap"], indirect=["rig"]
)
def test_only_a_cap_is_sampled_closely_to_the_end(rig: Rig, periods: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trains of packets may be all that tells the rate; else half as many samples do once it is calm."""
    monkeypatch.setattr(Estimator, "is_calm", True)
    assert rig.run._period_s == periods * SAMPLE_PERIOD_S


@pytest.mark.parametrize("rig", [{"max_bytes": 1 << 40}], indirect=True)
def test_the_bytes_of_a_cap_are_of_all_the_time_until_they_were_counted(rig: Rig) -> None:
    """The sample at its end is not part of the curve; what it counted took that long all the same."""
    rig.pass_by(0.5, QUEUED_S)
    rig.run._roster._spent = 1
    assert rig.run._judge(rig.now_s + 0.05) is StopReason.MAX_BYTES
    done = rig.run._result(StopReason.MAX_BYTES, 0.0)
    assert done.transfer_s == pytest.approx(0.55)
    assert done.curve[-1][0] == pytest.approx(0.5)
    assert done.whole_transfer_bps == pytest.approx(done.transferred_bytes * 8 / 0.55)


@pytest.mark.parametrize(
    ("rig", "reason", "rate_bps"),
    [
        ({"file_bytes": 1 << 40}, StopReason.WHOLE_FILE, 100_000 * 8 / 1.2),
        ({"max_bytes": 1 << 40}, StopReason.MAX_BYTES, 100_000 * 8 / 1.2),
        ({"file_bytes": 1 << 40}, StopReason.MAX_DURATION, 0.0),
    ],
    ids=["a file", "a cap", "a file that took too long"],
    indirect=["rig"],
)
def test_a_gap_right_before_the_last_byte_is_not_nothing(rig: Rig, reason: StopReason, rate_bps: float) -> None:
    """Before the plateau, and with no byte in the last 400 ms: all bytes over all the time, as a lower bound."""
    for step in range(1, 25):
        rig.estimator.add(SAMPLE_PERIOD_S * step, 100_000 if step > 12 else 0)
    estimate = rig.run._estimate(reason)
    assert estimate.is_lower_bound
    assert estimate.capacity_bps == pytest.approx(rate_bps)


OF_TRAINS = Estimate(24e6, 0.01, is_lower_bound=False, steady_s=0.0, until_s=3.0)


@pytest.mark.parametrize(
    ("rig", "by_window", "asked"),
    [
        ({"max_bytes": 1 << 40}, False, "with trains"),
        ({"max_bytes": 1 << 40}, True, "without"),
        ({"file_bytes": 1 << 40}, False, "without"),
        ({}, False, None),
    ],
    ids=["a cap", "a cap by windows", "a file", "no limit"],
    indirect=["rig"],
)
def test_a_size_may_end_it_before_the_line_was_full(
    rig: Rig, by_window: bool, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then trains tell, but for those that our own receive windows make, and those of a file, seen too seldom."""
    heard: list[str] = []

    def capped_estimate(_estimator: Estimator, _rtt_s: float, *, may_use_trains: bool) -> Estimate:
        heard.append("with trains" if may_use_trains else "without")
        return OF_TRAINS

    monkeypatch.setattr(Estimator, "capped_estimate", capped_estimate)
    rig.run._allowance.by_window = by_window
    assert (rig.run._estimate(StopReason.MAX_BYTES) is OF_TRAINS) is (asked is not None)
    assert heard == ([] if asked is None else [asked])
