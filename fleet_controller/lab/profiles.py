"""The named profiles: `profiles.toml` beside this file, and those of a file of the user's own."""

from __future__ import annotations

import difflib
import re
import tomllib
from importlib import resources
from pathlib import Path

import msgspec

from fleet_controller.errors import ConfigError
from fleet_controller.lab.profile import LinkProfile

_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,30}")


def load_profiles(file: Path | None = None) -> dict[str, LinkProfile]:
    """The package's profiles by name, and those of a file beside them: one of the same name counts instead.

    Raises:
        ConfigError: with the file, the profile and the key.
    """
    return read_profiles() | (read_profiles(file) if file is not None else {})


def read_profiles(file: Path | None = None) -> dict[str, LinkProfile]:
    """The profiles of one file alone, in its order; without one, the package's.

    Raises:
        ConfigError: with the file, the profile and the key.
    """
    source = resources.files("fleet_controller.lab") / "profiles.toml" if file is None else file
    place = str(file) if file is not None else "profiles.toml"
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(place, f"cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(place, f"is not TOML: {error}") from None
    return {name: _profile(f"{place}: {name}", name, table) for name, table in raw.items()}


def _profile(place: str, name: str, table: object) -> LinkProfile:
    if _NAME.fullmatch(name) is None:
        raise ConfigError(place, "is no name of a profile", "lower-case letters, digits and _")
    try:
        return msgspec.convert(table, LinkProfile)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        raise ConfigError(f"{place}.{key}" if key else place, problem, _remedy(problem)) from None


def _remedy(problem: str) -> str:
    unknown = re.search(r"unknown field `(.+)`", problem)
    if unknown is None:
        return ""
    close = difflib.get_close_matches(unknown[1], LinkProfile.__struct_fields__, n=1)
    return f"did you mean `{close[0]}`?" if close else "see fleet_controller/lab/profile.py for the keys there are"


def find_profile(name: str, profiles: dict[str, LinkProfile] | None = None) -> LinkProfile:
    """One profile by its name.

    Raises:
        ConfigError: there is none; names one that was probably meant.
    """
    known = load_profiles() if profiles is None else profiles
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {close[0]}?" if close else "one of " + ", ".join(known)
        raise ConfigError(name, "there is no such profile", remedy)
    return known[name]
