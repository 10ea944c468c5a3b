"""What can be known of a measurement before anything is sent: that it cannot work, and what to write instead.

A task says what it needs of its parameters and of its peer (`TaskType.misfits`); the fleet file's check, the command
lines and the agent all ask it, so that a mistake is told once, in the same words, where it can be put right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from probe.errors import NotRunError
from probe.messages import NotRunReason, Peer

# The place of a mistake that is the choice of the peer, not of a parameter.
PEER_FIELD: Final = "peers"
# RFC 1035 section 2.3.4; letters as RFC 952 and RFC 1123 have them, and the underscore of RFC 2782.
_NAME_CHARACTERS_MAX: Final = 253
_LABEL: Final = re.compile(r"[0-9A-Za-z_-]{1,63}")


@dataclass(frozen=True, slots=True)
class Misfit:
    """Why parameters, or a peer, cannot work.

    `field` is the parameter's name, or `PEER_FIELD`. `remedy` says what to do in general; `example` is a value of the
    field that would do, which each surface shows in the way that is written there. Absent, there is none to show.
    `harmless`: the measurement works all the same, so that an agent makes it; only who writes it is told.
    """

    field: str
    problem: str
    remedy: str = ""
    example: Any = None
    harmless: bool = False

    def __str__(self) -> str:
        """One line, for a result's detail."""
        example = "" if self.example is None else f"such as {self.example}"
        remedy = ", ".join(filter(None, (self.remedy, example)))
        return f"{self.field}: {self.problem}" + (f" ({remedy})" if remedy else "")


class MisfitError(ValueError):
    """Parameters that contradict each other: what a `Parameters.__post_init__` raises to name the one at fault."""

    def __init__(self, misfit: Misfit) -> None:
        super().__init__(str(misfit))
        self.misfit = misfit


def refuse(misfits: Iterable[Misfit]) -> None:
    """Do not measure what cannot work.

    Raises:
        NotRunError: there is a misfit that is not harmless (`bad_parameters`); says the first.
    """
    for misfit in (misfit for misfit in misfits if not misfit.harmless):
        raise NotRunError(NotRunReason.BAD_PARAMETERS, str(misfit))


def version_of_literal(host: str | None) -> int | None:
    """Of an address, which IP version; absent for a name, and for nothing."""
    try:
        return None if host is None else ipaddress.ip_address(host).version
    except ValueError:
        return None


def host_problem(host: str) -> str | None:
    """Why a text is neither an address nor a name that can be asked for; absent when it is one."""
    if version_of_literal(host) is not None:
        return None
    name = host.removesuffix(".")
    labels = name.split(".")
    if len(name) > _NAME_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        return f"{host[:_NAME_CHARACTERS_MAX]!r} is neither an IP address nor a host name"
    if labels[-1].isdigit():  # no top-level domain is a number (RFC 3696 section 2): a misspelt address
        return f"{host!r} looks like an IP address and is none"
    return None


def host_misfits(field: str, host: str | None, ip_version: int | None = None) -> Iterator[Misfit]:
    """What is wrong with a host that a parameter names; `ip_version` is what it will be reached by."""
    if host is None:
        return
    problem = host_problem(host)
    if problem is not None:
        yield Misfit(field, problem, "write a name or an address, without a port")
    elif ip_version is not None and version_of_literal(host) not in {None, ip_version}:
        found = version_of_literal(host)
        yield Misfit(field, f"{host} is an IPv{found} address, and ip_version is {ip_version}", "change one of them")


def peer_misfits(peer: Peer | None, ip_version: int) -> Iterator[Misfit]:
    """What is wrong with a peer that is to be reached by one IP version."""
    if peer is None:
        return
    found = version_of_literal(peer.host)
    if found not in {None, ip_version}:
        problem = f"{peer.host} is an IPv{found} address, and ip_version is {ip_version}"
        yield Misfit(PEER_FIELD, problem, f"set ip_version to {found}, or give the peer a name with both addresses")
    elif (unusable := host_problem(peer.host)) is not None:
        yield Misfit(PEER_FIELD, unusable, "correct the peer's host")


def no_peer_misfits(peer: Peer | None, instead: str) -> Iterator[Misfit]:
    """For a task that nobody has to answer: a peer would stand beside results that have nothing to do with it."""
    if peer is not None:
        problem = "this task asks no peer: it would only stand beside the results"
        yield Misfit(PEER_FIELD, problem, instead, harmless=True)
