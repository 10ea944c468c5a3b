"""Parameters as a person types them, `KEY=VALUE`: one reading and one wording for every command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from probe.messages import Peer
from probe.tasks.base import AnyTask, Parameters, variant_fields
from probe.tasks.fit import PEER_FIELD, Misfit, MisfitError


class SettingError(ValueError):
    """What was typed cannot be used: where (the option and its key), what is wrong, what to type instead."""

    def __init__(self, place: str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{place}: {problem}" + (f" ({remedy})" if remedy else ""))
        self.place = place
        self.problem = problem
        self.remedy = remedy


def read_settings(task: AnyTask, settings: Iterable[str], option: str) -> dict[str, Any]:
    """The parameters that were typed; a value is JSON if it can be read so, else text.

    Args:
        task: whose parameters they are.
        settings: `KEY=VALUE` each.
        option: what stands before each on the command line, such as `--set`.

    Raises:
        SettingError: one is no parameter of the task.
    """
    known = task.parameters.__struct_fields__
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"one of {', '.join(known)}"
            raise SettingError(f"{option} {key}", f"{task.name} has no such parameter", remedy)
        if not separator:
            raise SettingError(f"{option} {key}", "has no value", f"write {option} {key}=VALUE")
        if key in parsed:
            raise SettingError(f"{option} {key}", "is given twice", "remove one of them")
        parsed[key] = _value(text)
    return parsed


def check_settings(task: AnyTask, parameters: Mapping[str, Any], peers: Iterable[Peer | None], option: str) -> Any:
    """Say whether the task can work with these parameters and each of these peers; gives the typed parameters.

    Raises:
        SettingError: it cannot, and why.
    """
    try:
        typed = msgspec.convert(parameters, task.parameters)
    except msgspec.ValidationError as error:
        raise _error_of(task, parameters, error, option) from None
    for peer in peers:
        for misfit in task.misfits(typed, peer):
            raise _placed(misfit, option)
    return typed


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text  # a word without quotes


def _error_of(
    task: AnyTask, parameters: Mapping[str, Any], error: msgspec.ValidationError, option: str
) -> SettingError:
    if isinstance(error.__cause__, MisfitError):
        return _placed(error.__cause__.misfit, option)
    problem, _, where = str(error).partition(" - at `$")
    key = where.strip("`.").partition("[")[0]
    if not key:
        return SettingError(option, problem)
    parameters_type: type[Parameters] = task.parameters
    choices = variant_fields(parameters_type).get(key)
    if choices is not None:
        return SettingError(f"{option} {key}", f"{parameters[key]!r} cannot be", f"one of {', '.join(choices)}")
    remedy = f"""write {option} '{key}="{parameters[key]}"'""" if problem.startswith("Expected `str") else ""
    return SettingError(f"{option} {key}", problem[0].lower() + problem[1:], remedy)


def _placed(misfit: Misfit, option: str) -> SettingError:
    """A misfit in the words of a command line."""
    if misfit.field == PEER_FIELD:
        return SettingError("--peer", misfit.problem, misfit.remedy)
    typed = f"{option} {misfit.field}={misfit.example}" if misfit.example is not None else ""
    remedy = ", such as ".join(filter(None, (misfit.remedy, typed)))
    return SettingError(f"{option} {misfit.field}", misfit.problem, remedy)
