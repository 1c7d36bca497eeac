"""What a network consists of on the host, made and removed; every function may block and can be repeated.

The order is the same each time: rules before anything passes packets on, and until nothing does.
"""

from __future__ import annotations

import zlib
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING

from duovisor.controlling.networks import nft
from duovisor.controlling.networks.errors import NetworkRefusedError
from duovisor.controlling.networks.forwarding import OURS, is_router, passes_on, set_passing_on, silence_ipv6
from duovisor.controlling.networks.host_links import build_alias, make_bridge, read_links, remove_bridge
from duovisor.controlling.networks.interfaces import NAME_MAX
from duovisor.controlling.networks.records import NetworkKind
from duovisor.controlling.networks.rules import build_table, build_table_removal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from duovisor.controlling.networks.documents import NetworkDocument
    from duovisor.controlling.networks.host_links import Link


def choose_interface(name: str, taken: Collection[str]) -> str:
    """A name for a network's bridge that nobody has; pure. Raises ``NetworkRefusedError``."""
    plain = "".join(each for each in name.lower() if each.isalnum() or each == "-")
    room = NAME_MAX - len(OURS)
    stems = [plain] if plain and len(plain) <= room else []
    stems += [
        f"{plain[: room - 5]}-{zlib.crc32(f'{name}/{attempt}'.encode()) & 0xFFFF:04x}"
        for attempt in range(64)
    ]
    for stem in stems:
        if f"{OURS}{stem}" not in taken:
            return f"{OURS}{stem}"
    raise NetworkRefusedError(f"every name for the bridge of {name} is taken")


def make_on_host(home: str, document: NetworkDocument) -> None:
    """Make what is missing of a network of ours. Raises ``NetworkError`` or ``HostLacksError``."""
    gateway, network = document.gateway, document.network
    address = IPv4Interface(f"{gateway}/{network.prefixlen}") if network is not None else None
    nft.run_script(build_table(document))
    make_bridge(document.interface, build_alias(home, document.uuid), address, vlans=document.vlans)
    silence_ipv6(document.interface)
    if document.type is NetworkKind.NAT:
        for interface in (document.interface, *document.uplinks):
            set_passing_on(interface, on=True)


def remove_from_host(home: str, document: NetworkDocument, others: Collection[NetworkDocument]) -> None:
    """Remove all of a network of ours; what ``others`` need stays. Raises as ``make_on_host``."""
    kept = {uplink for other in others for uplink in other.uplinks}
    if not is_router():  # else somebody has made it one meanwhile, and wants it so
        for uplink in document.uplinks:
            if uplink not in kept:
                set_passing_on(uplink, on=False)
    remove_bridge(document.interface, build_alias(home, document.uuid), half_made=True)
    nft.run_script(build_table_removal(document.interface))


def replace_rules(document: NetworkDocument) -> None:
    """Put a network's rules in force as they are now. Raises as ``make_on_host``."""
    nft.run_script(build_table(document))


def find_problem(document: NetworkDocument, links: Mapping[str, Link]) -> str:
    """What of a network is not there; empty when all is; looks at the host but changes nothing."""
    link = links.get(document.interface)
    if link is None:
        return f"{document.interface} is not there"
    if not link.is_bridge:
        return f"{document.interface} is no bridge"
    if document.is_ours:
        if document.gateway not in (None, *(each.ip for each in link.addresses)):
            return f"{document.interface} has lost its address {document.gateway}"
        if document.type is NetworkKind.NAT and not passes_on(document.interface):
            return f"{document.interface} does not pass packets on"
    return ""


def remove_orphans(home: str, uuids: Collection[str]) -> tuple[str, ...]:
    """Remove bridges of ours whose networks nobody knows any more, with their rules; their names."""
    gone = []
    for link in read_links().values():
        mark, _, uuid = link.alias.rpartition(" ")
        if (
            mark == build_alias(home, "").rstrip()
            and uuid not in uuids
            and remove_bridge(link.name, link.alias)
        ):
            nft.run_script(build_table_removal(link.name))
            gone.append(link.name)
    return tuple(gone)
