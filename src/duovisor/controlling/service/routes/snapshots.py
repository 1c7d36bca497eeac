"""Snapshots of VMs: a noun of each VM's own."""

from __future__ import annotations

import functools

from fastapi import APIRouter, Response
from pydantic import Field

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.gate import Administrator, Operator, Viewer
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.operations import Operation, Work
from duovisor.controlling.service.replies import ApiModel, Listing, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.controlling.snapshots.documents import SnapshotView
from duovisor.spec.names import check_name

router = APIRouter(prefix="/v1/vms/{name}/snapshots", tags=["snapshots"])


class SnapshotDefinition(ApiModel):
    """What a snapshot is to be called."""

    name: str = Field(max_length=300)


@router.get("", summary="List a VM's snapshots, oldest first")
async def list_snapshots(service: ServiceDep, _: Viewer, name: Name) -> Listing[SnapshotView]:
    return Listing(items=await service.manager.list_snapshots(name))


@router.post("", status_code=202, summary="Save devices, memory and disks of a running VM")
async def create_snapshot(
    service: ServiceDep, who: Operator, name: Name, wanted: SnapshotDefinition, response: Response
) -> Operation:
    try:
        check_name(wanted.name)
    except ValueError as error:
        raise RequestInvalidError(str(error), field="name") from error
    work = functools.partial(service.manager.create_snapshot, name, wanted.name)
    return await _act(service, who, name, "create", work, response)


@router.get("/{snapshot}", summary="Show a snapshot")
async def get_snapshot(service: ServiceDep, _: Viewer, name: Name, snapshot: Name) -> SnapshotView:
    return await service.manager.get_snapshot(name, snapshot)


@router.post(
    "/{snapshot}/restore",
    status_code=202,
    summary="Bring back the disks of a VM that does not run, and run it on from the snapshot",
)
async def restore_snapshot(
    service: ServiceDep, who: Administrator, name: Name, snapshot: Name, response: Response
) -> Operation:
    await service.manager.get_snapshot(name, snapshot)
    work = functools.partial(service.manager.restore_snapshot, name, snapshot)
    return await _act(service, who, name, "restore", work, response)


@router.delete("/{snapshot}", status_code=202, summary="Delete a snapshot with its files")
async def delete_snapshot(
    service: ServiceDep, who: Administrator, name: Name, snapshot: Name, response: Response
) -> Operation:
    await service.manager.get(name)
    return await _act(
        service, who, name, "delete", lambda _: service.manager.delete_snapshot(name, snapshot), response
    )


async def _act(
    service: Service, who: Identity, name: str, action: str, work: Work, response: Response
) -> Operation:
    await service.manager.get(name)
    return await accept(service, f"vm.snapshot-{action}", f"vm/{name}", who, work, response)
