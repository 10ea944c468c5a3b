"""Ports for private services: nobody else comes to have one of them before the service listens."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.lab import services
from fleet_controller.lab.services import free_dns_port, free_port

HOST = "127.0.0.1"


@pytest.fixture
def two_ports(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """All that there is to choose from, over and over."""
    ports = (free_dns_port(), free_dns_port())

    def endless() -> Iterator[int]:
        while True:
            yield from ports

    monkeypatch.setattr(services, "_ports", endless())
    return ports


def test_no_port_is_one_that_the_kernel_lends_to_connections() -> None:
    """And none is given twice."""
    least, most = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [free_port() for _ in range(50)] + [free_dns_port() for _ in range(50)]
    assert not [port for port in ports if least <= port <= most]
    assert len(set(ports)) == 100


def test_a_port_that_is_taken_is_passed_over(two_ports: tuple[int, int]) -> None:
    """By a stream; datagrams may have the same number."""
    taken, free = two_ports
    with socket.create_server((HOST, taken)):
        assert [free_port() for _ in range(3)] == [free] * 3
        assert free_port(kind=socket.SOCK_DGRAM) == taken
        assert free_dns_port() == free


def test_a_resolver_needs_both(two_ports: tuple[int, int]) -> None:
    """One that only UDP has taken is passed over too."""
    taken, free = two_ports
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((HOST, taken))
        assert free_dns_port() == free


def test_a_host_that_is_not_here_is_an_error() -> None:
    """No search without end."""
    with pytest.raises(OSError, match="assign"):
        free_port("192.0.2.1")
