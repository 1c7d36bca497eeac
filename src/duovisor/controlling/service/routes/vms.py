"""Virtual machines: definitions under ETags, actions as operations."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field
from starlette.requests import HTTPConnection

from duovisor.controlling.anatomy import Anatomy
from duovisor.controlling.cloning import plan_copy
from duovisor.controlling.service.actions import BESIDE, Action, check_action
from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.gate import Administrator, Operator, Viewer
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.operations import Operation, Work
from duovisor.controlling.service.peer import STATE_KEY
from duovisor.controlling.service.replies import (
    After,
    ApiModel,
    IfMatch,
    Limit,
    Name,
    build_etag,
    parse_if_match,
)
from duovisor.controlling.service.routes.operations import accept
from duovisor.controlling.vms.records import Autostart, Page, VmView
from duovisor.spec.names import check_name
from duovisor.spec.vm import Design, VirtualMachineSpec

router = APIRouter(prefix="/v1/vms", tags=["vms"])

SHUTDOWN_TIMEOUT_S = 60.0

WithCaller = Annotated[
    bool, Query(description="take the VM away when the process that asks, on the Unix socket, ends")
]


class VmDefinition(ApiModel):
    """What a VM is to be."""

    spec: VirtualMachineSpec
    autostart: Autostart = Autostart()


class NewName(ApiModel):
    """What a VM is to be called."""

    name: str = Field(max_length=300)


class CloneOptions(ApiModel):
    """What the copy is called, and where its volumes are: by default where the original's are."""

    name: Annotated[str, AfterValidator(check_name)]
    pool: Annotated[str, AfterValidator(check_name)] | None = None


class ShutdownOptions(ApiModel):
    """How long the guest may take."""

    timeout_s: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = SHUTDOWN_TIMEOUT_S


class SwitchOptions(ApiModel):
    """Which design a VM is to have from now on."""

    design: Design


@router.get("", summary="List VMs by name")
async def list_vms(service: ServiceDep, _: Viewer, limit: Limit = 100, after: After = None) -> Page[VmView]:
    return await service.manager.list(limit, after)


@router.post("", status_code=201, summary="Define a VM")
async def create_vm(
    service: ServiceDep,
    who: Administrator,
    definition: VmDefinition,
    connection: HTTPConnection,
    response: Response,
    autodestroy: WithCaller = False,
) -> VmView:
    if autodestroy:
        peer = getattr(connection.state, STATE_KEY)
        vm = await service.autodestroy.create(definition.spec, definition.autostart, peer)
    else:
        vm = await service.manager.create(definition.spec, definition.autostart)
    response.headers["Location"] = f"/v1/vms/{vm.record.name}"
    return await _changed(service, who, "create", vm, response)


@router.get("/{name}", summary="Show a VM")
async def get_vm(service: ServiceDep, _: Viewer, name: Name, response: Response) -> VmView:
    vm = await service.manager.get(name)
    response.headers["ETag"] = build_etag(vm.record.revision)
    return vm


@router.put("/{name}", summary="Change a VM's definition; a running VM takes it up at its next start")
async def update_vm(
    service: ServiceDep,
    who: Administrator,
    name: Name,
    definition: VmDefinition,
    response: Response,
    if_match: IfMatch = None,
) -> VmView:
    revision = await _read_precondition(service, name, if_match)
    if definition.spec.name != name:
        raise RequestInvalidError(
            f"the specification is called {definition.spec.name!r}, the VM {name!r}",
            remedy=f"rename it with POST /v1/vms/{name}/rename",
            field="spec.name",
        )
    vm = await service.manager.update(name, definition.spec, definition.autostart, revision)
    return await _changed(service, who, "update", vm, response)


@router.delete("/{name}", status_code=204, summary="Forget a VM that does not run; its disks stay")
async def delete_vm(service: ServiceDep, who: Administrator, name: Name, if_match: IfMatch = None) -> None:
    revision = await _read_precondition(service, name, if_match)
    service.operations.require_idle(_object(name))
    await service.manager.delete(name, revision)
    await service.events.wait_written(service.events.emit(who.name, "vm.delete", _object(name)))


@router.post("/{name}/rename", summary="Rename a VM that does not run")
async def rename_vm(
    service: ServiceDep,
    who: Administrator,
    name: Name,
    new: NewName,
    response: Response,
    if_match: IfMatch = None,
) -> VmView:
    revision = await _read_precondition(service, name, if_match)
    try:
        check_name(new.name)
    except ValueError as error:
        raise RequestInvalidError(str(error), field="name") from error
    service.operations.require_idle(_object(name))
    vm = await service.manager.rename(name, new.name, revision)
    return await _changed(service, who, "rename", vm, response, f"it was called {name}")


@router.post("/{name}/clone", status_code=202, summary="Copy a VM that does not run, with its volumes")
async def clone_vm(
    service: ServiceDep, who: Administrator, name: Name, wanted: CloneOptions, response: Response
) -> Operation:
    vm = await service.manager.get(name)
    spec, clones = plan_copy(vm.record.spec, wanted.name, wanted.pool)
    return await accept(
        service,
        "vm.clone",
        _object(spec.name),
        who,
        lambda progress: service.cloner.make(spec, Autostart(), clones, progress),
        response,
    )


@router.get("/{name}/anatomy", summary="Show a running VM's layers, processes and host access")
async def get_anatomy(service: ServiceDep, _: Viewer, name: Name) -> Anatomy:
    return await service.manager.anatomy(name)


@router.post("/{name}/start", status_code=202, summary="Start a VM")
async def start_vm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    work = functools.partial(service.manager.start, name)
    return await act_on_vm(service, who, name, Action.START, response, work)


@router.post("/{name}/shutdown", status_code=202, summary="Ask the guest to shut down, and wait")
async def shut_vm_down(
    service: ServiceDep,
    who: Operator,
    name: Name,
    response: Response,
    options: ShutdownOptions | None = None,
) -> Operation:
    timeout_s = (options or ShutdownOptions()).timeout_s
    work = functools.partial(service.manager.shutdown, name, timeout_s)
    return await act_on_vm(service, who, name, Action.SHUTDOWN, response, work)


@router.post("/{name}/stop", status_code=202, summary="Pull the plug; the guest is not asked")
async def stop_vm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    return await act_on_vm(service, who, name, Action.STOP, response, lambda _: service.manager.stop(name))


@router.post("/{name}/pause", status_code=202, summary="Hold a VM's processors")
async def pause_vm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    return await act_on_vm(service, who, name, Action.PAUSE, response, lambda _: service.manager.pause(name))


@router.post("/{name}/resume", status_code=202, summary="Let a paused VM run on")
async def resume_vm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    return await act_on_vm(
        service, who, name, Action.RESUME, response, lambda _: service.manager.resume(name)
    )


@router.post("/{name}/reset", status_code=202, summary="Press the reset button")
async def reset_vm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    return await act_on_vm(service, who, name, Action.RESET, response, lambda _: service.manager.reset(name))


@router.post(
    "/{name}/switch",
    status_code=202,
    summary="Give a VM the other design: under its running guest, or else at its next start",
)
async def switch_vm(
    service: ServiceDep, who: Administrator, name: Name, wanted: SwitchOptions, response: Response
) -> Operation:
    work = functools.partial(service.manager.switch, name, wanted.design)
    return await act_on_vm(service, who, name, Action.SWITCH, response, work)


@router.post(
    "/{name}/update-vmm",
    status_code=202,
    summary="Replace a running VM's VMM by a new process of the installed QEMU",
)
async def update_vmm(service: ServiceDep, who: Operator, name: Name, response: Response) -> Operation:
    work = functools.partial(service.manager.update_vmm, name)
    return await act_on_vm(service, who, name, Action.UPDATE_VMM, response, work)


async def act_on_vm(
    service: Service, who: Identity, name: str, action: Action, response: Response, work: Work
) -> Operation:
    """Begin an action on a VM that its state allows."""
    vm = await service.manager.get(name)
    beside = BESIDE.get(action, frozenset())
    service.operations.require_idle(_object(name), beside=beside)  # says more than that the state is wrong
    check_action(action, vm)
    return await accept(service, f"vm.{action}", _object(name), who, work, response, beside=beside)


async def change_vm(
    service: Service, who: Identity, name: str, action: str, change: Callable[[], Awaitable[VmView]]
) -> VmView:
    """Change a VM at once, when no operation is under way on it, and note that it was."""
    service.operations.require_idle(_object(name))
    vm = await change()
    await service.events.wait_written(service.events.emit(who.name, f"vm.{action}", _object(name)))
    return vm


async def _changed(
    service: Service, who: Identity, action: str, vm: VmView, response: Response, message: str = ""
) -> VmView:
    """Note a change that was made, and put the new ETag into the reply."""
    response.headers["ETag"] = build_etag(vm.record.revision)
    event = service.events.emit(who.name, f"vm.{action}", _object(vm.record.name), message=message)
    await service.events.wait_written(event)
    return vm


async def _read_precondition(service: Service, name: str, if_match: str | None) -> int:
    current = await service.manager.get(name)
    return parse_if_match(if_match, current.record.revision)


def _object(name: str) -> str:
    return f"vm/{name}"
