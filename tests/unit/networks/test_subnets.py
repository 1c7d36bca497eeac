"""Which subnets networks may have, and which addresses cards: without a host."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from duovisor.controlling.networks.checks import check_shape
from duovisor.controlling.networks.documents import Forward, Reservation
from duovisor.controlling.networks.errors import NetworkRefusedError, SubnetRefusedError
from duovisor.controlling.networks.host import choose_interface
from duovisor.controlling.networks.interfaces import NAME_MAX
from duovisor.controlling.networks.records import NetworkKind, Wanted
from duovisor.controlling.networks.subnets import check_overlap, choose_subnet, parse_subnet, reserve

TAKEN = {IPv4Network("10.201.0.0/24"): "the host's eth0", IPv4Network("10.201.1.0/30"): "a route"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x", "is no subnet"),
        ("10.0.0.1/24", "is no subnet"),
        ("fd00::/64", "is no subnet"),
        ("10.0.0.0/30", "has 4 addresses"),
        ("10.0.0.0/8", "has 16777216 addresses"),
        ("8.8.8.0/24", "not for private use"),
        ("127.0.1.0/24", "not for private use"),
        ("169.254.1.0/24", "not for private use"),
        ("0.0.0.0/16", "not for private use"),
        ("224.0.0.0/24", "not for private use"),
    ],
)
def test_what_is_no_subnet_for_a_network(text: str, said: str) -> None:
    with pytest.raises(SubnetRefusedError, match=said):
        parse_subnet(text)


def test_a_subnet_overlaps_nobodys() -> None:
    assert choose_subnet(TAKEN) == IPv4Network("10.201.2.0/24")
    check_overlap(IPv4Network("10.201.2.0/24"), TAKEN)
    for text in ("10.201.0.128/25", "10.201.0.0/16"):
        with pytest.raises(SubnetRefusedError, match=r"overlaps 10\.201\.0\.0/24 of the host's eth0"):
            check_overlap(IPv4Network(text), TAKEN)
    with pytest.raises(SubnetRefusedError, match="every subnet"):
        choose_subnet({IPv4Network("10.0.0.0/8"): "a VPN"})


def test_an_address_stays_with_its_card() -> None:
    subnet = IPv4Network("10.0.0.0/29")
    found: tuple[Reservation, ...] = ()
    for number in range(5):
        found = reserve(subnet, found, f"52:54:00:00:00:0{number}", f"vm{number}")
    assert [each.address for each in found] == [f"10.0.0.{last}" for last in range(2, 7)]
    assert reserve(subnet, found, "52:54:00:00:00:03", "vm3") == found
    with pytest.raises(NetworkRefusedError, match="no free address"):
        reserve(subnet, found, "52:54:00:00:00:09", "late")
    with pytest.raises(NetworkRefusedError, match="that of a card of vm3"):
        reserve(subnet, found, "52:54:00:00:00:03", "twin")
    assert reserve(subnet, found[1:], "52:54:00:00:00:09", "late")[-1].address == "10.0.0.2"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(kind=NetworkKind.BRIDGED), "needs the bridge"),
        (Wanted(kind=NetworkKind.BRIDGED, bridge="br0", subnet="10.0.0.0/24"), "no subnet"),
        (Wanted(kind=NetworkKind.BRIDGED, bridge="br0", vlans=True), "no vlans"),
        (Wanted(kind=NetworkKind.NAT, bridge="br0"), "a bridge of its own"),
        (Wanted(kind=NetworkKind.NAT, vlans=True), "on no VLAN"),
    ],
)
def test_what_does_not_go_together(wanted: Wanted, said: str) -> None:
    with pytest.raises(NetworkRefusedError, match=said):
        check_shape(wanted)


def test_a_bridges_name_fits_and_is_free() -> None:
    assert choose_interface("lan", ()) == "dv-lan"
    taken: set[str] = set()
    for name in ("lan", "Lan", "a-network-with-a-long-name", "a-network-with-a-long-nose", "_._"):
        for _ in range(3):
            found = choose_interface(name, taken)
            assert found not in taken
            assert found.startswith("dv-")
            assert len(found) <= NAME_MAX
            taken.add(found)


def test_which_ports_are_the_same() -> None:
    def forward(protocol: str, address: str | None, port: int) -> Forward:
        return Forward.model_validate(
            {"protocol": protocol, "host_address": address, "host_port": port, "mac": "m", "guest_port": 1}
        )

    every, one = forward("tcp", None, 22), forward("tcp", "10.0.0.1", 22)
    assert every.clashes(one)
    assert one.clashes(every)
    assert not one.clashes(forward("tcp", "10.0.0.2", 22))
    assert not one.clashes(forward("udp", "10.0.0.1", 22))
    assert not one.clashes(forward("tcp", "10.0.0.1", 23))
