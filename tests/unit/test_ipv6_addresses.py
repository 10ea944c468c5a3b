from __future__ import annotations

import pytest

from probe.flows.ipv6.addresses import InterfaceAddress, read_addresses

# As the kernel writes /proc/net/if_inet6: address, index, prefix length, scope, flags, name.
LINES = """\
fe80000000000000dea632fffe010203 02 40 20 80     eth0
20010db8000000010000000000000001 02 40 00 80     eth0
20010db800000001dea632fffe010203 02 40 00 00     eth0
20010db8000000011111222233334444 02 40 00 01     eth0
20010db8000000020000000000001234 02 80 00 00     eth0
20010db8000000031111222233334444 02 40 00 00     eth0
fd770000000000000000000000000001 02 40 00 80     eth0
20010db8000000040000000000000001 02 40 00 60     eth0
20010db8000000050000000000000001 02 40 00 c8     eth0
20010db8000000060000000000000001 03 40 00 80    wwan0
00000000000000000000000000000001 01 80 10 80       lo
a line of another kernel
""".splitlines()


@pytest.mark.parametrize(
    "expected",
    [
        InterfaceAddress("fe80::dea6:32ff:fe01:203", "link_local", "slaac", is_usable=True),
        InterfaceAddress("2001:db8:0:1::1", "global", "static", is_usable=True),
        InterfaceAddress("2001:db8:0:1:dea6:32ff:fe01:203", "global", "slaac", is_usable=True),
        InterfaceAddress("2001:db8:0:1:1111:2222:3333:4444", "global", "temporary", is_usable=True),
        InterfaceAddress("2001:db8:0:2::1234", "global", "dhcpv6", is_usable=True),
        InterfaceAddress("2001:db8:0:3:1111:2222:3333:4444", "global", "slaac", is_usable=True),
        InterfaceAddress("fd77::1", "unique_local", "static", is_usable=True),
        InterfaceAddress("2001:db8:0:4::1", "global", "slaac", is_usable=False),
        InterfaceAddress("2001:db8:0:5::1", "global", "static", is_usable=False),
    ],
)
def test_what_an_address_is(expected: InterfaceAddress) -> None:
    """By its prefix, its interface identifier and the kernel's flags; deprecated, tentative and doubled ones not."""
    assert expected in read_addresses(LINES, "eth0")


def test_only_the_interfaces_own() -> None:
    """Nine of one, one of the other, none of a third."""
    assert len(read_addresses(LINES, "eth0")) == 9
    assert [address.address for address in read_addresses(LINES, "wwan0")] == ["2001:db8:0:6::1"]
    assert [address.kind for address in read_addresses(LINES, "lo")] == ["link_local"]
    assert read_addresses(LINES, "eth1") == ()
