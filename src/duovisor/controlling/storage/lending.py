"""Lends volumes to VMs that start: from their names in a specification to files, held meanwhile."""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.storage.backends import open_backend
from duovisor.controlling.storage.chains import read_volume_chain
from duovisor.controlling.storage.errors import VolumeRefusedError
from duovisor.controlling.storage.records import VolumeRef
from duovisor.spec.vm import BLOCK_DRIVER, DiskFormat, DiskSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.storage.volumes import Volume
    from duovisor.spec.cdrom import CdromSpec
    from duovisor.spec.vm import VirtualMachineSpec


class Lender:
    """Lends the volumes of one storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @asynccontextmanager
    async def lend(self, spec: VirtualMachineSpec) -> AsyncIterator[VirtualMachineSpec]:
        """The specification with a path and a format for each volume, none of which changes meanwhile.

        A path that leads to a volume's file counts as the volume. Raises ``VolumeNotFoundError``,
        ``VolumeRefusedError``, ``VolumeInUseError``, ``VolumeBrokenError`` or ``BusyError``.
        """
        with ExitStack() as held:
            disks = [await self._lend_disk(disk, held) for disk in spec.disks]
            cdroms = [await self._lend_medium(cdrom, held) for cdrom in spec.cdroms]
            yield spec.model_copy(update={"disks": tuple(disks), "cdroms": tuple(cdroms)})

    async def _lend_medium(self, cdrom: CdromSpec, held: ExitStack) -> CdromSpec:
        """What is in a CD-ROM drive is only read, and is no other format than it looks."""
        if cdrom.is_empty:
            return cdrom
        found = await self._lend_disk(DiskSpec(path=cdrom.path, volume=cdrom.volume, read_only=True), held)
        if found.format is not DiskFormat.RAW:
            raise VolumeRefusedError(
                f"volume {cdrom.volume} is {found.format}, not an ISO image", remedy="it can be a disk"
            )
        return cdrom.model_copy(update={"path": found.path})

    async def _lend_disk(self, disk: DiskSpec, held: ExitStack) -> DiskSpec:
        if disk.volume is not None:
            volume = await self._storage.volumes.get_ready(VolumeRef.parse(disk.volume))
        else:
            by_path = await self._find_by_path(disk.path)
            if by_path is None:
                return disk
            volume = by_path
        held.enter_context(self._storage.holds.hold(str(volume.ref), writing=not disk.read_only))
        volume = await self._storage.volumes.get_ready(volume.ref)
        check_use(disk, volume)
        if not disk.read_only:
            await self._storage.volumes.require_without_clones(volume.ref, "write to")
        chain = await read_volume_chain(volume, self._storage.pools, self._storage.volumes)
        if disk.volume is None:
            return disk
        return disk.model_copy(update={"path": chain[0].path, "format": chain[0].format})

    async def _find_by_path(self, path: str) -> Volume | None:
        if not path:
            return None
        real = await asyncio.to_thread(os.path.realpath, path)
        for pool in await self._storage.pools.list():
            file = await asyncio.to_thread(open_backend(pool.id, pool.document).find_file, real)
            name = (file or "").rpartition(".")[0]
            if name:
                found = await self._storage.volumes.find(VolumeRef(pool=pool.id, name=name))
                if found is not None and found.file == file:
                    return found
        return None


def check_use(disk: DiskSpec, volume: Volume) -> None:
    """Raises ``VolumeRefusedError`` when a disk wants of a volume what that cannot give; pure."""
    if volume.document.read_only and not disk.read_only:
        raise VolumeRefusedError(
            f"volume {volume.ref} is read-only", remedy="give the disk read_only: true, or clone the volume"
        )
    if disk.driver != BLOCK_DRIVER and volume.document.format.disk_format is not DiskFormat.RAW:
        raise VolumeRefusedError(
            f"driver {disk.driver} works on raw volumes; {volume.ref} is {volume.document.format}",
            remedy="duovisor volume clone --format raw makes one",
        )
