"""What a VM's guest itself is asked, through its agent."""

from __future__ import annotations

import functools
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field

from duovisor.controlling.agent.answers import GuestInfo
from duovisor.controlling.service.actions import Action, check_action
from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Operator, Viewer
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.operations import Operation, Work
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.routes.operations import accept

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
    return await _act(service, who, name, Action.FREEZE, response, work)


@router.post("/{name}/fsthaw", status_code=202, summary="Thaw a guest's file systems")
async def thaw_guest(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    work = functools.partial(service.manager.thaw, name)
    return await _act(service, who, name, Action.THAW, response, work)


async def _act(
    service: Service, who: Identity, name: str, action: Action, response: Response, work: Work
) -> Operation:
    vm = await service.manager.get(name)
    service.operations.require_idle(f"vm/{name}")
    check_action(action, vm)
    return await accept(service, f"vm.{action}", f"vm/{name}", who, work, response)
