"""Volumes: whatever touches their files is an operation."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field
from starlette.requests import Request  # FastAPI reads the annotation at run time

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Administrator, Operator, Viewer
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.replies import ApiModel, Limit, Listing, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.controlling.service.volume_content import ContentReply, feed, read_length
from duovisor.controlling.storage.checks import MAX_BYTES
from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import (
    DEFAULT_POOL,
    ImageFormat,
    VolumeFormat,
    VolumeRef,
    VolumeView,
)
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import get_volume as view_volume
from duovisor.controlling.storage.views import list_volumes as view_volumes
from duovisor.spec.names import check_name

router = APIRouter(prefix="/v1/volumes", tags=["volumes"])

OCTETS = "application/octet-stream"
BINARY = {"content": {OCTETS: {"schema": {"type": "string", "format": "binary"}}}}
AFTER_PATTERN = r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$"

VolumeName = Annotated[str, AfterValidator(check_name)]
SizeBytes = Annotated[int, Field(gt=0, le=MAX_BYTES, multiple_of=512)]


class VolumeDefinition(ApiModel):
    """An empty volume to be made; the pool `default` is made when it is first used.

    Without `format` it is qcow2, or raw in a pool of the kind `lvm-thin`.
    """

    pool: VolumeName = DEFAULT_POOL
    name: VolumeName
    size_bytes: SizeBytes
    format: VolumeFormat | None = None


class CloneOptions(ApiModel):
    """The new volume. `linked`: it holds what differs from its base, which cannot be changed."""

    pool: VolumeName = DEFAULT_POOL
    name: VolumeName
    linked: bool = False
    format: VolumeFormat | None = None


class ResizeOptions(ApiModel):
    """How large a volume is to be; it can only grow."""

    size_bytes: SizeBytes


@router.get("", summary="List volumes by pool and name")
async def list_volumes(
    service: ServiceDep,
    _: Viewer,
    limit: Limit = 100,
    after: Annotated[str | None, Query(max_length=200, pattern=AFTER_PATTERN)] = None,
    pool: Annotated[str | None, Query(max_length=63)] = None,
) -> Listing[VolumeView]:
    page = await view_volumes(service.storage, pool, limit, after)
    return Listing(items=page.items, after=page.after)


@router.post("", status_code=202, summary="Make an empty volume")
async def create_volume(
    service: ServiceDep, who: Administrator, wanted: VolumeDefinition, response: Response
) -> Operation:
    ref = VolumeRef(pool=wanted.pool, name=wanted.name)
    return await accept(
        service,
        "volume.create",
        _object(ref),
        who,
        lambda progress: service.storage.create(ref, wanted.size_bytes, wanted.format, progress),
        response,
    )


@router.get("/{pool}/{name}", summary="Show a volume")
async def get_volume(service: ServiceDep, _: Viewer, pool: Name, name: Name) -> VolumeView:
    return await view_volume(service.storage, VolumeRef(pool=pool, name=name))


@router.delete("/{pool}/{name}", status_code=202, summary="Delete a volume that nobody needs, with its file")
async def delete_volume(
    service: ServiceDep, who: Administrator, pool: Name, name: Name, response: Response
) -> Operation:
    ref = await _find(service, pool, name)
    return await accept(
        service, "volume.delete", _object(ref), who, lambda _: service.storage.delete(ref), response
    )


@router.post("/{pool}/{name}/resize", status_code=202, summary="Make a volume larger, under a running VM too")
async def resize_volume(
    service: ServiceDep, who: Administrator, pool: Name, name: Name, wanted: ResizeOptions, response: Response
) -> Operation:
    ref = await _find(service, pool, name)
    online = service.manager.resize_volume
    return await accept(
        service,
        "volume.resize",
        _object(ref),
        who,
        lambda progress: service.storage.resize(ref, wanted.size_bytes, online, progress),
        response,
    )


@router.post("/{pool}/{name}/clone", status_code=202, summary="Copy a volume, or base a new one on it")
async def clone_volume(
    service: ServiceDep, who: Administrator, pool: Name, name: Name, wanted: CloneOptions, response: Response
) -> Operation:
    source, ref = await _find(service, pool, name), VolumeRef(pool=wanted.pool, name=wanted.name)
    return await accept(
        service,
        "volume.clone",
        _object(ref),
        who,
        lambda progress: service.storage.clone(
            source, ref, linked=wanted.linked, volume_format=wanted.format, progress=progress
        ),
        response,
    )


@router.post("/{pool}/{name}/checksum", status_code=202, summary="Compute the SHA-256 of a volume's file")
async def compute_checksum(
    service: ServiceDep, who: Operator, pool: Name, name: Name, response: Response
) -> Operation:
    ref = await _find(service, pool, name)
    return await accept(
        service,
        "volume.checksum",
        _object(ref),
        who,
        lambda progress: service.storage.compute_checksum(ref, progress),
        response,
    )


@router.put(
    "/{pool}/{name}/content",
    status_code=202,
    summary="Make a volume of the image in the body; Content-Length is needed",
    openapi_extra={"requestBody": {"required": True, **BINARY}},
)
async def upload_volume(
    service: ServiceDep,
    who: Administrator,
    pool: Name,
    name: Name,
    request: Request,
    response: Response,
    format: Annotated[ImageFormat | None, Query(description="of the image; else its signature tells")] = None,
    to: Annotated[VolumeFormat | None, Query(description="of the volume; else raw of raw, or qcow2")] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="what it must be")] = None,
    read_only: Annotated[bool, Query(description="for an ISO image or a template")] = False,
) -> Operation:
    ref, inbox = VolumeRef(pool=pool, name=name), Inbox(read_length(request))
    upload = Upload(format, to, sha256, read_only)
    operation = await accept(
        service,
        "volume.upload",
        _object(ref),
        who,
        lambda progress: service.storage.receive(ref, upload, inbox, progress),
        response,
    )
    await feed(service.operations, operation.id, request, inbox)
    return service.operations.get(operation.id)


@router.get(
    "/{pool}/{name}/content",
    summary="Download a volume's file as it is; Repr-Digest has its SHA-256 if that is known",
    status_code=200,
    response_class=Response,
    responses={200: {"description": "the file", **BINARY}},
)
async def download_volume(service: ServiceDep, _: Operator, pool: Name, name: Name) -> ContentReply:
    return ContentReply(await service.storage.open_content(VolumeRef(pool=pool, name=name)))


async def _find(service: Service, pool: str, name: str) -> VolumeRef:
    """A volume that is there. Raises ``VolumeNotFoundError``."""
    return (await service.storage.volumes.get(VolumeRef(pool=pool, name=name))).ref


def _object(ref: VolumeRef) -> str:
    return f"volume/{ref}"
