"""Guest images: list, show, build, fetch, upload, delete, and VMs whose disks are clones of one's."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field
from starlette.requests import Request

from duovisor.controlling.cloning import plan_instance
from duovisor.controlling.images import debian, probe
from duovisor.controlling.images import store as images
from duovisor.controlling.images.download import Wanted, check_url
from duovisor.controlling.images.errors import ImageBrokenError
from duovisor.controlling.images.image import Image, ImageDisk
from duovisor.controlling.images.library import About
from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.gate import Administrator, Viewer
from duovisor.controlling.service.image_builder import build_image, build_system
from duovisor.controlling.service.operations import Operation, Work
from duovisor.controlling.service.replies import After, ApiModel, Limit, Listing, Name
from duovisor.controlling.service.routes.operations import accept
from duovisor.controlling.service.routes.volumes import BINARY, SizeBytes, VolumeName
from duovisor.controlling.service.volume_content import feed, read_length
from duovisor.controlling.storage.checks import MAX_BYTES
from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import DEFAULT_POOL, ImageFormat
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.vms.records import Autostart
from duovisor.spec.cloud_init import UserName
from duovisor.spec.names import check_name
from duovisor.spec.vm import VirtualMachineSpec

router = APIRouter(prefix="/v1/images", tags=["images"])

DEFAULT_MAX_BYTES = 64 << 30
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Url = Annotated[str, Field(max_length=2000), AfterValidator(check_url)]


class ImageView(ApiModel):
    """An image; one that is broken says why and has nothing else."""

    name: str
    broken: str = ""
    folder: str = ""
    description: str = ""
    kernel: str | None = None
    kernel_version: str = ""
    initrd: str | None = None
    command_line: str = ""
    disks: tuple[ImageDisk, ...] = ()
    volume: str | None = None
    disk_bytes: int = 0
    user: str = ""
    guest_agent: bool = False
    source: str = ""
    built_at: datetime | None = None
    size_bytes: int = 0
    damaged: tuple[str, ...] | None = None


class ImageRecipe(ApiModel):
    """Which image to build, and how it is called if not like its recipe, which `probe` is always.

    `force` builds `probe` again though it is up to date.
    """

    recipe: Literal["probe", "debian-12"] = "probe"
    name: VolumeName | None = None
    force: bool = False


class ImagePull(ApiModel):
    """Where an image comes from (http, https, or file: of the service's host), and what it must be."""

    url: Url
    sha256: Sha256
    user: UserName | None = None
    max_bytes: Annotated[int, Field(gt=0, le=MAX_BYTES)] = DEFAULT_MAX_BYTES


class Instance(ApiModel):
    """A VM: its first disk is a clone, those of `spec` come after it.

    `linked`: the clone holds what differs from the image. `size_bytes`: how large it becomes.
    """

    spec: VirtualMachineSpec
    autostart: Autostart = Autostart()
    pool: VolumeName = DEFAULT_POOL
    linked: bool = True
    size_bytes: SizeBytes | None = None


@router.get("", summary="List images by name")
async def list_images(
    service: ServiceDep, _: Viewer, limit: Limit = 100, after: After = None
) -> Listing[ImageView]:
    names = [name for name in images.list_names(service.directories) if after is None or name > after]
    page = names[:limit]
    views = []
    for name in page:
        try:
            views.append(_view(images.load_image(name, service.directories)))
        except ImageBrokenError as error:
            views.append(ImageView(name=name, broken=error.message))
    return Listing(items=tuple(views), after=page[-1] if len(names) > limit else None)


@router.post("", status_code=202, summary="Build an image")
async def build(
    service: ServiceDep, who: Administrator, wanted: ImageRecipe, response: Response
) -> Operation:
    name = wanted.name or wanted.recipe
    work: Work
    if wanted.recipe == probe.NAME:
        if name != probe.NAME:
            raise RequestInvalidError(f"the image {probe.NAME} has no other name", field="name")
        work = lambda progress: build_image(probe.NAME, progress, force=wanted.force)  # noqa: E731
    else:
        _check_new(service, name)
        debian.check_host()
        work = lambda progress: service.library.build(name, build_system, progress)  # noqa: E731
    return await accept(service, "image.build", f"image/{name}", who, work, response)


@router.post("/{name}/pull", status_code=202, summary="Fetch an image with a known SHA-256")
async def pull_image(
    service: ServiceDep, who: Administrator, name: Name, wanted: ImagePull, response: Response
) -> Operation:
    _check_new(service, name)
    source = Wanted(wanted.url, wanted.sha256, wanted.max_bytes)
    return await accept(
        service,
        "image.pull",
        f"image/{name}",
        who,
        lambda progress: service.library.pull(name, source, wanted.user or "", progress),
        response,
    )


@router.put(
    "/{name}/content",
    status_code=202,
    summary="Make an image of the disk in the body; Content-Length is needed",
    openapi_extra={"requestBody": {"required": True, **BINARY}},
)
async def upload_image(
    service: ServiceDep,
    who: Administrator,
    name: Name,
    request: Request,
    response: Response,
    format: Annotated[ImageFormat | None, Query(description="of the body; else its signature tells")] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-f]{64}$", description="what it must be")] = None,
    user: Annotated[UserName | None, Query(description="who logs in")] = None,
) -> Operation:
    _check_new(service, name)
    inbox = Inbox(read_length(request))
    upload, about = (
        Upload(format, None, sha256),
        About("uploaded disk", f"uploaded by {who.name}", user=user or ""),
    )
    operation = await accept(
        service,
        "image.upload",
        f"image/{name}",
        who,
        lambda progress: service.library.receive(name, upload, inbox, about, progress),
        response,
    )
    await feed(service.operations, operation.id, request, inbox)
    return service.operations.get(operation.id)


@router.post("/{name}/vms", status_code=202, summary="Define a VM on a clone of the image's disk")
async def instantiate(
    service: ServiceDep, who: Administrator, name: Name, wanted: Instance, response: Response
) -> Operation:
    image = service.library.load_template(name)
    assert image.volume is not None  # of a template
    spec, clones = plan_instance(
        wanted.spec, image.volume, pool=wanted.pool, linked=wanted.linked, size_bytes=wanted.size_bytes
    )
    return await accept(
        service,
        "vm.create",
        f"vm/{spec.name}",
        who,
        lambda progress: service.cloner.make(spec, wanted.autostart, clones, progress),
        response,
    )


@router.get("/{name}", summary="Show an image; `verify` reads its files and names those that changed")
async def get_image(service: ServiceDep, _: Viewer, name: Name, verify: bool = False) -> ImageView:
    image = images.load_image(name, service.directories)
    if not verify:
        return _view(image)
    damaged = await asyncio.to_thread(images.find_damage, image)
    return _view(image, tuple(damaged))


@router.delete("/{name}", status_code=204, summary="Delete an image of which there is no linked clone")
async def delete_image(service: ServiceDep, who: Administrator, name: Name) -> None:
    service.operations.require_idle(f"image/{name}")
    await service.library.delete(name)
    await service.events.wait_written(service.events.emit(who.name, "image.delete", f"image/{name}"))


def _view(image: Image, damaged: tuple[str, ...] | None = None) -> ImageView:
    return ImageView(
        name=image.name,
        folder=str(image.folder),
        description=image.description,
        kernel=image.kernel,
        kernel_version=image.kernel_version,
        initrd=image.initrd,
        command_line=image.command_line,
        disks=image.disks,
        volume=image.volume,
        disk_bytes=image.disk_bytes,
        user=image.user,
        guest_agent=image.guest_agent,
        source=image.source,
        built_at=image.built_at,
        size_bytes=image.size_bytes,
        damaged=damaged,
    )


def _check_new(service: Service, name: str) -> None:
    """Raises ``RequestInvalidError`` or ``ImageExistsError``."""
    try:
        check_name(name)
    except ValueError as error:
        raise RequestInvalidError(str(error), field="name") from error
    if name == probe.NAME:
        raise RequestInvalidError(f"{name} is built, never fetched", field="name")
    service.library.require_absent(name)
