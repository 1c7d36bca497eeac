"""Rules of a card's firewall: as they are written, and what is none."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from duovisor.spec.firewall import FirewallRule
from duovisor.spec.vm import NicSpec, VirtualMachineSpec


@pytest.mark.parametrize(
    "text",
    [
        "in tcp 22",
        "in tcp 8000-8100 from 10.0.0.0/8",
        "out udp 53 to 10.0.0.1/32",
        "in icmp",
        "out any",
        "in any from 192.168.1.0/24",
    ],
)
def test_a_rule_reads_as_it_is_written(text: str) -> None:
    assert str(FirewallRule.model_validate(text)) == text


def test_an_address_is_a_network_of_one() -> None:
    assert FirewallRule.model_validate("in tcp 22 from 10.0.0.1").cidr == "10.0.0.1/32"
    assert FirewallRule.model_validate({"direction": "in", "protocol": "tcp", "ports": 22}).ports == "22"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "is no rule"),
        ("tcp 22", "is no rule"),
        ("in sctp 22", "is no rule"),
        ("in tcp 22 to 10.0.0.0/8", "is no rule"),
        ("in tcp 22 from", "is no rule"),
        ("in tcp 22 from 10.0.0.1/8", "no IPv4 network"),
        ("in tcp 22 from ::/0", "no IPv4 network"),
        ("in tcp 22 from 10.0.0.0/8 ; drop", "is no rule"),
        ("in tcp 0", "neither a port"),
        ("in tcp 70000", "neither a port"),
        ("in tcp 30-20", "neither a port"),
        ("in icmp 8", "has no ports"),
        ("in 22", "has no ports"),
        ({"direction": "in", "ports": "22; accept", "protocol": "tcp"}, "neither a port"),
        ({"direction": "in", "port": "22"}, "Extra inputs"),
    ],
)
def test_what_is_no_rule(rule: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        FirewallRule.model_validate(rule)


def test_a_card_has_rules_where_it_is_on_a_bridge() -> None:
    card = NicSpec.model_validate({"network": "lan", "vlan": 7, "firewall": "in tcp 22; in icmp"})
    assert (card.is_bridged, card.is_filtered, card.managed_network) == (True, True, "lan")
    assert card.firewall is not None
    assert list(map(str, card.firewall)) == ["in tcp 22", "in icmp"]
    plain = NicSpec.model_validate({"bridge": "br0"})
    assert (plain.is_bridged, plain.is_filtered, plain.managed_network) == (True, False, None)
    assert NicSpec.model_validate({"bridge": "br0", "firewall": []}).is_filtered
    for key, value in {"firewall": [], "vlan": 1, "address": "10.0.0.1"}.items():
        with pytest.raises(ValidationError, match=f"{key} is for a bridged card"):
            NicSpec.model_validate({key: value})
    with pytest.raises(ValidationError, match="duovisor network forward"):
        NicSpec.model_validate({"network": "lan", "forward": ["2222:22"]})


def test_what_a_start_finds_is_no_part_of_a_definition() -> None:
    card = NicSpec(network="lan", bridge="dv-lan", address="10.0.0.2")
    own = NicSpec(network="bridge", bridge="br0", address="10.0.0.3")
    spec = VirtualMachineSpec(name="web", nics=(card, own))
    assert spec.without_places().nics == (NicSpec(network="lan"), own)
