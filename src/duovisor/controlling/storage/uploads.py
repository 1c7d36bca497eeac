"""An upload on its way to a volume: saved, checked, identified, and converted where that is needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.backend import UPLOAD, require_space
from duovisor.controlling.storage.checks import choose_format
from duovisor.controlling.storage.errors import VolumeContentError
from duovisor.controlling.storage.heads import find_options, identify
from duovisor.controlling.storage.image_tool import Source, find_image_tool
from duovisor.controlling.storage.inbox import save
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat
from duovisor.controlling.storage.steps import in_thread

if TYPE_CHECKING:
    from duovisor.controlling.storage.backend import Backend
    from duovisor.controlling.storage.documents import VolumeDocument
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
    backend: Backend,
    document: VolumeDocument,
    upload: Upload,
    inbox: Inbox,
    progress: Progress,
) -> VolumeDocument:
    """Make a half of an upload; returns what is known of the volume then.

    Raises ``VolumeContentError`` or ``PoolFullError``.
    """
    saved = await in_thread(backend.make_half, document.uuid, inbox.size_bytes, UPLOAD)
    with backend.explaining():
        sha256 = await save(
            inbox, saved, lambda done: progress(SAVED_PERCENT * done // max(inbox.size_bytes, 1), "receiving")
        )
    if upload.sha256 is not None and sha256 != upload.sha256:
        raise VolumeContentError(
            f"the upload's sha256 is {sha256}, not {upload.sha256}", remedy="fetch the image again"
        )
    image_format = await asyncio.to_thread(identify, saved, upload.format, inbox.size_bytes)
    plain = VolumeFormat.RAW if image_format is ImageFormat.RAW else VolumeFormat.QCOW2
    document = document.changed(format=choose_format(backend, upload.to, plain))
    if image_format is ImageFormat.RAW and document.format is VolumeFormat.RAW:
        await in_thread(backend.promote, document.uuid)
    else:
        options = await asyncio.to_thread(find_options, saved, image_format, inbox.size_bytes)
        source = Source(
            saved,
            image_format.qemu_driver,
            options,
            inbox.size_bytes if backend.are_devices else None,
            saved.is_block_device(),
        )
        await _convert(backend, source, image_format, document, progress)
        await in_thread(backend.remove, f"{UPLOAD}{document.uuid}")
    return document


async def _convert(
    backend: Backend,
    source: Source,
    image_format: ImageFormat,
    document: VolumeDocument,
    progress: Progress,
) -> None:
    tool = find_image_tool()
    size_bytes = await tool.read_size((source,))
    await asyncio.to_thread(require_space, backend, size_bytes)
    await tool.check(source)
    half = await in_thread(backend.make_half, document.uuid, size_bytes)

    def show(percent: int) -> None:
        progress(
            SAVED_PERCENT + (100 - SAVED_PERCENT) * percent // 101,
            f"converting {image_format} to {document.format}",
        )

    await tool.convert((source,), half, document.format.value, show)
