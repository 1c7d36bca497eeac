"""Driver partitions: every driver that runs beside a VM, and what it takes of the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Viewer
from duovisor.controlling.service.process_usage import find_usage
from duovisor.controlling.service.replies import ApiModel
from duovisor.controlling.vms.records import ProcessState, VmView

router = APIRouter(prefix="/v1/drivers", tags=["drivers"])

PAGE = 100  # others are served between two pages
VMM_ROLE = "vmm"


class DriverView(ApiModel):
    """A process that serves a device of a VM from outside the VMM."""

    vm: str
    device: str
    role: str
    pid: int
    state: ProcessState
    resident_bytes: int | None
    cpu_s: float | None


class DriverList(ApiModel):
    """Every driver of this host, by VM."""

    items: tuple[DriverView, ...]


@router.get("", summary="List the drivers that run beside VMs")
async def list_drivers(service: ServiceDep, _: Viewer) -> DriverList:
    return DriverList(items=tuple([driver async for vm in iterate_vms(service) for driver in _drivers(vm)]))


async def iterate_vms(service: Service) -> AsyncIterator[VmView]:
    """Every VM of this host; thousands take a second, during which others are served too."""
    after: str | None = None
    while True:
        await asyncio.sleep(0)
        page = await service.manager.list(PAGE, after)
        for vm in page.items:
            yield vm
        if (after := page.after) is None:
            return


def _drivers(vm: VmView) -> list[DriverView]:
    drivers = []
    for process in vm.status.processes:
        if process.role == VMM_ROLE:
            continue
        usage = find_usage(process.pid)
        drivers.append(
            DriverView(
                vm=vm.record.name,
                device=process.device,
                role=process.role,
                pid=process.pid,
                state=process.state,
                resident_bytes=usage.resident_bytes if usage else None,
                cpu_s=usage.cpu_s if usage else None,
            )
        )
    return drivers
