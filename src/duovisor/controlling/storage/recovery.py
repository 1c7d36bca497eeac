"""What is made of volumes that were being changed when the service ended; each step can be repeated."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.recovery_report import count_found
from duovisor.controlling.storage.documents import VolumeIntent
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from duovisor.controlling.storage.backend import Backend
    from duovisor.controlling.storage.pools import Pools
    from duovisor.controlling.storage.volumes import Volume, Volumes


class StorageReport(NamedTuple):
    """Volumes that were finished or rolled back, files that were removed, and what could not be done."""

    finished: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = count_found(
            ("volumes finished", self.finished),
            ("rolled back", self.rolled_back),
            ("half files removed", self.removed),
        )
        return ", ".join([*parts, *self.problems])


async def recover(pools: Pools, volumes: Volumes) -> StorageReport:
    """Bring the store and the pools together again."""
    removed: list[str] = []
    problems: list[str] = []
    for pool in await pools.list():
        try:
            backend = await pools.backend(pool.id)
            await asyncio.to_thread(backend.check)
            removed += await asyncio.to_thread(backend.remove_halves)
        except (DuovisorError, OSError) as error:
            problems.append(str(error))
    finished: list[str] = []
    rolled_back: list[str] = []
    async for volume in volumes.scan():
        if volume.document.intent is VolumeIntent.NONE:
            continue
        try:
            backend = await pools.backend(volume.ref.pool)
            await asyncio.to_thread(backend.check)
            found = finished if await settle(backend, volume, volumes) else rolled_back
            found.append(str(volume.ref))
        except (DuovisorError, OSError) as error:
            problems.append(f"volume {volume.ref}: {error}")
    return StorageReport(tuple(finished), tuple(rolled_back), tuple(removed), tuple(problems))


async def settle(backend: Backend, volume: Volume, volumes: Volumes) -> bool:
    """Finish what was meant with a volume, or roll it back; whether it was finished."""
    ref, document = volume
    at_rest = document.changed(intent=VolumeIntent.NONE)
    match document.intent:
        case VolumeIntent.CREATE:
            # nothing lay there when it was begun, and it gets its name when it is whole
            if not await asyncio.to_thread(backend.exists, volume.file):
                await volumes.forget(ref)
                return False
            await volumes.write(ref, at_rest)
        case VolumeIntent.DELETE:
            await asyncio.to_thread(backend.remove, volume.file)
            await volumes.forget(ref)
        case VolumeIntent.RESIZE:
            size_bytes = await asyncio.to_thread(backend.read_size, volume.file, document.format)
            await volumes.write(ref, at_rest.changed(size_bytes=size_bytes))
            return size_bytes != document.size_bytes
        case VolumeIntent.NONE:
            pass
    return True
