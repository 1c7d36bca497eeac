"""A VM's firmware: what it keeps between two runs."""

from __future__ import annotations

from fastapi import APIRouter

from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator
from duovisor.controlling.service.replies import Name

router = APIRouter(prefix="/v1/vms", tags=["vms"])


@router.post(
    "/{name}/reset-nvram",
    status_code=204,
    summary="Forget the UEFI variables of a VM that does not run; its next start begins with fresh ones",
)
async def reset_nvram(service: ServiceDep, who: Administrator, name: Name) -> None:
    service.operations.require_idle(f"vm/{name}")
    await service.manager.reset_nvram(name)
    await service.events.wait_written(service.events.emit(who.name, "vm.reset-nvram", f"vm/{name}"))
