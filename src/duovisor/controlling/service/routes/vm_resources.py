"""How much of the host a VM may use: changed at once, also under its guest."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.vms import change_vm
from duovisor.controlling.vms.records import VmView
from duovisor.spec.resources import MemoryMib

router = APIRouter(prefix="/v1/vms", tags=["vms"])


class ResourceLimits(ApiModel):
    """As in a specification; what is left out stays as it is, `null` is no limit."""

    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] | None = None
    cpu_limit: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    cpu_reservation: Annotated[float, Field(ge=0.01, le=4096, allow_inf_nan=False)] | None = None
    memory_limit_mib: MemoryMib | None = None


class Processors(ApiModel):
    """How many processors the guest is to have; running, up to `cpus_max`, and no fewer than it has."""

    cpus: Annotated[int, Field(ge=1, le=255)]


class Memory(ApiModel):
    """How much memory the guest is to have; running, up to `memory_max_mib`, and no less than it has.

    `"4G"` or MiB; more comes in multiples of 128 MiB.
    """

    memory_mib: MemoryMib


@router.post("/{name}/set-cpus", summary="Give a VM more processors: at once, also under its guest")
async def set_cpus(service: ServiceDep, who: Administrator, name: Name, wanted: Processors) -> VmView:
    change = functools.partial(service.manager.set_cpus, name, wanted.cpus)
    return await change_vm(service, who, name, "set-cpus", change)


@router.post("/{name}/set-memory", summary="Give a VM more memory: at once, also under its guest")
async def set_memory(service: ServiceDep, who: Administrator, name: Name, wanted: Memory) -> VmView:
    change = functools.partial(service.manager.set_memory, name, wanted.memory_mib)
    return await change_vm(service, who, name, "set-memory", change)


@router.post(
    "/{name}/set-limits",
    summary="Limit what a VM uses of processors and memory: at once, also under its guest",
)
async def set_limits(service: ServiceDep, who: Administrator, name: Name, wanted: ResourceLimits) -> VmView:
    change = functools.partial(service.manager.set_limits, name, wanted.model_dump(exclude_unset=True))
    return await change_vm(service, who, name, "set-limits", change)
