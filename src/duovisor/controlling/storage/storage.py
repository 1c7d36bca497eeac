"""Pools and volumes of this host: everything that is done to them, one thing at a time to each volume.

A file appears under its name whole or not at all. What touches one is announced in the store before and
settled after, so that ``recover`` can finish or undo it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.chains import read_volume_chain
from duovisor.controlling.storage.checks import (
    build_document,
    check_depth,
    check_growth,
    check_size,
    find_checksum,
    hash_file,
)
from duovisor.controlling.storage.documents import Checksum, VolumeIntent
from duovisor.controlling.storage.errors import (
    VolumeBrokenError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.folder import HALF, UPLOAD, Folder, exists
from duovisor.controlling.storage.heads import read_size
from duovisor.controlling.storage.holds import Holds
from duovisor.controlling.storage.image_tool import build_chain, find_image_tool
from duovisor.controlling.storage.pools import Pools
from duovisor.controlling.storage.records import VolumeFormat, VolumeRef
from duovisor.controlling.storage.recovery import StorageReport, recover
from duovisor.controlling.storage.steps import commit, in_thread
from duovisor.controlling.storage.uploads import Upload, take_upload
from duovisor.controlling.storage.volumes import Volume, Volumes, file_of
from duovisor.controlling.vms.records import ignore_progress
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from duovisor.controlling.storage.documents import VolumeDocument
    from duovisor.controlling.storage.inbox import Inbox
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import Progress
    from duovisor.directories import Directories

    Fill = Callable[[Folder, Path, VolumeDocument], Awaitable[VolumeDocument]]
    Online = Callable[[str, int], Awaitable[None]]

VOLUMES_FOLDER = "volumes"


class Content(NamedTuple):
    """A volume's file, open for reading; ``files`` closes it and lets go of the volume."""

    descriptor: int
    size_bytes: int
    sha256: str | None
    files: ExitStack


class Storage:
    """The storage of one host; every method raises ``DuovisorError``, ``BusyError`` among them."""

    def __init__(self, store: Store, directories: Directories) -> None:
        self.pools = Pools(store, directories.state / VOLUMES_FOLDER)
        self.volumes = Volumes(store)
        self.holds = Holds()
        self._membership = asyncio.Lock()  # no volume begins in a pool that is being deleted

    async def recover(self) -> StorageReport:
        """Finish or undo what was interrupted; before anything else is done."""
        return await recover(self.pools, self.volumes)

    async def delete_pool(self, name: str, *, forget: bool = False) -> None:
        """Forget a pool; its folder stays. Raises ``PoolInUseError``, see ``require_pool_unused``."""
        async with self._membership:
            await self.pools.get(name)
            found = [volume async for volume in self.volumes.scan(name)]
            await self.volumes.require_pool_unused(name, found, forget=forget)
            with ExitStack() as held:
                for volume in found:
                    held.enter_context(self.holds.hold(str(volume.ref), writing=True))
                for volume in found:
                    await self.volumes.forget(volume.ref)
                await self.pools.delete(name)

    async def create(
        self,
        ref: VolumeRef,
        size_bytes: int,
        volume_format: VolumeFormat,
        progress: Progress = ignore_progress,
    ) -> None:
        """Make an empty volume. Raises ``VolumeExistsError``, ``PoolFullError``, ``VolumeRefusedError``."""
        check_size(size_bytes)

        async def fill(folder: Folder, half: Path, document: VolumeDocument) -> VolumeDocument:
            if volume_format is VolumeFormat.RAW:
                with folder.explaining():
                    await in_thread(os.truncate, half, size_bytes)
            else:
                await find_image_tool().create(half, size_bytes)
            return document.changed(size_bytes=size_bytes)

        await self._make(ref, build_document(volume_format), fill, needs_bytes=size_bytes)
        progress(100, f"{format_bytes(size_bytes)}, {volume_format}")

    async def clone(
        self,
        source: VolumeRef,
        ref: VolumeRef,
        *,
        linked: bool,
        volume_format: VolumeFormat | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        """Copy a volume that nobody writes to; or base a new one on it (``linked``), which is made at once.

        Raises ``VolumeInUseError``, ``VolumeRefusedError``, and as ``create``.
        """
        if linked and volume_format is VolumeFormat.RAW:
            raise VolumeRefusedError("a linked clone is qcow2; a raw one would have to be full")
        with ExitStack() as held:
            held.enter_context(self.holds.hold(str(source), writing=False))
            original = await self.volumes.get_ready(source)
            chain = await read_volume_chain(original, self.pools, self.volumes)
            folder = await self.pools.folder(source.pool)
            await in_thread(held.enter_context, folder.open(original.file, writing=False))
            size_bytes = await self._read_size(folder, original)
            target = volume_format or original.document.format

            async def fill_full(folder: Folder, half: Path, document: VolumeDocument) -> VolumeDocument:
                await find_image_tool().convert(
                    build_chain(chain), half, target.value, lambda percent: progress(percent, "copying")
                )
                return document.changed(size_bytes=size_bytes)

            async def fill_linked(folder: Folder, half: Path, document: VolumeDocument) -> VolumeDocument:
                name = original.file if ref.pool == source.pool else chain[0].path
                base = (name, original.document.format.value)
                await find_image_tool().create(half, size_bytes, base=base)
                return document.changed(size_bytes=size_bytes)

            if linked:
                document = build_document(VolumeFormat.QCOW2, base=str(source))
                check_depth(len(chain), source)
                await self._make(ref, document, fill_linked)
            else:
                await self._make(ref, build_document(target), fill_full, needs_bytes=size_bytes)
        progress(100, f"linked to {source}" if linked else f"a copy of {source}")

    async def receive(
        self, ref: VolumeRef, upload: Upload, inbox: Inbox, progress: Progress = ignore_progress
    ) -> None:
        """Make a volume of an image that comes through ``inbox``, converted if need be.

        Raises ``VolumeContentError``, and as ``create``.
        """

        async def fill(folder: Folder, half: Path, document: VolumeDocument) -> VolumeDocument:
            return await take_upload(folder, half, document, upload, inbox, progress)

        document = build_document(upload.to or VolumeFormat.RAW).changed(read_only=upload.read_only)
        await self._make(ref, document, fill, needs_bytes=inbox.size_bytes)
        made = (await self.volumes.get(ref)).document
        progress(100, f"{format_bytes(made.size_bytes)}, {made.format}")

    async def resize(
        self, ref: VolumeRef, size_bytes: int, online: Online, progress: Progress = ignore_progress
    ) -> None:
        """Make a volume larger; ``online`` does it where a running VM has it open.

        Raises ``VolumeRefusedError``, ``VolumeInUseError`` or ``PoolFullError``.
        """
        check_size(size_bytes)
        with self.holds.hold(str(ref), writing=True):
            volume = await self.volumes.get_ready(ref)
            folder = await self.pools.folder(ref.pool)
            now_bytes = await self._read_size(folder, volume)
            check_growth(volume, now_bytes, size_bytes)
            await self.volumes.require_without_clones(ref, "resize")
            await asyncio.to_thread(folder.require_space, size_bytes - now_bytes)
            await self.volumes.write(ref, volume.document.changed(intent=VolumeIntent.RESIZE))
            try:
                await commit(self._grow(folder, volume, size_bytes, online))
            finally:
                await commit(self.settle_size(folder, volume))
        progress(100, f"{format_bytes(size_bytes)} now")

    async def delete(self, ref: VolumeRef) -> None:
        """Delete a volume with its file. Raises ``VolumeInUseError``."""
        with self.holds.hold(str(ref), writing=True):
            volume = await self.volumes.get(ref)
            await self.volumes.require_without_clones(ref, "delete")
            folder = await self.pools.folder(ref.pool)
            await self.volumes.require_without_vms(ref, str(folder.path / volume.file))
            await asyncio.to_thread(folder.check)
            with ExitStack() as locked:
                try:
                    await in_thread(locked.enter_context, folder.open(volume.file, writing=True))
                except VolumeBrokenError:
                    pass  # there is nothing to lose any more
                await commit(self._remove(folder, volume))

    async def compute_checksum(self, ref: VolumeRef, progress: Progress = ignore_progress) -> str:
        """The SHA-256 of a volume's file, which nobody writes to; kept until the file changes."""
        with self.holds.hold(str(ref), writing=False):
            volume = await self.volumes.get_ready(ref)
            folder = await self.pools.folder(ref.pool)
            with ExitStack() as files:
                descriptor = await in_thread(files.enter_context, folder.open(volume.file, writing=False))
                sha256 = await hash_file(descriptor, progress)
                found = os.fstat(descriptor)
            kept = Checksum(sha256=sha256, modified_ns=found.st_mtime_ns, file_bytes=found.st_size)
            await self.volumes.write(ref, volume.document.changed(checksum=kept))
        progress(100, f"sha256 {sha256}")
        return sha256

    async def open_content(self, ref: VolumeRef) -> Content:
        """A volume's file for a download; nobody may write to it meanwhile.

        Raises ``VolumeRefusedError`` for a linked clone, ``VolumeInUseError``.
        """
        with ExitStack() as files:
            files.enter_context(self.holds.hold(str(ref), writing=False))
            volume = await self.volumes.get_ready(ref)
            if volume.document.base is not None:
                raise VolumeRefusedError(
                    f"volume {ref} is a linked clone, whose file is nothing without {volume.document.base}",
                    remedy="make a full clone of it, and download that",
                )
            folder = await self.pools.folder(ref.pool)
            descriptor = await in_thread(files.enter_context, folder.open(volume.file, writing=False))
            found = os.fstat(descriptor)
            known = find_checksum(volume.document, found)
            return Content(descriptor, found.st_size, known, files.pop_all())

    async def _make(
        self, ref: VolumeRef, document: VolumeDocument, fill: Fill, *, needs_bytes: int = 0
    ) -> None:
        """Make a new volume; what ``fill`` returns is what is known of it then."""
        with self.holds.hold(str(ref), writing=True):
            async with self._membership:
                folder = await self.pools.get_for_new(ref.pool)
                if await self.volumes.find(ref) is not None:
                    raise VolumeExistsError(f"there is a volume {ref} already", remedy="choose another name")
                for volume_format in VolumeFormat:
                    file = file_of(ref.name, document.changed(format=volume_format))
                    await asyncio.to_thread(folder.require_absent, file)
                await asyncio.to_thread(folder.require_space, needs_bytes)
                await self.volumes.create(ref, document)
            half = folder.path / f"{HALF}{document.uuid}"
            try:
                await in_thread(folder.make_half, document.uuid)
                made = await fill(folder, half, document)
                await self.volumes.write(ref, made)
                await commit(self._put_in_place(folder, ref, made))
            except BaseException:
                await commit(self._undo(folder, ref, document))
                raise

    async def _put_in_place(self, folder: Folder, ref: VolumeRef, made: VolumeDocument) -> None:
        half = folder.path / f"{HALF}{made.uuid}"
        await asyncio.to_thread(folder.put_in_place, half, file_of(ref.name, made))
        await self.volumes.write(ref, made.changed(intent=VolumeIntent.NONE))

    async def _undo(self, folder: Folder, ref: VolumeRef, document: VolumeDocument) -> None:
        """Leave nothing of a volume that could not be made; one that is in place, recovery finishes."""
        current = await self.volumes.find(ref)
        file = file_of(ref.name, current.document if current else document)
        is_half = await asyncio.to_thread(exists, folder.path / f"{HALF}{document.uuid}")
        if not is_half and await asyncio.to_thread(exists, folder.path / file):
            return
        await asyncio.to_thread(folder.remove, f"{UPLOAD}{document.uuid}")
        await asyncio.to_thread(folder.remove, f"{HALF}{document.uuid}")
        await self.volumes.forget(ref)

    async def _remove(self, folder: Folder, volume: Volume) -> None:
        await self.volumes.write(volume.ref, volume.document.changed(intent=VolumeIntent.DELETE))
        try:
            await asyncio.to_thread(folder.remove, volume.file)
        except BaseException:
            await self.volumes.write(volume.ref, volume.document)
            raise
        await self.volumes.forget(volume.ref)

    async def _grow(self, folder: Folder, volume: Volume, size_bytes: int, online: Online) -> None:
        try:
            with ExitStack() as files:
                descriptor = await in_thread(files.enter_context, folder.open(volume.file, writing=True))
                if volume.document.format is VolumeFormat.RAW:
                    with folder.explaining():
                        await in_thread(os.ftruncate, descriptor, size_bytes)
                    return
        except VolumeInUseError:
            await online(str(volume.ref), size_bytes)
            return
        # it takes the lock itself
        await find_image_tool().resize(folder.path / volume.file, volume.document.format.value, size_bytes)

    async def _read_size(self, folder: Folder, volume: Volume) -> int:
        """The file has the last word: a program that outlived a service by a moment may have changed it."""
        await asyncio.to_thread(folder.look_at, volume.file)
        return await asyncio.to_thread(read_size, folder.path / volume.file, volume.document.format)

    async def settle_size(self, folder: Folder, volume: Volume) -> None:
        """Whatever became of a change of its size: what the file says now is what is known."""
        size_bytes = await asyncio.to_thread(read_size, folder.path / volume.file, volume.document.format)
        document = volume.document.changed(size_bytes=size_bytes, intent=VolumeIntent.NONE)
        await self.volumes.write(volume.ref, document)
