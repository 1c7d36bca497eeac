"""What a VM's guest itself is asked, through its agent."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from duovisor.controlling.agent.answers import GuestInfo
from duovisor.controlling.service.actions import Action
from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Operator, Viewer
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.vms import act_on_vm

router = APIRouter(prefix="/v1/vms", tags=["guests"])

FREEZE_S = 60.0


class FreezeOptions(ApiModel):
    """After how many seconds the file systems are thawed again, if nobody did."""

    for_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = FREEZE_S


@router.get("/{name}/guest", summary="What a VM's guest tells of itself: system, addresses, its agent")
async def get_guest(service: ServiceDep, _: Viewer, name: Name) -> GuestInfo:
    return await service.manager.read_guest(name)


@router.post("/{name}/fsfreeze", status_code=202, summary="Freeze a guest's file systems for a while")
async def freeze_guest(
    service: ServiceDep, who: Operator, name: Name, response: Response, options: FreezeOptions | None = None
) -> Operation:
    for_s = (options or FreezeOptions()).for_s
    work = functools.partial(service.manager.freeze, name, for_s)
    return await act_on_vm(service, who, name, Action.FREEZE, response, work)


@router.post("/{name}/fsthaw", status_code=202, summary="Thaw a guest's file systems")
async def thaw_guest(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    work = functools.partial(service.manager.thaw, name)
    return await act_on_vm(service, who, name, Action.THAW, response, work)
