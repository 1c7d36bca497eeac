"""Networks as they are shown: what the store says, and whether the host agrees."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.networks.dnsmasq import build_leases
from duovisor.controlling.networks.documents import NetworkIntent, build_domain
from duovisor.controlling.networks.host import find_problem
from duovisor.controlling.networks.host_links import read_links
from duovisor.controlling.networks.records import ForwardView, NetworkState, NetworkView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.controlling.networks.documents import NetworkDocument
    from duovisor.controlling.networks.host_links import Link
    from duovisor.controlling.networks.networks import Networks

STATES = {
    NetworkIntent.NONE: NetworkState.READY,
    NetworkIntent.CREATE: NetworkState.CREATING,
    NetworkIntent.DELETE: NetworkState.DELETING,
}


async def list_networks(networks: Networks) -> tuple[NetworkView, ...]:
    """All networks by name."""
    found = await networks.known.read_all()
    if not found:
        return ()
    users, links = await networks.known.read_users(), await asyncio.to_thread(read_links)
    return tuple(
        build_view(each.id, each.document, links, users.get(each.id, ()), networks.servers.find_pid(each.id))
        for each in found
    )


async def get_network(networks: Networks, name: str) -> NetworkView:
    """A network. Raises ``NetworkNotFoundError``."""
    document = await networks.known.get(name)
    users, links = await networks.known.read_users(), await asyncio.to_thread(read_links)
    return build_view(name, document, links, users.get(name, ()), networks.servers.find_pid(name))


def build_view(
    name: str,
    document: NetworkDocument,
    links: Mapping[str, Link],
    vms: list[str] | tuple[()],
    server_pid: int | None,
) -> NetworkView:
    """One network; reads settings of the kernel."""
    state, problem = STATES[document.intent], ""
    if state is NetworkState.READY:
        problem = find_problem(document, links)
        if not problem and document.dhcp and server_pid is None:
            problem = "its DHCP and DNS server does not run"
        state = NetworkState.MISSING if problem else state
    leases = build_leases(document)
    owners = {lease.mac: lease for lease in leases}
    return NetworkView(
        name=name,
        kind=document.type,
        state=state,
        problem=problem,
        interface=document.interface,
        subnet=document.subnet,
        gateway=str(document.gateway) if document.gateway else None,
        domain=build_domain(name) if document.dhcp else None,
        dhcp=document.dhcp,
        vlans=document.vlans,
        server_pid=server_pid,
        forwarding=document.uplinks,
        leases=leases,
        forwards=tuple(
            ForwardView(
                protocol=each.protocol,
                host_address=each.host_address,
                host_port=each.host_port,
                vm=owners[each.mac].vm,
                address=owners[each.mac].address,
                guest_port=each.guest_port,
            )
            for each in document.forwards
        ),
        vms=tuple(vms),
        created_at=document.created_at,
    )
