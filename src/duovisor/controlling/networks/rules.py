"""The packet filter's table of one network, ``inet dv-NAME``: where its packets may go; pure.

The table takes the place of the one that was there, in one transaction. Source: nft(8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.networks.records import NetworkKind

if TYPE_CHECKING:
    from duovisor.controlling.networks.documents import Forward, NetworkDocument

OURS = "dv-*"
HOOK = "type {kind} hook {hook} priority {priority}; policy accept;"


def build_table(document: NetworkDocument) -> str:
    """The script that makes or replaces the table of a network of ours."""
    chains = {
        ("filter", "forward", "filter"): _build_forward(document),
        ("filter", "input", "filter"): _build_input(document),
        ("nat", "prerouting", "dstnat"): _build_forwarded(document, f'iifname != "{document.interface}" '),
        ("nat", "output", "-100"): _build_forwarded(document, "ip daddr != 127.0.0.0/8 "),
        ("nat", "postrouting", "srcnat"): _build_masquerade(document),
    }
    lines = [build_table_removal(document.interface), f"table inet {document.interface} {{"]
    for (kind, hook, priority), rules in chains.items():
        if rules:
            lines.append(f"  chain {hook} {{")
            lines += [
                f"    {line}" for line in (HOOK.format(kind=kind, hook=hook, priority=priority), *rules)
            ]
            lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def build_table_removal(interface: str) -> str:
    """The lines that remove a network's table, if there is one."""
    return f"table inet {interface}\ndelete table inet {interface}"


def _build_forward(document: NetworkDocument) -> list[str]:
    """Between interfaces. Without our table, a host that passes packets on would pass on these, too."""
    name = document.interface
    within = f'iifname "{name}" oifname "{name}" accept'
    if document.type is NetworkKind.ISOLATED:
        return [within, f'iifname "{name}" drop', f'oifname "{name}" drop']
    rules = [
        within,
        f'iifname "{name}" ip saddr != {document.subnet} drop',
        f'iifname "{name}" ct status dnat accept',
        f'oifname "{name}" ct status dnat accept',
        f'iifname "{name}" oifname "{OURS}" drop',
        f'iifname "{name}" accept',
        f'oifname "{name}" ct state established,related accept',
        f'oifname "{name}" drop',
    ]
    # what passes packets on only because of us does so only for us
    return [*rules, *(f'iifname "{uplink}" oifname != "{OURS}" drop' for uplink in document.uplinks)]


def _build_input(document: NetworkDocument) -> list[str]:
    """To the host itself: from an isolated network only what DHCP and DNS need, and a ping."""
    if document.type is NetworkKind.NAT:
        return []
    at = f'iifname "{document.interface}"'
    answered = [
        f"{at} {what} accept" for what in ("udp dport { 53, 67 }", "tcp dport 53", "icmp type echo-request")
    ]
    answers = f"{at} ct state established,related accept"
    return [answers, *(answered if document.subnet else ()), f"{at} drop"]


def _build_forwarded(document: NetworkDocument, where: str) -> list[str]:
    rules = []
    for forward in document.forwards:
        address = document.find_address(forward.mac)
        if address is not None:
            rules.append(f"{where}{_match(forward)} dnat ip to {address}:{forward.guest_port}")
    return rules


def _match(forward: Forward) -> str:
    place = f"ip daddr {forward.host_address}" if forward.host_address else "fib daddr type local"
    return f"{place} {forward.protocol} dport {forward.host_port}"


def _build_masquerade(document: NetworkDocument) -> list[str]:
    if document.type is not NetworkKind.NAT:
        return []
    subnet = document.subnet
    return [f'ip saddr {subnet} ip daddr != {subnet} oifname != "{document.interface}" masquerade']
