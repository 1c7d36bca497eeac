"""Networks: what makes or removes one on the host is an operation; a forwarded port is there at once."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field

from duovisor.controlling.networks.checks import find_card
from duovisor.controlling.networks.documents import Forward
from duovisor.controlling.networks.records import NetworkKind, NetworkView, Wanted
from duovisor.controlling.networks.views import get_network as view_network
from duovisor.controlling.networks.views import list_networks as view_networks
from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator, Viewer
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.replies import ApiModel, Listing, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.spec.names import check_name
from duovisor.spec.vm import check_address, check_interface

router = APIRouter(prefix="/v1/networks", tags=["networks"])

Address = Annotated[str, AfterValidator(check_address)]
Port = Annotated[int, Field(ge=1, le=65535)]
Protocol = Literal["tcp", "udp"]


class NetworkDefinition(ApiModel):
    """A network to be made. `nat` and `isolated` have their own bridge, `bridged` names one of the host's.

    Without `subnet`, a free one is found. `vlans`: cards may be on a VLAN each (isolated only).
    """

    name: Annotated[str, AfterValidator(check_name)]
    kind: NetworkKind = NetworkKind.NAT
    subnet: Annotated[str, Field(max_length=18)] | None = None
    dhcp: bool = True
    bridge: Annotated[str, AfterValidator(check_interface)] | None = None
    vlans: bool = False


class ForwardDefinition(ApiModel):
    """A port of the host, on all its addresses or one, that is to lead to one of a VM."""

    protocol: Protocol = "tcp"
    host_address: Address | None = None
    host_port: Port
    vm: Annotated[str, AfterValidator(check_name)]
    guest_port: Port


@router.get("", summary="List networks by name")
async def list_networks(service: ServiceDep, _: Viewer) -> Listing[NetworkView]:
    return Listing(items=await view_networks(service.networks))


@router.post("", status_code=202, summary="Make a network")
async def create_network(
    service: ServiceDep, who: Administrator, wanted: NetworkDefinition, response: Response
) -> Operation:
    shape = Wanted.model_validate(wanted.model_dump(exclude={"name"}))
    return await accept(
        service,
        "network.create",
        f"network/{wanted.name}",
        who,
        lambda progress: service.networks.create(wanted.name, shape, progress),
        response,
    )


@router.get("/{name}", summary="Show a network: its leases, ports, and who is on it")
async def get_network(service: ServiceDep, _: Viewer, name: Name) -> NetworkView:
    return await view_network(service.networks, name)


@router.delete("/{name}", status_code=202, summary="Delete a network that no VM names, with all it made")
async def delete_network(
    service: ServiceDep, who: Administrator, name: Name, response: Response
) -> Operation:
    await service.networks.known.get(name)
    return await accept(
        service,
        "network.delete",
        f"network/{name}",
        who,
        lambda _: service.networks.delete(name),
        response,
    )


@router.post("/{name}/forwards", status_code=201, summary="Let a port of the host lead to a VM's")
async def add_forward(
    service: ServiceDep, who: Administrator, name: Name, wanted: ForwardDefinition
) -> NetworkView:
    await service.networks.known.get_ready(name)
    forward = Forward(
        protocol=wanted.protocol,
        host_address=wanted.host_address,
        host_port=wanted.host_port,
        mac=find_card(name, (await service.manager.get(wanted.vm)).record.spec),
        guest_port=wanted.guest_port,
    )
    await service.networks.add_forward(name, forward, wanted.vm)
    said = f"{wanted.protocol} {wanted.host_port} to {wanted.vm}:{wanted.guest_port}"
    event = service.events.emit(who.name, "network.forward", f"network/{name}", message=said)
    await service.events.wait_written(event)
    return await view_network(service.networks, name)


@router.delete(
    "/{name}/forwards/{protocol}/{host_port}", status_code=204, summary="Let a port of the host lead nowhere"
)
async def remove_forward(
    service: ServiceDep,
    who: Administrator,
    name: Name,
    protocol: Protocol,
    host_port: Annotated[int, Path(ge=1, le=65535)],
    host_address: Annotated[Address | None, Query(description="that of the forward, if it has one")] = None,
) -> None:
    await service.networks.remove_forward(name, protocol, host_port, host_address)
    said = f"{protocol} {host_port} leads nowhere"
    event = service.events.emit(who.name, "network.forward", f"network/{name}", message=said)
    await service.events.wait_written(event)
