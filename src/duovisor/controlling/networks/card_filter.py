"""What gets through a network card's TAP: no other's address, and what its firewall allows; in both designs.

One table of the bridge family for the whole host, in which two maps lead from a TAP's name to its chains, so
that a frame costs two look-ups however many cards there are. Bridges of many kernels track no connections, so
answers are told here: a TCP segment that opens nothing is one, a datagram when its like went the other way
within ``ANSWER_S``. A card's rules are there before its TAP is on a bridge; where the TAP is gone, whoever
comes next removes them.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from duovisor.controlling.networks import nft
from duovisor.spec.firewall import Direction, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.spec.firewall import FirewallRule
    from duovisor.spec.vm import NicSpec

TABLE = "bridge duovisor"
ANSWER_S = 180
FLOWS_MAX = 65535
# beside what comes in a second (Linux, nft_limit.c). A frame of the guest's may have 64 KiB
BURST_BYTES_MIN = 2 << 16
_FLOW = {
    Direction.OUT: "ip daddr . udp dport . udp sport",
    Direction.IN: "ip saddr . udp sport . udp dport",
}
_OPENS_NOTHING = "ip protocol tcp tcp flags & (syn | ack) != syn accept"
_LATER_FRAGMENT = "ip frag-off & 0x1fff != 0 accept"
_ERRORS = "icmp type { echo-reply, destination-unreachable, time-exceeded, parameter-problem } accept"


def install_filter(tap: str, mac: str, nic: NicSpec) -> None:
    """Put a card's rules in force for its TAP. Raises ``HostLacksError``, ``NetworkError``."""
    nft.run_script(build_filter(tap, mac, nic))


def remove_filter(tap: str) -> None:
    """Remove the rules of a TAP, unless somebody still holds that."""
    if not _is_there(tap):
        nft.run_script(build_removal([tap]))


def forget_filter(tap: str) -> None:
    """Remove the rules of a TAP that goes on without. Raises as above."""
    if tap in _list_senders():
        nft.run_script(build_removal([tap]))


def sweep_filters() -> tuple[str, ...]:
    """Remove the rules of TAPs that are gone, whoever's they were; their names. Raises as above."""
    gone = tuple(tap for tap in _list_senders() if not _is_there(tap))
    if gone:
        nft.run_script(build_removal(gone))
    return gone


def build_filter(tap: str, mac: str, nic: NicSpec) -> str:
    """The script for one card; pure. It takes the place of what there is for that TAP."""
    senders, receivers = f"from-{tap}", f"to-{tap}"
    lines = [
        f"table {TABLE} {{",
        "  map senders { type ifname : verdict; }",
        "  map receivers { type ifname : verdict; }",
        f"  set flows-{tap} {{ type ipv4_addr . inet_service . inet_service; "
        f"flags dynamic,timeout; size {FLOWS_MAX}; timeout {ANSWER_S}s; }}",
        "  chain prerouting { type filter hook prerouting priority filter; }",
        "  chain postrouting { type filter hook postrouting priority filter; }",
        f"  chain {senders} {{ }}",
        f"  chain {receivers} {{ }}",
        "}",
        *(f"flush chain {TABLE} {name}" for name in ("prerouting", "postrouting", senders, receivers)),
        f"add rule {TABLE} prerouting iifname vmap @senders",
        f"add rule {TABLE} postrouting oifname vmap @receivers",
        *(f"add rule {TABLE} {senders} {rule}" for rule in build_sending(tap, mac, nic)),
        *(f"add rule {TABLE} {receivers} {rule}" for rule in build_receiving(tap, nic)),
        f'add element {TABLE} senders {{ "{tap}" : jump {senders} }}',
        f'add element {TABLE} receivers {{ "{tap}" : jump {receivers} }}',
    ]
    return "\n".join(lines) + "\n"


def build_removal(taps: Iterable[str]) -> str:
    """The script that removes the rules of TAPs; pure."""
    lines = []
    for tap in taps:
        lines += [f'delete element {TABLE} {name} {{ "{tap}" }}' for name in ("senders", "receivers")]
        lines += [f"delete chain {TABLE} {name}-{tap}" for name in ("from", "to")]
        lines.append(f"delete set {TABLE} flows-{tap}")
    return "\n".join(lines) + "\n"


def build_sending(tap: str, mac: str, nic: NicSpec) -> list[str]:
    """The rules for what the guest sends; pure."""
    rules = build_limit(nic.out_limit)
    if nic.is_filtered:
        rules.append(f"ether saddr != {mac} drop")
    if nic.address is not None:
        rules += [
            f"ether type arp arp saddr ether {mac} arp saddr ip {{ 0.0.0.0, {nic.address} }} accept",
            "ether type != ip drop",
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
            f"ip saddr != {nic.address} drop",
            "udp sport 67 drop",  # a DHCP server of the guest's own
        ]
    if nic.firewall is not None:
        if nic.address is None:
            rules += ["ether type arp accept", "ether type != ip drop"]
        rules += _build_allowed(tap, Direction.OUT, nic.firewall, "udp sport 68 udp dport 67 accept")
    return rules


def build_receiving(tap: str, nic: NicSpec) -> list[str]:
    """The rules for what the guest gets; pure."""
    rules = build_limit(nic.in_limit)
    if nic.firewall is None:
        return rules
    rules += ["ether type arp accept", "ether type != ip drop"]
    return rules + _build_allowed(tap, Direction.IN, nic.firewall, "udp sport 67 udp dport 68 accept")


def build_limit(bytes_per_s: int | None) -> list[str]:
    """The rule that drops what comes faster; pure."""
    if bytes_per_s is None:
        return []
    burst = max(bytes_per_s // 10, BURST_BYTES_MIN)
    return [f"limit rate over {bytes_per_s} bytes/second burst {burst} bytes drop"]


def _build_allowed(tap: str, direction: Direction, firewall: Iterable[FirewallRule], dhcp: str) -> list[str]:
    """Answers, and what is listed; what goes out is free where nothing is listed."""
    listed = [rule for rule in firewall if rule.direction is direction]
    notes = f"ip protocol udp update @flows-{tap} {{ {_FLOW[direction]} }}"
    if direction is Direction.OUT and not listed:
        return [notes]
    rules = [dhcp, _OPENS_NOTHING, _LATER_FRAGMENT, _ERRORS]
    rules.append(f"ip protocol udp {_FLOW[direction]} @flows-{tap} accept")
    for rule in listed:
        side = "saddr" if direction is Direction.IN else "daddr"
        place = f"ip {side} {rule.cidr} "
        if rule.protocol in (Protocol.UDP, Protocol.ANY):
            ports = f"udp dport {rule.ports} " if rule.ports else ""
            rules.append(f"{place}{ports}{notes} accept")
        if rule.protocol is not Protocol.UDP:
            rules.append(f"{place}{_match(rule)}accept")
    return [*rules, "drop"]


def _match(rule: FirewallRule) -> str:
    if rule.ports:
        return f"{rule.protocol} dport {rule.ports} "
    return "" if rule.protocol is Protocol.ANY else f"ip protocol {rule.protocol} "


def _list_senders() -> list[str]:
    listed = nft.list_objects("map", *TABLE.split(), "senders")
    elements = [each["map"].get("elem", ()) for each in listed if "map" in each]
    return [str(key) for pairs in elements for key, _ in pairs]


def _is_there(interface: str) -> bool:
    try:
        socket.if_nametoindex(interface)
    except OSError:
        return False
    return True
