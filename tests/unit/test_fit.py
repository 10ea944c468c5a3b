"""What is known to be impossible before anything is sent: each task says it, with the field at fault and a remedy."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.config import Targets
from probe.errors import NotRunError
from probe.flows.dns.message import Question
from probe.measure.targets import TargetGuard
from probe.messages import NotRunReason, Peer
from probe.tasks import TASKS
from probe.tasks.dns import DnsParameters
from probe.tasks.fit import Misfit, MisfitError, host_problem, refuse

V4, V6, NAME = "192.0.2.1", "2001:db8::1", "peer.example.vn"


def fields(task: str, parameters: dict[str, Any], peer: Peer | None) -> list[str]:
    """The fields at fault."""
    typed = msgspec.convert(parameters, TASKS[task].parameters)
    return [misfit.field for misfit in TASKS[task].misfits(typed, peer)]


def at(host: str = NAME, **changes: Any) -> Peer:
    """A peer."""
    return Peer(name="p", host=host, **changes)


@pytest.mark.parametrize("task", ["availability", "capacity", "path", "responsiveness", "round_trip", "web"])
def test_an_address_is_reached_by_its_own_ip_version(task: str) -> None:
    """A literal of the other version is the peer's fault; a name may have both."""
    for host, version, found in ((V4, 6, ["peers"]), (V6, 4, ["peers"]), (V4, 4, []), (V6, 6, []), (NAME, 6, [])):
        assert fields(task, {"ip_version": version}, at(host)) == found


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"dns", "host"}))
def test_a_plain_peer_fits_every_task_that_takes_one(task: str) -> None:
    """With all parameters at their defaults; so does one with a key and one with TLS."""
    for peer in (at(), at(tls=True), at(stamp_key="fleet")):
        assert fields(task, {}, peer) == []


@pytest.mark.parametrize(
    ("task", "parameters", "peer", "found"),
    [
        ("web", {}, None, ["url"]),
        ("web", {"url": "http://example.vn/"}, None, []),
        ("web", {"url": "http://example.vn/"}, at(), ["peers"]),
        ("web", {"url": f"http://{V4}/", "ip_version": 6}, None, ["url"]),
        ("web", {"url": f"http://[{V6}]/"}, None, ["url"]),
        ("web", {"url": f"http://{'x' * 64}.vn/"}, None, ["url"]),
        ("web", {"path": "/page"}, at(protocol="ndt7"), []),
        ("responsiveness", {}, at(protocol="ndt7"), ["peers"]),
        ("responsiveness", {}, at(protocol="librespeed"), ["peers"]),
        ("responsiveness", {"ip_version": 6}, at(V4, protocol="ndt7"), ["peers", "peers"]),
        ("capacity", {}, at(protocol="ndt7"), []),
        ("capacity", {"mode": "file", "file_bytes": 10**6}, at(protocol="ndt7"), []),
        ("capacity", {"mode": "file", "file_bytes": 10**6, "direction": "upload"}, at(protocol="ndt7"), []),
        ("capacity", {"mode": "file", "file_bytes": 10**6, "direction": "upload"}, at(protocol="librespeed"), []),
        ("availability", {"method": "stamp"}, at(stamp_key="fleet"), []),
        ("availability", {"method": "stamp"}, at(), []),
        ("availability", {"method": "icmp"}, at(stamp_key="fleet"), []),
        ("ipv6", {}, at(V4), ["peers"]),
        ("ipv6", {}, at(V6), []),
        ("ipv6", {"host": V4}, at(), ["host"]),
        ("ipv6", {"host_v6": V4}, at(), ["host_v6"]),
        ("ipv6", {"host_v6": V6}, at(V4), []),
        ("ipv6", {"host": NAME}, at(V4), []),
        ("ipv6", {"host": "a b"}, at(), ["host"]),
        ("ipv6", {"host": "peer.example.vn:8080"}, at(), ["host"]),
        ("dns", {}, None, []),
        ("dns", {}, at(), ["peers"]),
        ("host", {}, None, []),
        ("host", {}, at(), ["peers"]),
        ("round_trip", {}, at("peer.example.vn:862"), ["peers"]),
        ("round_trip", {}, at("300.0.2.1"), ["peers"]),
    ],
)
def test_what_a_task_needs(task: str, parameters: dict[str, Any], peer: Peer | None, found: list[str]) -> None:
    """The field that is at fault, or nothing."""
    assert fields(task, parameters, peer) == found


@pytest.mark.parametrize(
    ("task", "parameters", "field"),
    [
        ("capacity", {"mode": "capped"}, "max_bytes"),
        ("capacity", {"max_bytes": 10**6}, "max_bytes"),
        ("capacity", {"mode": "file"}, "file_bytes"),
        ("capacity", {"mode": "capped", "max_bytes": 10**6, "file_bytes": 10**6}, "file_bytes"),
        ("round_trip", {"packets": 10_000, "interval_s": 60.0}, "packets"),
        ("round_trip", {"method": "tcp", "packets": 10_000, "interval_s": 0.01, "time_out_s": 60.0}, "interval_s"),
        ("availability", {"operator_host": V6}, "operator_host"),
        ("availability", {"operator_host": "no host"}, "operator_host"),
        ("dns", {"record_type": "AAAA", "expected_addresses": [V4]}, "expected_addresses"),
        ("dns", {"random_label": True, "name": ".".join(["x" * 60] * 4)}, "name"),
        ("web", {"url": "http://example.vn/", "path": "/page"}, "path"),
    ],
)
def test_parameters_that_contradict_each_other_name_one(task: str, parameters: dict[str, Any], field: str) -> None:
    """The conversion fails, and its cause knows the field and a remedy or an example."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(parameters, TASKS[task].parameters)
    cause = caught.value.__cause__
    assert isinstance(cause, MisfitError)
    assert cause.misfit.field == field
    assert cause.misfit.remedy


def test_the_example_of_a_misfit_would_do() -> None:
    """What is proposed for a capped measurement is itself accepted."""
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert({"mode": "capped"}, TASKS["capacity"].parameters)
    assert isinstance(caught.value.__cause__, MisfitError)
    misfit = caught.value.__cause__.misfit
    msgspec.convert({"mode": "capped", misfit.field: misfit.example}, TASKS["capacity"].parameters)


def test_what_does_not_fit_is_not_run() -> None:
    """`bad_parameters`, with field, problem and remedy in the detail."""
    with pytest.raises(NotRunError) as caught:
        refuse([Misfit("peers", "is no peer", "name another")])
    assert caught.value.not_run.reason is NotRunReason.BAD_PARAMETERS
    assert caught.value.not_run.detail == "peers: is no peer (name another)"
    refuse([])


@pytest.mark.parametrize(
    ("host", "fits"),
    [
        (V4, True), (V6, True), (NAME, True), (NAME + ".", True), ("localhost", True), ("_x-1.test", True),
        ("", False), (".", False), ("a..b", False), ("a b", False), ("a:80", False), ("http://a", False),
        ("x" * 64, False), (".".join(["x" * 60] * 5), False), ("1.2.3", False), ("1.2.3.999", False), ("é.vn", False),
    ],
)  # fmt: skip
def test_a_host_is_an_address_or_a_name(host: str, *, fits: bool) -> None:
    """Without a port, a scheme, blanks, and without a number for a top-level domain."""
    assert (host_problem(host) is None) == fits


@given(st.text(alphabet="abz09-_.:/\\ é", max_size=80))
def test_a_host_that_fits_is_never_refused_for_its_form(host: str) -> None:
    """The device's guard takes for a host whatever is one here; where it leads to is another matter."""
    if host_problem(host) is not None:
        return
    guard = TargetGuard(Targets(networks=("0.0.0.0/0", "::/0"), domains=tuple({host.strip(".").split(".")[-1]})))
    guard.check(host)


@given(st.text(alphabet="abZ09-_.", min_size=1, max_size=200))
def test_every_name_that_dns_takes_can_be_asked_for(name: str) -> None:
    """No name passes the check that the question itself would then refuse."""
    try:
        parameters = msgspec.convert({"name": name}, DnsParameters)
    except msgspec.ValidationError:
        return
    Question(parameters.name, "A")
