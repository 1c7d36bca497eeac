"""What is in a VM's CD-ROM drives."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Path, Response

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.gate import Administrator, Operator
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.operations import Operation, Work
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.spec.cdrom import MAX_CDROMS, CdromSpec

router = APIRouter(prefix="/v1/vms/{name}/cdroms/{drive}", tags=["cdroms"])

Drive = Annotated[int, Path(ge=0, lt=MAX_CDROMS)]


class NewMedium(ApiModel):
    """What is to be in a drive; ``force``: although the guest holds its tray shut."""

    medium: CdromSpec
    force: bool = False


class EjectOptions(ApiModel):
    """``force``: although the guest holds the drive's tray shut."""

    force: bool = False


@router.post("/insert", status_code=202, summary="Put a medium into a drive, now and from now on")
async def insert_medium(
    service: ServiceDep, who: Administrator, name: Name, drive: Drive, wanted: NewMedium, response: Response
) -> Operation:
    if wanted.medium.is_empty:
        raise RequestInvalidError("the medium has neither a path nor a volume", field="medium")
    change = functools.partial(service.manager.change_medium, name, drive, wanted.medium, force=wanted.force)
    return await _act(service, who, name, "insert", change, response)


@router.post("/eject", status_code=202, summary="Take out what is in a drive, now and from now on")
async def eject_medium(
    service: ServiceDep,
    who: Operator,
    name: Name,
    drive: Drive,
    response: Response,
    options: EjectOptions | None = None,
) -> Operation:
    force = (options or EjectOptions()).force
    change = functools.partial(service.manager.change_medium, name, drive, CdromSpec(), force=force)
    return await _act(service, who, name, "eject", change, response)


async def _act(
    service: Service, who: Identity, name: str, action: str, work: Work, response: Response
) -> Operation:
    await service.manager.get(name)
    service.operations.require_idle(f"vm/{name}")
    return await accept(service, f"vm.{action}", f"vm/{name}", who, work, response)
