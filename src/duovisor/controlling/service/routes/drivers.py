"""Driver partitions: every driver that runs beside a VM, and what it takes of the host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Response

from duovisor.controlling.description import Duty
from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Operator, Viewer
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.process_usage import find_usage
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.controlling.supervision.records import DeviceState
from duovisor.controlling.vms.records import ProcessState, Progress, VmView

router = APIRouter(prefix="/v1/drivers", tags=["drivers"])

PAGE = 100  # others are served between two pages
VMM_ROLE = "vmm"


class DriverView(ApiModel):
    """A process that serves a device of a VM from outside the VMM, or stands by to do so.

    ``code`` names the driver's code; ``deaths`` and ``last_pause_ms`` are the device's since the VM started
    or was adopted; ``reason``: why a device has failed; ``counters``: what the driver that serves has counted
    since it does.
    """

    vm: str
    device: str
    role: str
    pid: int
    state: ProcessState
    duty: Duty
    code: str
    device_state: DeviceState
    deaths: int
    last_pause_ms: float | None
    reason: str
    resident_bytes: int | None
    cpu_s: float | None
    counters: dict[str, int]


class DriverList(ApiModel):
    """Every driver of this host, by VM."""

    items: tuple[DriverView, ...]


@router.get("", summary="List the drivers that run beside VMs")
async def list_drivers(service: ServiceDep, _: Viewer) -> DriverList:
    items: list[DriverView] = []
    async for vm in iterate_vms(service):
        if vm.status.processes:
            items += _drivers(vm, await service.manager.read_counters(vm.record.name))
    return DriverList(items=tuple(items))


Device = Annotated[str, Path(max_length=64, description="A device as `driver list` names it: disk0.")]


@router.post("/{name}/{device}/restart", status_code=202, summary="Replace a driver by a new process of it")
async def restart_driver(
    service: ServiceDep, who: Operator, name: Name, device: Device, response: Response
) -> Operation:
    return await _replace(service, who, name, device, response, latest=False)


@router.post("/{name}/{device}/update", status_code=202, summary="Replace a driver by the installed code")
async def update_driver(
    service: ServiceDep, who: Operator, name: Name, device: Device, response: Response
) -> Operation:
    return await _replace(service, who, name, device, response, latest=True)


async def _replace(
    service: Service, who: Identity, name: str, device: str, response: Response, *, latest: bool
) -> Operation:
    await service.manager.get(name)

    async def work(progress: Progress) -> None:
        progress(10, "preparing a successor")
        done = await service.manager.replace_driver(name, device, latest=latest)
        code = "same code" if done.old_code == done.new_code else f"code {done.old_code} → {done.new_code}"
        progress(100, f"{device}: pid {done.old_pid} → {done.new_pid}, {code}, paused {done.pause_ms:.1f} ms")

    action = "driver.update" if latest else "driver.restart"
    return await accept(service, action, f"vm/{name}", who, work, response)


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


def _drivers(vm: VmView, counters: dict[str, dict[str, int]]) -> list[DriverView]:
    drivers = []
    devices = {each.device: each for each in vm.status.drivers}
    for process in vm.status.processes:
        if process.role == VMM_ROLE:
            continue
        usage = find_usage(process.pid)
        device = devices.get(process.device)
        gone = process.state is ProcessState.ENDED
        drivers.append(
            DriverView(
                vm=vm.record.name,
                device=process.device,
                role=process.role,
                pid=process.pid,
                state=process.state,
                duty=process.duty,
                code=device.code if device else "",
                device_state=device.state if device else DeviceState.FAILED if gone else DeviceState.RUNNING,
                deaths=device.deaths if device else int(gone),
                last_pause_ms=device.last_pause_ms if device else None,
                reason=device.reason if device else "",
                resident_bytes=usage.resident_bytes if usage else None,
                cpu_s=usage.cpu_s if usage else None,
                counters=counters.get(process.device, {}) if process.duty is Duty.ACTIVE else {},
            )
        )
    return drivers
