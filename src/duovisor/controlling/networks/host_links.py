"""Bridges of our own on this host, and what else of IPv4 there is; through pyroute2.

A bridge of ours says so in its alias, ``duovisor HOME NETWORK``: whose state folder, and which network. All
of this may block. pyroute2 takes a third of a second to import, and is left alone where nobody has networks.
"""

from __future__ import annotations

import errno
import hashlib
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import HostLacksError, NetworkError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyroute2 import IPRoute

MARK = "duovisor"
_AF_INET = 2
_UP, _LOOPBACK = 0x1, 0x8
_BROADCAST = 3  # RTN_BROADCAST
_DEFAULT_PREFIX_MAX = 1  # a VPN's two halves of everything count as a default route


class Link(NamedTuple):
    """An interface; ``ports`` are those that it is a bridge for."""

    name: str
    alias: str
    is_bridge: bool
    filters_vlans: bool
    is_up: bool
    is_loopback: bool
    addresses: tuple[IPv4Interface, ...]
    ports: tuple[str, ...]


def build_alias(home: str, uuid: str) -> str:
    """How the bridge of a network is told from others; pure."""
    return f"{MARK} {home} {uuid}"


def build_home(state: Path) -> str:
    """What stands for a state folder in aliases; pure."""
    return hashlib.sha256(str(state).encode()).hexdigest()[:12]


def read_links() -> dict[str, Link]:
    """The interfaces of this host by name. Raises ``NetworkError``."""
    with _route() as route:
        links = list(route.get_links())
        names = {link["index"]: link.get("ifname") for link in links}
        addresses: dict[int, list[IPv4Interface]] = {}
        for each in route.get_addr(family=_AF_INET):
            text = f"{each.get('local') or each.get('address')}/{each['prefixlen']}"
            addresses.setdefault(each["index"], []).append(IPv4Interface(text))
        ports: dict[int, list[str]] = {}
        for link in links:
            if bridge := link.get("master"):
                ports.setdefault(bridge, []).append(names[link["index"]])
        return {
            names[link["index"]]: Link(
                names[link["index"]],
                link.get("ifalias") or "",
                link.get(("linkinfo", "kind")) == "bridge",
                bool(link.get(("linkinfo", "data", "br_vlan_filtering"))),
                bool(link["flags"] & _UP),
                bool(link["flags"] & _LOOPBACK),
                tuple(addresses.get(link["index"], ())),
                tuple(sorted(ports.get(link["index"], ()))),
            )
            for link in links
        }


def read_taken(links: dict[str, Link]) -> dict[IPv4Network, str]:
    """The subnets that the host has addresses in or routes to, and by what. Raises ``NetworkError``."""
    taken = {
        address.network: f"the host's {link.name}" for link in links.values() for address in link.addresses
    }
    with _route() as route:
        for each in route.get_routes(family=_AF_INET):
            if each["dst_len"] > _DEFAULT_PREFIX_MAX and each["type"] != _BROADCAST:
                subnet = IPv4Network(f"{each.get('dst')}/{each['dst_len']}", strict=False)
                taken.setdefault(subnet, "a route of the host's")
    return taken


def make_bridge(name: str, alias: str, address: IPv4Interface | None, *, vlans: bool) -> None:
    """Make a bridge, or what is missing of it. Raises ``NetworkError`` when one of another's has the name."""
    with _route() as route:
        known = read_links().get(name)
        if known is None:
            mac = "02" + hashlib.sha256(alias.encode()).hexdigest()[:10]
            # a bridge without an address of its own would change it as cards come and go
            options = {"address": ":".join(mac[at : at + 2] for at in range(0, 12, 2)), "br_forward_delay": 0}
            route.link("add", ifname=name, kind="bridge", **options)
            known = read_links()[name]
            route.link("set", index=_index(route, name), ifalias=alias)
        elif known.alias != alias:
            raise NetworkError(
                f"{name} is there, and not ours (alias {known.alias!r})", remedy=f"ip link delete {name}"
            )
        index = _index(route, name)
        if vlans and not known.filters_vlans:
            _filter_vlans(route, index)
        if address is not None and address not in known.addresses:
            route.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
        route.link("set", index=index, state="up")


def remove_bridge(name: str, alias: str, *, half_made: bool = False) -> bool:
    """Remove a bridge of ours, if it is there; ``half_made``: it may have no alias yet."""
    known = read_links().get(name)
    if known is None or not (known.alias == alias or (half_made and known.is_bridge and not known.alias)):
        return False
    with _route() as route:
        route.link("del", index=_index(route, name))
    return True


def _filter_vlans(route: IPRoute, index: int) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.link("set", index=index, kind="bridge", br_vlan_filtering=1)
    except NetlinkError as error:
        raise HostLacksError(
            f"the bridges of this kernel know no VLANs ({error})",
            remedy="a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or leave --vlans out",
        ) from error


def _index(route: IPRoute, name: str) -> int:
    found: list[int] = route.link_lookup(ifname=name)
    if not found:
        raise NetworkError(f"{name} has gone meanwhile")
    return found[0]


@contextmanager
def _route() -> Iterator[IPRoute]:
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise HostLacksError(
                "to make networks needs the right to do so (CAP_NET_ADMIN)",
                remedy="let the service run as root, or use network: user",
            ) from error
        raise NetworkError(f"the kernel refuses: {error}") from error
    except OSError as error:
        raise NetworkError(f"the kernel refuses: {error.strerror}") from error
