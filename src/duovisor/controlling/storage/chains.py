"""A volume's file and those below it, held against what the store knows: no header leads out of the pools."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from duovisor.controlling.formats.chain import CHAIN_MAX, read_chain
from duovisor.controlling.storage.errors import VolumeBrokenError, VolumeRefusedError
from duovisor.controlling.storage.records import VolumeFormat, VolumeRef
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from duovisor.controlling.storage.pools import Pools
    from duovisor.controlling.storage.volumes import Volume, Volumes


async def read_volume_chain(volume: Volume, pools: Pools, volumes: Volumes) -> tuple[ImageFile, ...]:
    """The files of a volume, top first.

    Raises ``VolumeBrokenError`` when a file is missing, or its header says something else than the store,
    and ``DiskFileError`` as ``read_chain``.
    """
    expected: list[ImageFile] = []
    current: Volume | None = volume
    while current is not None:
        if len(expected) == CHAIN_MAX:
            raise VolumeRefusedError(
                f"volume {volume.ref} is based on {CHAIN_MAX} others, which is the most",
                remedy="make a full clone of it",
            )
        backend = await pools.backend(current.ref.pool)
        await asyncio.to_thread(backend.prepare, current.file)
        path = str(backend.path_of(current.file))
        expected.append(ImageFile(path, current.document.format.disk_format, backend.are_devices))
        base = current.document.base
        current = await volumes.get(VolumeRef.parse(base)) if base is not None else None
    if volume.document.format is VolumeFormat.RAW:
        return tuple(expected)
    top = expected[0]
    found = await asyncio.to_thread(_read_real_chain, top.path)
    if found != expected:
        raise VolumeBrokenError(
            f"the file of volume {volume.ref} says that it is based on "
            f"{', '.join(each.path for each in found[1:]) or 'nothing'}, which is not what it was made with"
        )
    return tuple(expected)


def _read_real_chain(path: str) -> list[ImageFile]:
    """What the headers say, without links on the way."""
    found = read_chain(path, DiskFormat.QCOW2)
    return [replace(each, path=os.path.realpath(each.path)) for each in found]
