"""Replay: what was quarantined goes through validation and storing again, with the fleet and the tasks of now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fleet_controller.config import ControllerConfig
from fleet_controller.fleet.load import load_fleet
from fleet_controller.quarantine import Item, Quarantine
from fleet_controller.records import Rejected
from fleet_controller.store.database import Store
from fleet_controller.validate import Validator, refused
from probe.tasks import TASKS
from probe.tasks.base import AnyTask


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: `stored` (and gone from the quarantine), `kept` (see `detail`) or `missing`.

    A whole message of which only a part was accepted is `stored`: the rest of it are items of their own now.
    """

    id: int
    kind: Literal["stored", "kept", "missing"]
    detail: str


def replay(
    config: ControllerConfig, numbers: Sequence[int], tasks: Mapping[str, AnyTask] = TASKS
) -> dict[int, Outcome]:
    """Try quarantined items again, while the controller runs or not.

    Raises:
        ControllerError: the fleet file or the quarantine cannot be read, or the database does not answer or refuses
            us; what was not reached stays as it is.
    """
    validator = Validator(load_fleet(config.fleet_file, tasks), tasks)
    quarantine = Quarantine(config.quarantine_dir, config.quarantine)
    store = Store(config.influxdb, tasks)
    try:
        return {number: _replay_one(number, validator, store, quarantine) for number in numbers}
    finally:
        store.close()
        quarantine.close()


def _replay_one(number: int, validator: Validator, store: Store, quarantine: Quarantine) -> Outcome:
    item = quarantine.show(number)
    if item is None or item.payload is None:
        return Outcome(number, "missing", "there is no such item")
    if item.truncated:
        return Outcome(number, "kept", f"{item.payload_bytes} bytes were too many: only the first of them were kept")
    verdict = validator.validate(item.topic, item.payload)
    bad = [refused(one.accepted, one.words) for one in store.write(verdict.accepted)]
    rest = [*verdict.rejected, *bad]
    _put_back(item, rest, quarantine)
    stored = len(verdict.accepted) - len(bad)
    if rest and not stored:
        return Outcome(number, "kept", f"{rest[0].reason}: {rest[0].detail}")
    return Outcome(number, "stored", f"{stored} stored" + (f", {len(rest)} kept as items of their own" if rest else ""))


def _put_back(item: Item, rest: Sequence[Rejected], quarantine: Quarantine) -> None:
    """What is still bad stays, with the reason of now; the item itself goes unless it is what is bad."""
    same = [one for one in rest if one.identity == item.identity]
    quarantine.add([one for one in rest if one.identity != item.identity])
    if same:
        quarantine.update(item.id, same[0].reason, same[0].detail)
    else:
        quarantine.remove([item.id])
