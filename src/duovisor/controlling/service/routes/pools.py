"""Pools: folders and thin pools of this host in which volumes lie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field

from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator, Viewer
from duovisor.controlling.service.replies import ApiModel, Listing, Name
from duovisor.controlling.storage.records import PoolKind, PoolView
from duovisor.controlling.storage.views import get_pool as view_pool
from duovisor.controlling.storage.views import list_pools as view_pools
from duovisor.spec.names import check_name

router = APIRouter(prefix="/v1/pools", tags=["pools"])


class PoolDefinition(ApiModel):
    """A pool to be made of the folder `path`, which is made if it is missing; or of an LVM thin pool.

    Of the kind `lvm-thin`, `path` is `/dev/GROUP/POOL`; the thin pool is there already.
    """

    name: Annotated[str, AfterValidator(check_name)]
    kind: PoolKind = PoolKind.DIRECTORY
    path: Annotated[str, Field(min_length=1, max_length=4000, pattern=r"^[^\x00]+$")]


@router.get("", summary="List pools by name")
async def list_pools(service: ServiceDep, _: Viewer) -> Listing[PoolView]:
    return Listing(items=await view_pools(service.storage))


@router.post(
    "", status_code=201, summary="Make a pool of a folder, or of an LVM thin pool; what lies in it stays"
)
async def create_pool(
    service: ServiceDep, who: Administrator, wanted: PoolDefinition, response: Response
) -> PoolView:
    await service.storage.pools.create(wanted.name, wanted.path, wanted.kind)
    event = service.events.emit(who.name, "pool.create", f"pool/{wanted.name}", message=wanted.path)
    await service.events.wait_written(event)
    response.headers["Location"] = f"/v1/pools/{wanted.name}"
    return await view_pool(service.storage, wanted.name)


@router.get("/{name}", summary="Show a pool")
async def get_pool(service: ServiceDep, _: Viewer, name: Name) -> PoolView:
    return await view_pool(service.storage, name)


@router.delete(
    "/{name}", status_code=204, summary="Forget a pool; its folder or thin pool stays, with all that is in it"
)
async def delete_pool(
    service: ServiceDep,
    who: Administrator,
    name: Name,
    forget: Annotated[bool, Query(description="forget the volumes in it too")] = False,
) -> None:
    await service.storage.delete_pool(name, forget=forget)
    await service.events.wait_written(service.events.emit(who.name, "pool.delete", f"pool/{name}"))
