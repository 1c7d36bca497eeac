"""Operations: what takes time, who asked for it, how far it is, how it ended."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import APIRouter, Response

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import NotAllowedError
from duovisor.controlling.service.gate import Operator, Viewer
from duovisor.controlling.service.identity import Identity, Role
from duovisor.controlling.service.operations import Operation, OperationState, Work
from duovisor.controlling.service.replies import After, Limit, Listing, Name

router = APIRouter(prefix="/v1/operations", tags=["operations"])


@router.get("", summary="List operations, the newest first")
async def list_operations(
    service: ServiceDep,
    _: Viewer,
    limit: Limit = 100,
    after: After = None,
    state: OperationState | None = None,
) -> Listing[Operation]:
    older = [o for o in service.operations.list(state=state) if after is None or o.id < after]
    page = tuple(older[:limit])
    return Listing(items=page, after=page[-1].id if len(older) > limit else None)


@router.get("/{id}", summary="Show an operation")
async def get_operation(service: ServiceDep, _: Viewer, id: Name) -> Operation:
    return service.operations.get(id)


@router.post("/{id}/cancel", status_code=202, summary="Ask an operation to end and undo what it did")
async def cancel_operation(service: ServiceDep, who: Operator, id: Name, response: Response) -> Operation:
    operation = service.operations.get(id)
    if operation.actor != who.name and not operation.action.startswith("vm."):
        _require_administrator(who, operation)
    response.headers["Location"] = f"/v1/operations/{id}"
    return await service.operations.cancel(id)


async def accept(
    service: Service,
    action: str,
    object: str,
    who: Identity,
    work: Work,
    response: Response,
    *,
    beside: Collection[str] = (),
) -> Operation:
    """Begin an operation and say where it can be followed; the reply is 202."""
    operation = await service.operations.start(action, object, who.name, work, beside=beside)
    response.headers["Location"] = f"/v1/operations/{operation.id}"
    return operation


def _require_administrator(who: Identity, operation: Operation) -> None:
    if who.role is not Role.ADMINISTRATOR:
        raise NotAllowedError(
            f"{operation.action} was started by {operation.actor}", remedy="ask an administrator"
        )
