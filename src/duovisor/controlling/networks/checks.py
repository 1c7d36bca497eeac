"""What can be asked of a network on this host; all of it looks, and changes nothing. It may block."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.networks.dnsmasq import find_dnsmasq, find_tools
from duovisor.controlling.networks.errors import ForwardExistsError, NetworkRefusedError
from duovisor.controlling.networks.forwarding import find_uplinks
from duovisor.controlling.networks.host import choose_interface
from duovisor.controlling.networks.host_links import read_links, read_taken
from duovisor.controlling.networks.records import NetworkKind
from duovisor.controlling.networks.subnets import check_overlap, choose_subnet, parse_subnet
from duovisor.hypervisor.qemu.nics import mac_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from ipaddress import IPv4Network

    from duovisor.controlling.networks.documents import Forward, NetworkDocument
    from duovisor.controlling.networks.host_links import Link
    from duovisor.controlling.networks.records import Wanted
    from duovisor.spec.vm import VirtualMachineSpec


class Place(NamedTuple):
    """Where a new network will be: its bridge, its subnet, and who has to pass packets on for it."""

    interface: str
    subnet: str | None
    uplinks: tuple[str, ...]


def check_wanted(name: str, wanted: Wanted, others: Collection[NetworkDocument]) -> Place:
    """Where a network can be. Raises ``NetworkRefusedError``, ``SubnetRefusedError``, ``HostLacksError``."""
    check_shape(wanted)
    if wanted.kind is NetworkKind.BRIDGED:
        assert wanted.bridge is not None
        require_bridge_of_host(wanted.bridge)
        return Place(wanted.bridge, None, ())
    if os.geteuid() != 0:
        raise HostLacksError(
            f"a network of kind {wanted.kind} needs root",
            remedy="let the service run as root, or network: user",
        )
    links = read_links()
    subnet = None
    if needs_subnet(wanted):
        subnet = str(find_subnet(wanted.subnet, links, others))
        if wanted.dhcp:
            find_dnsmasq()
            find_tools()
    uplinks: tuple[str, ...] = ()
    if wanted.kind is NetworkKind.NAT:
        uplinks = find_uplinks(links, {uplink for other in others for uplink in other.uplinks})
    return Place(choose_interface(name, {*links, *(each.interface for each in others)}), subnet, uplinks)


def check_shape(wanted: Wanted) -> None:
    """What goes together; pure. Raises ``NetworkRefusedError``."""
    if wanted.kind is NetworkKind.BRIDGED:
        if wanted.bridge is None:
            raise NetworkRefusedError(
                "a bridged network needs the bridge of the host that it is on", remedy="--bridge br0"
            )
        if wanted.subnet is not None or wanted.vlans:
            raise NetworkRefusedError(
                "a bridged network is what its bridge is: no subnet, no vlans of its own"
            )
    elif wanted.bridge is not None:
        raise NetworkRefusedError(
            f"a network of kind {wanted.kind} has a bridge of its own", remedy="--kind bridged"
        )
    if wanted.vlans and wanted.kind is NetworkKind.NAT:
        raise NetworkRefusedError(
            "the host's address in a NAT network is on no VLAN, and no card on one would reach it",
            remedy="one NAT network for each, or --kind isolated",
        )


def needs_subnet(wanted: Wanted) -> bool:
    """Whether the host has an address in such a network; pure."""
    return wanted.kind is NetworkKind.NAT or wanted.dhcp or wanted.subnet is not None


def find_subnet(
    wanted: str | None, links: dict[str, Link], others: Collection[NetworkDocument]
) -> IPv4Network:
    """The subnet that is wanted, or a free one. Raises ``SubnetRefusedError``."""
    taken = {each.network: f"network {each.interface}" for each in others if each.network is not None}
    taken |= {subnet: owner for subnet, owner in read_taken(links).items() if subnet not in taken}
    if wanted is None:
        return choose_subnet(taken)
    subnet = parse_subnet(wanted)
    check_overlap(subnet, taken)
    return subnet


def require_bridge_of_host(name: str) -> None:
    """Raises ``NetworkRefusedError`` for what is no bridge, with what an administrator can do about it."""
    link = read_links().get(name)
    if link is None:
        raise NetworkRefusedError(
            f"there is no interface {name} on this host",
            remedy="`ip -br link show type bridge` lists bridges",
        )
    if not link.is_bridge:
        raise NetworkRefusedError(
            f"{name} is no bridge, and to make it a port of one would change the host's own network",
            remedy=f"ip link add br0 type bridge && ip link set {name} master br0, and {name}'s addresses to "
            "br0; then --bridge br0",
        )


def check_listener(forward: Forward) -> None:
    """Raises ``ForwardExistsError`` when a program of the host has a port that is to lead elsewhere."""
    kind = socket.SOCK_STREAM if forward.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as trial:
        try:
            trial.bind((forward.host_address or "0.0.0.0", forward.host_port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ForwardExistsError(
                    f"a program of the host uses {forward.protocol} port {forward.host_port}, and would "
                    "hear no more",
                    remedy="choose another port of the host; `ss -lntup` names the program",
                ) from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise NetworkRefusedError(f"{forward.host_address} is no address of this host") from error
            raise NetworkRefusedError(
                f"{forward.protocol} port {forward.host_port} cannot lead anywhere: {error.strerror}"
            ) from error


def find_card(network: str, spec: VirtualMachineSpec) -> str:
    """The MAC of a VM's first card on a network; pure. Raises ``NetworkRefusedError``."""
    for index, nic in spec.numbered_nics():
        if nic.managed_network == network:
            return mac_of(spec.name, index, nic)
    raise NetworkRefusedError(
        f"{spec.name} has no card on network {network}",
        remedy=f"duovisor vm edit {spec.name} and add a NIC with network: {network}",
    )
