"""What the packet filter is told of networks and of cards, and the server of who is who: text by text."""

from __future__ import annotations

from pathlib import Path

import pytest

from duovisor.controlling.networks.card_filter import (
    BURST_BYTES_MIN,
    build_filter,
    build_receiving,
    build_sending,
)
from duovisor.controlling.networks.dnsmasq import build_argv, build_cards, build_names
from duovisor.controlling.networks.documents import Forward, NetworkDocument, Reservation, build_label
from duovisor.controlling.networks.records import NetworkKind
from duovisor.controlling.networks.rules import build_table
from duovisor.controlling.vms.records import now
from duovisor.spec.vm import NicSpec

MAC = "52:54:00:00:00:01"
LAN = NetworkDocument(
    uuid="u",
    type=NetworkKind.NAT,
    interface="dv-lan",
    subnet="10.5.0.0/24",
    dhcp=True,
    vlans=False,
    uplinks=("eth0",),
    reservations=(
        Reservation(mac=MAC, address="10.5.0.2", vm="Web.1"),
        Reservation(mac="52:54:00:00:00:02", address="10.5.0.3", vm="web-1"),
    ),
    forwards=(
        Forward(protocol="tcp", host_address=None, host_port=2222, mac=MAC, guest_port=22),
        Forward(protocol="udp", host_address="192.0.2.1", host_port=53, mac=MAC, guest_port=5353),
    ),
    created_at=now(),
)


def list_rules(script: str, chain: str) -> list[str]:
    """The rules of a chain, without what it hooks into."""
    _, _, rest = script.partition(f"  chain {chain} {{\n")
    return [line.strip() for line in rest.partition("\n  }")[0].splitlines()[1:]]


def test_a_nat_network_leads_out_and_in_only_where_a_port_does() -> None:
    table = build_table(LAN)
    assert table.startswith("table inet dv-lan\ndelete table inet dv-lan\ntable inet dv-lan {\n")
    assert list_rules(table, "forward") == [
        'iifname "dv-lan" oifname "dv-lan" accept',
        'iifname "dv-lan" ip saddr != 10.5.0.0/24 drop',
        'iifname "dv-lan" ct status dnat accept',
        'oifname "dv-lan" ct status dnat accept',
        'iifname "dv-lan" oifname "dv-*" drop',
        'iifname "dv-lan" accept',
        'oifname "dv-lan" ct state established,related accept',
        'oifname "dv-lan" drop',
        'iifname "eth0" oifname != "dv-*" drop',
    ]
    assert list_rules(table, "prerouting") == [
        'iifname != "dv-lan" fib daddr type local tcp dport 2222 dnat ip to 10.5.0.2:22',
        'iifname != "dv-lan" ip daddr 192.0.2.1 udp dport 53 dnat ip to 10.5.0.2:5353',
    ]
    masquerade = 'ip saddr 10.5.0.0/24 ip daddr != 10.5.0.0/24 oifname != "dv-lan" masquerade'
    assert list_rules(table, "postrouting") == [masquerade]
    assert "chain input" not in table


def test_an_isolated_network_leads_nowhere() -> None:
    table = build_table(LAN.changed(type=NetworkKind.ISOLATED, forwards=(), uplinks=()))
    assert list_rules(table, "forward")[1:] == ['iifname "dv-lan" drop', 'oifname "dv-lan" drop']
    assert list_rules(table, "input")[-1] == 'iifname "dv-lan" drop'
    assert "masquerade" not in table
    assert "dport" not in build_table(LAN.changed(type=NetworkKind.ISOLATED, subnet=None, forwards=()))


def test_a_card_with_an_address_sends_from_that_alone() -> None:
    card = NicSpec(network="lan", bridge="dv-lan", address="10.5.0.2")
    assert build_sending("t-0", MAC, card) == [
        f"ether saddr != {MAC} drop",
        f"ether type arp arp saddr ether {MAC} arp saddr ip {{ 0.0.0.0, 10.5.0.2 }} accept",
        "ether type != ip drop",
        "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        "ip saddr != 10.5.0.2 drop",
        "udp sport 67 drop",
    ]
    assert build_receiving("t-0", card) == []


def test_a_firewall_lets_in_what_it_lists_and_answers() -> None:
    card = NicSpec.model_validate({"bridge": "br0", "firewall": ["in tcp 22 from 10.0.0.0/8", "in udp 53"]})
    received = build_receiving("t-0", card)
    assert received[-3:] == [
        "ip saddr 10.0.0.0/8 tcp dport 22 accept",
        "ip saddr 0.0.0.0/0 udp dport 53 ip protocol udp update @flows-t-0 "
        "{ ip saddr . udp sport . udp dport } accept",
        "drop",
    ]
    assert build_sending("t-0", MAC, card)[1:] == [
        "ether type arp accept",
        "ether type != ip drop",
        "ip protocol udp update @flows-t-0 { ip daddr . udp dport . udp sport }",
    ]
    closed = NicSpec.model_validate({"bridge": "br0", "firewall": ["out tcp 443"]})
    assert build_sending("t-0", MAC, closed)[-2:] == ["ip daddr 0.0.0.0/0 tcp dport 443 accept", "drop"]
    assert build_receiving("t-0", closed)[-1] == "drop"
    assert not any("tcp dport" in rule for rule in build_receiving("t-0", closed))


def test_a_cards_rules_take_the_place_of_older_ones() -> None:
    script = build_filter("t-0", MAC, NicSpec(network="lan", bridge="dv-lan"))
    flushed = [line for line in script.splitlines() if line.startswith("flush")]
    assert len(flushed) == 4
    assert script.index(flushed[-1]) < script.index("add rule")


def test_the_server_answers_those_it_knows() -> None:
    argv = build_argv("My LAN"[:2] + "-lan", LAN, Path("/usr/sbin/dnsmasq"))
    assert "--dhcp-range=10.5.0.0,static,255.255.255.0,1h" in argv
    assert "--domain=my-lan.internal" in argv
    assert "--dhcp-option=option:router,10.5.0.1" in argv
    assert "--no-resolv" not in argv
    isolated = build_argv("x", LAN.changed(type=NetworkKind.ISOLATED), Path("/usr/sbin/dnsmasq"))
    assert {"--dhcp-option=option:router", "--no-resolv"} <= set(isolated)


def test_two_vms_with_the_same_label_share_no_name() -> None:
    assert build_cards(LAN) == f"{MAC},10.5.0.2,web-1\n52:54:00:00:00:02,10.5.0.3\n"
    assert build_names(LAN) == "10.5.0.2 web-1\n"


@pytest.mark.parametrize(("name", "label"), [("Web.1", "web-1"), ("a_b", "a-b"), ("x" * 63, "x" * 63)])
def test_a_name_as_a_label(name: str, label: str) -> None:
    assert build_label(name) == label


def test_a_limit_is_the_first_rule_and_needs_no_other() -> None:
    card = NicSpec(bridge="br0", in_limit=100 << 20, out_limit=64 << 10)
    assert build_receiving("t", card) == ["limit rate over 104857600 bytes/second burst 10485760 bytes drop"]
    (sending,) = build_sending("t", MAC, card)
    assert sending == f"limit rate over 65536 bytes/second burst {BURST_BYTES_MIN} bytes drop"
    strict = card.model_copy(update={"address": "10.0.0.7"})
    assert build_sending("t", MAC, strict)[:2] == [sending, f"ether saddr != {MAC} drop"]
    assert build_sending("t", MAC, card.without_limits()) == []
