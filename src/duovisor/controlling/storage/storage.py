"""Pools and volumes of this host: everything that is done to them, one thing at a time to each volume.

A file, or logical volume, appears under its name whole or not at all. What touches one is announced in the
store before and settled after, so that ``recover`` can finish or undo it.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.backend import HALF, UPLOAD, require_space
from duovisor.controlling.storage.chains import read_volume_chain
from duovisor.controlling.storage.checks import (
    build_document,
    check_growth,
    check_linked,
    check_size,
    check_snapshot,
    choose_format,
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

    from duovisor.controlling.storage.backend import Backend
    from duovisor.controlling.storage.documents import VolumeDocument
    from duovisor.controlling.storage.inbox import Inbox
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import Progress
    from duovisor.controlling.vms.volumes import Grow
    from duovisor.directories import Directories

    Fill = Callable[[Backend, VolumeDocument], Awaitable[VolumeDocument]]
    Online = Callable[[str, Grow], Awaitable[None]]

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
        volume_format: VolumeFormat | None,
        progress: Progress = ignore_progress,
    ) -> None:
        """Make an empty volume, of the pool's usual format if none is said.

        Raises ``VolumeExistsError``, ``PoolFullError`` or ``VolumeRefusedError``.
        """
        check_size(size_bytes)

        async def fill(backend: Backend, document: VolumeDocument) -> VolumeDocument:
            is_raw = document.format is VolumeFormat.RAW
            half = await in_thread(backend.make_half, document.uuid, size_bytes if is_raw else 0)
            if not is_raw:
                await find_image_tool().create(half, size_bytes)
            return document

        made = await self._make(ref, volume_format, fill, needs_bytes=size_bytes)
        progress(100, f"{format_bytes(made.size_bytes)}, {made.format}")

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
        with ExitStack() as held:
            held.enter_context(self.holds.hold(str(source), writing=False))
            original = await self.volumes.get_ready(source)
            chain = await read_volume_chain(original, self.pools, self.volumes)
            backend = await self.pools.backend(source.pool)
            await in_thread(held.enter_context, backend.open(original.file, writing=False))
            size_bytes = await self._read_size(backend, original)

            async def fill_full(backend: Backend, document: VolumeDocument) -> VolumeDocument:
                half = await in_thread(backend.make_half, document.uuid, size_bytes)
                await find_image_tool().convert(
                    build_chain(chain),
                    half,
                    document.format.value,
                    lambda percent: progress(percent, "copying"),
                )
                return document

            async def fill_linked(backend: Backend, document: VolumeDocument) -> VolumeDocument:
                half = await in_thread(backend.make_half, document.uuid, 0)
                name = original.file if ref.pool == source.pool else chain[0].path
                base = (name, original.document.format.value)
                await find_image_tool().create(half, size_bytes, base=base)
                return document

            async def fill_snapshot(backend: Backend, document: VolumeDocument) -> VolumeDocument:
                await in_thread(backend.take_snapshot, original.file, document.uuid)
                return document

            if not linked:
                usual = original.document.format
                await self._make(ref, volume_format, fill_full, needs_bytes=size_bytes, usual=usual)
            elif backend.takes_snapshots:
                check_snapshot(source, ref, volume_format)
                await self._make(ref, VolumeFormat.RAW, fill_snapshot)
            else:
                check_linked(len(chain), source, volume_format)
                await self._make(ref, VolumeFormat.QCOW2, fill_linked, base=str(source))
        progress(100, f"linked to {source}" if linked else f"a copy of {source}")

    async def receive(
        self, ref: VolumeRef, upload: Upload, inbox: Inbox, progress: Progress = ignore_progress
    ) -> None:
        """Make a volume of an image that comes through ``inbox``, converted if need be.

        Raises ``VolumeContentError``, and as ``create``.
        """

        async def fill(backend: Backend, document: VolumeDocument) -> VolumeDocument:
            document = document.changed(read_only=upload.read_only)
            return await take_upload(backend, document, upload, inbox, progress)

        made = await self._make(ref, upload.to, fill, needs_bytes=inbox.size_bytes)
        progress(100, f"{format_bytes(made.size_bytes)}, {made.format}")

    async def resize(
        self, ref: VolumeRef, size_bytes: int, online: Online, progress: Progress = ignore_progress
    ) -> None:
        """Make a volume larger; ``online`` does it where a running VM has it open.

        It is given what makes room for it first, and says how much there is then.

        Raises ``VolumeRefusedError``, ``VolumeInUseError`` or ``PoolFullError``.
        """
        check_size(size_bytes)
        with self.holds.hold(str(ref), writing=True):
            volume = await self.volumes.get_ready(ref)
            backend = await self.pools.backend(ref.pool)
            now_bytes = await self._read_size(backend, volume)
            check_growth(volume, now_bytes, size_bytes)
            await self.volumes.require_without_clones(ref, "resize")
            await asyncio.to_thread(require_space, backend, size_bytes - now_bytes)
            await self.volumes.write(ref, volume.document.changed(intent=VolumeIntent.RESIZE))
            try:
                await commit(self._grow(backend, volume, size_bytes, online))
            finally:
                made_bytes = await commit(self._settle_size(backend, volume))
        progress(100, f"{format_bytes(made_bytes)} now")

    async def delete(self, ref: VolumeRef) -> None:
        """Delete a volume with its file. Raises ``VolumeInUseError``."""
        with self.holds.hold(str(ref), writing=True):
            volume = await self.volumes.get(ref)
            await self.volumes.require_without_clones(ref, "delete")
            backend = await self.pools.backend(ref.pool)
            await self.volumes.require_without_vms(ref, str(backend.path_of(volume.file)))
            await asyncio.to_thread(backend.check)
            with ExitStack() as locked:
                try:
                    await in_thread(locked.enter_context, backend.excluding(volume.file))
                except VolumeBrokenError:
                    pass  # there is nothing to lose any more
                await commit(self._remove(backend, volume))

    async def compute_checksum(self, ref: VolumeRef, progress: Progress = ignore_progress) -> str:
        """The SHA-256 of a volume's file, which nobody writes to; kept until the file changes."""
        with self.holds.hold(str(ref), writing=False):
            volume = await self.volumes.get_ready(ref)
            backend = await self.pools.backend(ref.pool)
            with ExitStack() as files:
                descriptor = await in_thread(files.enter_context, backend.open(volume.file, writing=False))
                sha256 = await hash_file(descriptor, progress)
                found = await in_thread(backend.look_at, volume.file)
            if found.modified_ns is not None:
                kept = Checksum(sha256=sha256, modified_ns=found.modified_ns, file_bytes=found.file_bytes)
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
            backend = await self.pools.backend(ref.pool)
            descriptor = await in_thread(files.enter_context, backend.open(volume.file, writing=False))
            found = await in_thread(backend.look_at, volume.file)
            known = find_checksum(volume.document, found)
            return Content(descriptor, found.file_bytes, known, files.pop_all())

    async def _make(
        self,
        ref: VolumeRef,
        volume_format: VolumeFormat | None,
        fill: Fill,
        *,
        needs_bytes: int = 0,
        base: str | None = None,
        usual: VolumeFormat | None = None,
    ) -> VolumeDocument:
        """Make a new volume; ``fill`` makes a half of it, and says what is known of it then.

        Without ``volume_format`` it is ``usual``, or as is usual in its pool. Returns what became of it.
        """
        with self.holds.hold(str(ref), writing=True):
            async with self._membership:
                backend = await self.pools.get_for_new(ref.pool)
                document = build_document(choose_format(backend, volume_format, usual), base=base)
                if await self.volumes.find(ref) is not None:
                    raise VolumeExistsError(f"there is a volume {ref} already", remedy="choose another name")
                for each in backend.formats:
                    file = file_of(ref.name, document.changed(format=each))
                    await asyncio.to_thread(backend.require_absent, file)
                await asyncio.to_thread(require_space, backend, needs_bytes)
                await self.volumes.create(ref, document)
            try:
                made = await fill(backend, document)
                half = f"{HALF}{document.uuid}"
                size_bytes = await asyncio.to_thread(backend.read_size, half, made.format)
                made = made.changed(size_bytes=size_bytes)
                await self.volumes.write(ref, made)
                await commit(self._put_in_place(backend, ref, made))
            except BaseException:
                await commit(self._undo(backend, ref, document))
                raise
        return made

    async def _put_in_place(self, backend: Backend, ref: VolumeRef, made: VolumeDocument) -> None:
        await asyncio.to_thread(backend.put_in_place, made.uuid, file_of(ref.name, made))
        await self.volumes.write(ref, made.changed(intent=VolumeIntent.NONE))

    async def _undo(self, backend: Backend, ref: VolumeRef, document: VolumeDocument) -> None:
        """Leave nothing of a volume that could not be made; one that is in place, recovery finishes."""
        current = await self.volumes.find(ref)
        file = file_of(ref.name, current.document if current else document)
        is_half = await asyncio.to_thread(backend.exists, f"{HALF}{document.uuid}")
        if not is_half and await asyncio.to_thread(backend.exists, file):
            return
        await asyncio.to_thread(backend.remove, f"{UPLOAD}{document.uuid}")
        await asyncio.to_thread(backend.remove, f"{HALF}{document.uuid}")
        await self.volumes.forget(ref)

    async def _remove(self, backend: Backend, volume: Volume) -> None:
        await self.volumes.write(volume.ref, volume.document.changed(intent=VolumeIntent.DELETE))
        try:
            await asyncio.to_thread(backend.remove, volume.file)
        except BaseException:
            await self.volumes.write(volume.ref, volume.document)
            raise
        await self.volumes.forget(volume.ref)

    async def _grow(self, backend: Backend, volume: Volume, size_bytes: int, online: Online) -> None:
        async def grow_first() -> int:
            """QEMU makes a file larger by itself, and looks how large a device has become."""
            if not backend.are_devices:
                return size_bytes
            await in_thread(backend.grow, volume.file, -1, size_bytes)
            return await self._read_size(backend, volume)

        try:
            with ExitStack() as files:
                descriptor = await in_thread(files.enter_context, backend.open(volume.file, writing=True))
                if volume.document.format is VolumeFormat.RAW:
                    await in_thread(backend.grow, volume.file, descriptor, size_bytes)
                    return
        except VolumeInUseError:
            await online(str(volume.ref), grow_first)
            return
        # it takes the lock itself
        path = backend.path_of(volume.file)
        await find_image_tool().resize(path, volume.document.format.value, size_bytes)

    async def _read_size(self, backend: Backend, volume: Volume) -> int:
        """The file has the last word: a program that outlived a service by a moment may have changed it."""
        return await asyncio.to_thread(backend.read_size, volume.file, volume.document.format)

    async def _settle_size(self, backend: Backend, volume: Volume) -> int:
        """Whatever became of a change of its size: what the file says now is what is known, and returned."""
        size_bytes = await self._read_size(backend, volume)
        document = volume.document.changed(size_bytes=size_bytes, intent=VolumeIntent.NONE)
        await self.volumes.write(volume.ref, document)
        return size_bytes
