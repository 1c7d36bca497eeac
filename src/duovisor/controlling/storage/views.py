"""Pools and volumes as they are shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.checks import find_checksum
from duovisor.controlling.storage.documents import VolumeIntent
from duovisor.controlling.storage.errors import PoolUnavailableError, VolumeBrokenError
from duovisor.controlling.storage.folder import Folder
from duovisor.controlling.storage.heads import read_size
from duovisor.controlling.storage.records import PoolView, VolumeRef, VolumeState, VolumeView

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.controlling.storage.documents import PoolDocument
    from duovisor.controlling.storage.pools import Pools
    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.storage.volumes import Volume

BLOCK_BYTES = 512  # of st_blocks, whatever the file system's are
STATES = {
    VolumeIntent.NONE: VolumeState.READY,
    VolumeIntent.CREATE: VolumeState.CREATING,
    VolumeIntent.RESIZE: VolumeState.RESIZING,
    VolumeIntent.DELETE: VolumeState.DELETING,
}


class VolumePage(NamedTuple):
    """Volumes in the order of their names; ``after`` is null at the end."""

    items: tuple[VolumeView, ...]
    after: str | None


async def list_pools(storage: Storage) -> tuple[PoolView, ...]:
    """All pools by name."""
    counts = Counter([volume.ref.pool async for volume in storage.volumes.scan()])
    found = await storage.pools.list()
    return tuple(
        [await build_pool_view(storage.pools, pool.id, pool.document, counts[pool.id]) for pool in found]
    )


async def get_pool(storage: Storage, name: str) -> PoolView:
    """A pool. Raises ``PoolNotFoundError``."""
    document = await storage.pools.get(name)
    count = len([volume async for volume in storage.volumes.scan(name)])
    return await build_pool_view(storage.pools, name, document, count)


async def list_volumes(storage: Storage, pool: str | None, limit: int, after: str | None) -> VolumePage:
    """Volumes of a pool or of all, behind ``after`` (``POOL/NAME``). Raises ``PoolNotFoundError``."""
    if pool is not None:
        await storage.pools.get(pool)
    found = [v async for v in storage.volumes.scan(pool) if after is None or str(v.ref) > after]
    page = found[:limit]
    return VolumePage(
        await build_volume_views(storage, page), str(page[-1].ref) if len(found) > limit else None
    )


async def get_volume(storage: Storage, ref: VolumeRef) -> VolumeView:
    """A volume. Raises ``VolumeNotFoundError``."""
    (view,) = await build_volume_views(storage, [await storage.volumes.get(ref)])
    return view


async def build_volume_views(storage: Storage, found: Sequence[Volume]) -> tuple[VolumeView, ...]:
    """Volumes, with who depends on them."""
    if not found:
        return ()
    clones, users = await storage.volumes.read_clones(), await storage.volumes.read_vms()
    folders = {pool: await storage.pools.look_at(pool) for pool in {volume.ref.pool for volume in found}}
    views = []
    for volume in found:
        (folder, is_there), ref = folders[volume.ref.pool], str(volume.ref)
        path = str(folder.path / volume.file)
        vms = tuple(sorted({*users.get(ref, ()), *users.get(path, ())}))
        ours = tuple(clones.get(ref, ()))
        if is_there:
            views.append(await asyncio.to_thread(build_volume_view, folder, volume, ours, vms))
        else:
            views.append(build_volume_view(folder, volume, ours, vms, is_there=False))
    return tuple(views)


async def build_pool_view(pools: Pools, name: str, document: PoolDocument, volumes: int) -> PoolView:
    """One pool."""
    capacity = free = None
    problem = ""
    try:
        capacity, free = await pools.read_space(Folder(name, document.path, document.type))
    except PoolUnavailableError as error:
        problem = error.message
    return PoolView(
        name=name,
        kind=document.type,
        path=document.path,
        problem=problem,
        capacity_bytes=capacity,
        free_bytes=free,
        volumes=volumes,
        created_at=document.created_at,
    )


def build_volume_view(
    folder: Folder, volume: Volume, clones: tuple[str, ...], vms: tuple[str, ...], *, is_there: bool = True
) -> VolumeView:
    """One volume; may block, unless its folder is not there."""
    document = volume.document
    state, allocated, sha256 = STATES[document.intent], None, None
    size_bytes = document.size_bytes
    try:
        if not is_there:
            raise PoolUnavailableError(f"pool {folder.pool} is not there")
        found = folder.look_at(volume.file)
    except (VolumeBrokenError, PoolUnavailableError):
        state = VolumeState.MISSING if state is VolumeState.READY else state
    else:
        allocated, sha256 = found.st_blocks * BLOCK_BYTES, find_checksum(document, found)
        size_bytes = read_size(folder.path / volume.file, document.format)
    return VolumeView(
        pool=volume.ref.pool,
        name=volume.ref.name,
        state=state,
        format=document.format,
        size_bytes=size_bytes,
        allocated_bytes=allocated,
        read_only=document.read_only,
        base=document.base,
        clones=clones,
        vms=vms,
        path=str(folder.path / volume.file),
        sha256=sha256,
        created_at=document.created_at,
    )
