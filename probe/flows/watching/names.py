"""Whom a window watches: the addresses of the peer and of the operator's host, found before and while it goes on."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Final

from probe.errors import MeasurementFailedError, NotRunError
from probe.flows.dns.query import resolve_host
from probe.flows.echo.engine import ByteCount
from probe.links import IpVersion, Link
from probe.messages import FailureKind, NotRunReason

RESOLVE_TIME_OUT_S: Final = 5.0
# While a name has no address yet, it is asked for again after this.
_RESOLVE_AGAIN_S: Final = 10.0


class Names:
    """The hosts of one window, by name or address.

    Args:
        link: the line, whose resolvers are asked.
        version: of IP.
        peer: the peer's host.
        operator: the operator's own host, where there is one.
        addresses: what earlier windows know; kept up to date.
        usage: where the cost is kept.
    """

    def __init__(
        self,
        link: Link,
        version: IpVersion,
        peer: str,
        operator: str | None,
        addresses: dict[str, str],
        usage: ByteCount,
    ) -> None:
        self._link = link
        self._version = version
        self._peer = peer
        self._operator = operator
        self._addresses = addresses
        self._usage = usage
        self._fresh: set[str] = set()  # looked up before this window's first packet
        # What look-ups of the peer met: no such name; what makes it no name at all; anything else, success included.
        self._no_such_name: MeasurementFailedError | None = None
        self._no_name: NotRunError | None = None
        self._may_exist = False

    @property
    def peer_address(self) -> str | None:
        """The peer's address, absent until it is found."""
        return self._addresses.get(self._peer)

    @property
    def operator_address(self) -> str | None:
        """That of the operator's host, absent until it is found and where there is none."""
        return None if self._operator is None else self._addresses.get(self._operator)

    async def find_first(self) -> None:
        """Find whom to watch, where no window before has; whatever else is a name can wait until that is under way.

        Raises:
            NotRunError: what the peer is called is no name.
        """
        literal = [host for host in self._hosts() if _is_literal(host)]
        for host in {self._peer, *literal} - self._addresses.keys():
            await self._resolve(host)
            self._fresh.add(host)
        if self._no_name is not None:
            raise self._no_name

    async def find_on(self, on_found: Callable[[], None]) -> None:
        """Once per window, and until there is an address: names move, and a line may be down when a window begins.

        `on_found` is called after each look-up.
        """
        for host in set(self._hosts()) - self._fresh:
            await self._resolve(host)
            on_found()
        while self._unknown_hosts():
            await asyncio.sleep(_RESOLVE_AGAIN_S)
            for host in self._unknown_hosts():
                await self._resolve(host)
                on_found()

    def no_peer(self) -> MeasurementFailedError | NotRunError | None:
        """Why there is nobody to watch; absent when there may be. A peer that once had an address has it still."""
        if self._peer in self._addresses:
            return None
        return self._no_name or (None if self._may_exist else self._no_such_name)

    def _hosts(self) -> tuple[str, ...]:
        return (self._peer,) if self._operator is None else (self._peer, self._operator)

    def _unknown_hosts(self) -> list[str]:
        return [host for host in self._hosts() if host not in self._addresses]

    async def _resolve(self, host: str) -> None:
        """Learn an address, or note why not.

        Not to find one is what a line that is down looks like. "No such name" may be that too: routers and portals
        say so of every name while they have no uplink. So nothing that is met here ends the watching.
        """
        problem: MeasurementFailedError | NotRunError | None = None
        try:
            found = await resolve_host(self._link, host, self._version, RESOLVE_TIME_OUT_S, self._usage)
            self._addresses[host] = found
        except (MeasurementFailedError, NotRunError) as error:
            problem = error
        if host == self._peer:
            self._note(problem)

    def _note(self, problem: MeasurementFailedError | NotRunError | None) -> None:
        """What a look-up says of whether there is such a peer."""
        if isinstance(problem, NotRunError) and problem.not_run.reason is not NotRunReason.LINK_DOWN:
            self._no_name = problem
        elif isinstance(problem, MeasurementFailedError) and problem.failure.kind is FailureKind.NAME_NOT_FOUND:
            self._no_such_name = problem
        else:
            self._may_exist = True


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
