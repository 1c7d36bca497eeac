"""An upload on its way to a volume: saved, checked, identified, and converted where that is needed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.errors import VolumeContentError
from duovisor.controlling.storage.folder import UPLOAD
from duovisor.controlling.storage.heads import find_options, identify, read_size
from duovisor.controlling.storage.image_tool import Source, find_image_tool
from duovisor.controlling.storage.inbox import save
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat
from duovisor.controlling.storage.steps import in_thread

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.storage.documents import VolumeDocument
    from duovisor.controlling.storage.folder import Folder
    from duovisor.controlling.storage.inbox import Inbox
    from duovisor.controlling.vms.records import Progress

SAVED_PERCENT = 60  # the rest is converting


class Upload(NamedTuple):
    """What is said of an upload; without ``format`` its signature tells, without ``to`` it is chosen.

    ``sha256`` is what the file must have, in lower-case hexadecimal.
    """

    format: ImageFormat | None = None
    to: VolumeFormat | None = None
    sha256: str | None = None
    read_only: bool = False


async def take_upload(
    folder: Folder,
    half: Path,
    document: VolumeDocument,
    upload: Upload,
    inbox: Inbox,
    progress: Progress,
) -> VolumeDocument:
    """Fill ``half``; returns what is known of the volume then.

    Raises ``VolumeContentError`` or ``PoolFullError``.
    """
    saved = await in_thread(folder.make_half, document.uuid, UPLOAD)
    with folder.explaining():
        sha256 = await save(
            inbox, saved, lambda done: progress(SAVED_PERCENT * done // max(inbox.size_bytes, 1), "receiving")
        )
    if upload.sha256 is not None and sha256 != upload.sha256:
        raise VolumeContentError(
            f"the upload's sha256 is {sha256}, not {upload.sha256}", remedy="fetch the image again"
        )
    image_format = await asyncio.to_thread(identify, saved, upload.format)
    plain = VolumeFormat.RAW if image_format is ImageFormat.RAW else VolumeFormat.QCOW2
    target = upload.to or plain
    if image_format is ImageFormat.RAW and target is VolumeFormat.RAW:
        with folder.explaining():
            await in_thread(os.replace, saved, half)
    else:
        await _convert(folder, saved, image_format, half, target, progress)
        await in_thread(saved.unlink)
    size_bytes = await asyncio.to_thread(read_size, half, target)
    return document.changed(format=target, size_bytes=size_bytes)


async def _convert(
    folder: Folder,
    saved: Path,
    image_format: ImageFormat,
    half: Path,
    target: VolumeFormat,
    progress: Progress,
) -> None:
    tool = find_image_tool()
    options = await asyncio.to_thread(find_options, saved, image_format)
    source = (Source(saved, image_format.qemu_driver, options),)
    await asyncio.to_thread(folder.require_space, await tool.read_size(source))

    await tool.check(source[0])

    def show(percent: int) -> None:
        progress(
            SAVED_PERCENT + (100 - SAVED_PERCENT) * percent // 101, f"converting {image_format} to {target}"
        )

    await tool.convert(source, half, target.value, show)
