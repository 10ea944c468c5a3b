"""What the line decides of a loaded measurement: its rate, and how far its buffer can stretch a round trip."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fleet_controller.lab.comparison import Compared, Comparison
from fleet_controller.lab.profile import ETHERNET_MTU_BYTES, Direction, LinkProfile
from fleet_controller.lab.rates import least_ratio
from fleet_controller.lab.seen import STAMP_BYTES, UDP_BYTES, Seen

_NS_PER_S: Final = 1_000_000_000
_MINUTE_S: Final = 60.0
_BITS: Final = 8
# A buffer holds two full packets at least.
_BUFFER_BYTES_MIN: Final = 2 * ETHERNET_MTU_BYTES
# Intervals that responsiveness is judged by (draft-ietf-ippm-responsiveness: MAD), and their length unless told.
_MOVING_INTERVALS: Final = 4
_INTERVAL_S: Final = 0.5
_CURVE_STEP_S: Final = 0.1  # capacity's
# What capacity's rate is of when it ends before the plateau.
_LOWER_BOUND_S: Final = 0.4


def compare_capacity(seen: Seen) -> list[Compared]:
    """The rate; with `loaded_delay` the delays too."""
    rate = _rate(seen, seen.direction, seen.values["capacity_bps"], *_steady_interval(seen))
    if not seen.parameters.get("loaded_delay"):
        return [rate]
    return [rate, *_loaded_delays(seen)]


def compare_responsiveness(seen: Seen) -> list[Compared]:
    """The load, the delay of the idle and of the loaded line, and what rpm cannot exceed."""
    goodput: Sequence[Mapping[str, Any]] = seen.values.get("goodput") or ()
    interval_s = float(seen.parameters.get("interval_s", _INTERVAL_S))
    length_s = interval_s * min(len(goodput), _MOVING_INTERVALS)
    compared = _loaded_delays(seen)
    if length_s:
        interval = _interval(seen, goodput[-1]["offset_s"], length_s)
        compared.insert(0, _rate(seen, "load", seen.values["load_bps"], *interval))
    least_s = seen.site.delay_s - seen.profile.jitter_s / 2
    if least_s > 0:  # under load no round trip is quicker than on the empty line
        compared.append(Comparison("rpm", "per_minute", _MINUTE_S / least_s, seen.values.get("rpm"), "at_most"))
    return compared


def _rate(seen: Seen, what: str, measured_bps: float, from_ns: int, to_ns: int) -> Comparison:
    nominal_bps = seen.profile.expected_capacity_bps(seen.direction, seen.ip_version)
    mean_bps = seen.site.link.mean_rate_bps(seen.direction, from_ns, to_ns)
    return Comparison(what, "bps", nominal_bps * mean_bps / seen.profile.rate_bps(seen.direction), measured_bps)


def _loaded_delays(seen: Seen) -> list[Compared]:
    """Idle as the line is; loaded, at most a full buffer more."""
    stamp_bytes = STAMP_BYTES + UDP_BYTES
    idle_s = seen.round_trip_s(stamp_bytes, stamp_bytes, seen.ip_version)
    loaded_s = idle_s + _deepest_s(seen.profile, seen.direction) + seen.profile.jitter_s / 2
    return [
        Comparison("delay_idle", "s", idle_s, seen.values.get("delay_idle_median_s")),
        Comparison("delay_loaded", "s", loaded_s, seen.values.get("delay_loaded_median_s"), "at_most"),
    ]


def _deepest_s(profile: LinkProfile, direction: Direction) -> float:
    """How long a packet waits when it finds the buffer full; a policer has none. The packet on the line counts too."""
    if profile.policer_burst_bytes is not None:
        return 0.0
    rate_bps = profile.rate_bps(direction)
    buffer_bytes = max(profile.buffer_of_s(direction) * rate_bps / _BITS, _BUFFER_BYTES_MIN) + ETHERNET_MTU_BYTES
    return buffer_bytes * _BITS / (rate_bps * least_ratio(profile))


def _steady_interval(seen: Seen) -> tuple[int, int]:
    """When the bytes of the steady part passed the serialiser, on CLOCK_MONOTONIC.

    Without one, a lower bound is the rate of the last 0.4 s, and a rate of packet trains that of the whole transfer.
    Without a curve, the whole run.
    """
    curve = seen.values.get("curve")
    if not curve:
        return seen.run.began_ns, seen.run.ended_ns
    transfer_s = seen.values["transfer_s"]
    judged_s = min(transfer_s, _LOWER_BOUND_S) if seen.values["lower_bound"] else transfer_s
    length_s = seen.values["steady_s"] or judged_s
    # The curve ends with its last whole step, the steady part with the last count: up to a step later.
    began_s = max(0.0, curve[0]["offset_s"] - _CURVE_STEP_S)
    return _interval(seen, began_s + seen.values["transfer_s"], length_s)


def _interval(seen: Seen, end_s: float, length_s: float) -> tuple[int, int]:
    """When the bytes counted in so many seconds before `end_s` after the result's start passed the serialiser.

    A received byte is half a round trip old when it is counted, an acknowledged one a whole one.
    """
    run = seen.run
    age_s = seen.site.delay_s * (0.5 if seen.direction == "download" else 1.0)
    began_ns = run.result.start_unix_ns - (time.time_ns() - time.monotonic_ns())
    if not run.began_ns <= began_ns <= run.ended_ns:  # the wall clock was stepped: only roughly, then
        began_ns = run.began_ns
    end_ns = began_ns + round((end_s - age_s) * _NS_PER_S)
    return end_ns - round(length_s * _NS_PER_S), end_ns
