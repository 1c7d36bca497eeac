"""Guest images: list, show, build, delete."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Literal

from fastapi import APIRouter, Response

from duovisor.controlling.images import store as images
from duovisor.controlling.images.errors import ImageBrokenError
from duovisor.controlling.images.image import Image, ImageDisk
from duovisor.controlling.service.context import ServiceDep
from duovisor.controlling.service.gate import Administrator, Viewer
from duovisor.controlling.service.image_builder import build_image
from duovisor.controlling.service.operations import Operation
from duovisor.controlling.service.replies import After, ApiModel, Limit, Listing, Name
from duovisor.controlling.service.routes.operations import accept

router = APIRouter(prefix="/v1/images", tags=["images"])


class ImageView(ApiModel):
    """An image; one that is broken says why and has nothing else."""

    name: str
    broken: str = ""
    folder: str = ""
    description: str = ""
    kernel: str = ""
    kernel_version: str = ""
    initrd: str = ""
    command_line: str = ""
    disks: tuple[ImageDisk, ...] = ()
    source: str = ""
    built_at: datetime | None = None
    size_bytes: int = 0
    damaged: tuple[str, ...] | None = None


class ImageRecipe(ApiModel):
    """Which image to build; `force` builds it again though it is up to date."""

    recipe: Literal["probe"] = "probe"
    force: bool = False


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
    service: ServiceDep, who: Administrator, recipe: ImageRecipe, response: Response
) -> Operation:
    return await accept(
        service,
        "image.build",
        f"image/{recipe.recipe}",
        who,
        lambda progress: build_image(recipe.recipe, progress, force=recipe.force),
        response,
    )


@router.get("/{name}", summary="Show an image; `verify` reads its files and names those that changed")
async def get_image(service: ServiceDep, _: Viewer, name: Name, verify: bool = False) -> ImageView:
    image = images.load_image(name, service.directories)
    if not verify:
        return _view(image)
    damaged = await asyncio.to_thread(images.find_damage, image)
    return _view(image, tuple(damaged))


@router.delete("/{name}", status_code=204, summary="Delete an image; a VM that runs from it goes on")
async def delete_image(service: ServiceDep, who: Administrator, name: Name) -> None:
    service.operations.require_idle(f"image/{name}")
    await asyncio.to_thread(images.delete_image, name, service.directories)
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
        source=image.source,
        built_at=image.built_at,
        size_bytes=image.size_bytes,
        damaged=damaged,
    )
