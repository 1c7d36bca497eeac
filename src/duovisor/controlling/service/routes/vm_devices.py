"""Disks and network cards of VMs: attached and detached, under a running guest where there is one."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from duovisor.controlling.service.actions import Action
from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator, Operator
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.vms import act_on_vm, change_vm
from duovisor.controlling.vms.records import VmView
from duovisor.spec.limits import Bandwidth, NetworkBandwidth
from duovisor.spec.vm import DiskSpec, NicSpec

router = APIRouter(prefix="/v1/vms", tags=["vms"])

UNPLUG_TIMEOUT_S = 30.0


class NewDisk(ApiModel):
    """A disk as in a specification; without a `slot` it gets the first that is free."""

    disk: DiskSpec


class NewNic(ApiModel):
    """A NIC as in a specification; without a `slot` it gets the first that is free."""

    nic: NicSpec


class LeavingDisk(ApiModel):
    """Which disk, and how long the guest may take to let go of it."""

    device: Annotated[str, Field(pattern=r"^disk\d{1,2}$")]
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = UNPLUG_TIMEOUT_S


class LeavingNic(ApiModel):
    """Which NIC, and how long the guest may take to let go of it."""

    device: Annotated[str, Field(pattern=r"^nic\d{1,2}$")]
    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = UNPLUG_TIMEOUT_S


class DiskLimits(ApiModel):
    """Which disk, and its limits; without one it has none."""

    device: Annotated[str, Field(pattern=r"^disk\d{1,2}$")]
    iops_limit: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    bandwidth_limit: Bandwidth | None = None


class NicLimits(ApiModel):
    """Which NIC, and how many bytes a second the guest gets and sends; without one there is no limit."""

    device: Annotated[str, Field(pattern=r"^nic\d{1,2}$")]
    in_limit: NetworkBandwidth | None = None
    out_limit: NetworkBandwidth | None = None


@router.post(
    "/{name}/limit-disk",
    summary="Limit what a disk does in a second: at once, also under its guest",
)
async def limit_disk(service: ServiceDep, who: Operator, name: Name, wanted: DiskLimits) -> VmView:
    change = functools.partial(
        service.manager.limit_disk, name, wanted.device, wanted.iops_limit, wanted.bandwidth_limit
    )
    return await change_vm(service, who, name, "limit-disk", change)


@router.post(
    "/{name}/limit-nic",
    summary="Limit what a guest gets and sends through a NIC in a second: at once, also under its guest",
)
async def limit_nic(service: ServiceDep, who: Operator, name: Name, wanted: NicLimits) -> VmView:
    change = functools.partial(
        service.manager.limit_nic, name, wanted.device, wanted.in_limit, wanted.out_limit
    )
    return await change_vm(service, who, name, "limit-nic", change)


@router.post(
    "/{name}/attach-disk",
    status_code=202,
    summary="Give a VM a disk: under its running guest, or else at its next start",
)
async def attach_disk(
    service: ServiceDep, who: Administrator, name: Name, wanted: NewDisk, response: Response
) -> Operation:
    work = functools.partial(service.manager.attach, name, wanted.disk)
    return await act_on_vm(service, who, name, Action.ATTACH_DISK, response, work)


@router.post(
    "/{name}/attach-nic",
    status_code=202,
    summary="Give a VM a NIC: under its running guest, or else at its next start",
)
async def attach_nic(
    service: ServiceDep, who: Administrator, name: Name, wanted: NewNic, response: Response
) -> Operation:
    work = functools.partial(service.manager.attach, name, wanted.nic)
    return await act_on_vm(service, who, name, Action.ATTACH_NIC, response, work)


@router.post(
    "/{name}/detach-disk",
    status_code=202,
    summary="Take a disk from a VM, if it runs with its guest's consent; its content stays",
)
async def detach_disk(
    service: ServiceDep, who: Administrator, name: Name, leaving: LeavingDisk, response: Response
) -> Operation:
    work = functools.partial(service.manager.detach, name, leaving.device, leaving.timeout_s)
    return await act_on_vm(service, who, name, Action.DETACH_DISK, response, work)


@router.post(
    "/{name}/detach-nic",
    status_code=202,
    summary="Take a NIC from a VM, if it runs with its guest's consent",
)
async def detach_nic(
    service: ServiceDep, who: Administrator, name: Name, leaving: LeavingNic, response: Response
) -> Operation:
    work = functools.partial(service.manager.detach, name, leaving.device, leaving.timeout_s)
    return await act_on_vm(service, who, name, Action.DETACH_NIC, response, work)
