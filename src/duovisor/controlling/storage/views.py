"""Pools and volumes as they are shown."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.backends import open_backend
from duovisor.controlling.storage.checks import find_checksum
from duovisor.controlling.storage.documents import VolumeIntent
from duovisor.controlling.storage.records import (
    PoolKind,
    PoolView,
    VolumeFormat,
    VolumeRef,
    VolumeState,
    VolumeView,
)
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.controlling.storage.backend import Backend, Look
    from duovisor.controlling.storage.documents import PoolDocument
    from duovisor.controlling.storage.pools import Pools
    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.storage.volumes import Volume

STATES = {
    VolumeIntent.NONE: VolumeState.READY,
    VolumeIntent.CREATE: VolumeState.CREATING,
    VolumeIntent.RESIZE: VolumeState.RESIZING,
    VolumeIntent.DELETE: VolumeState.DELETING,
}


class Seen(NamedTuple):
    """A volume's file, and what a guest sees of it, in bytes."""

    look: Look
    size_bytes: int


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
    backends: dict[str, Backend] = {}
    seen: dict[VolumeRef, Seen] = {}
    for pool in {volume.ref.pool for volume in found}:
        backends[pool], is_there = await storage.pools.look_at(pool)
        if is_there:
            its = [volume for volume in found if volume.ref.pool == pool]
            seen |= await asyncio.to_thread(_look_at, backends[pool], its)
    views = []
    for volume in found:
        ref, path = str(volume.ref), str(backends[volume.ref.pool].path_of(volume.file))
        vms = tuple(sorted({*users.get(ref, ()), *users.get(path, ())}))
        views.append(build_volume_view(volume, path, seen.get(volume.ref), tuple(clones.get(ref, ())), vms))
    return tuple(views)


def _look_at(backend: Backend, volumes: Sequence[Volume]) -> dict[VolumeRef, Seen]:
    """What is there of a pool's volumes; may block."""
    seen = {}
    with contextlib.suppress(DuovisorError):
        looks = backend.look_at_all([volume.file for volume in volumes])
        for volume in volumes:
            look = looks.get(volume.file)
            if look is None:
                continue
            with contextlib.suppress(DuovisorError):  # gone meanwhile
                size_bytes = look.file_bytes
                if volume.document.format is not VolumeFormat.RAW:
                    size_bytes = backend.read_size(volume.file, volume.document.format)
                seen[volume.ref] = Seen(look, size_bytes)
    return seen


async def build_pool_view(pools: Pools, name: str, document: PoolDocument, volumes: int) -> PoolView:
    """One pool."""
    space, problem = None, ""
    try:
        space = await pools.read_space(open_backend(name, document))
    except DuovisorError as error:
        problem = error.message
    return PoolView(
        name=name,
        kind=document.type,
        path=document.path,
        problem=problem,
        capacity_bytes=space.capacity_bytes if space else None,
        free_bytes=space.free_bytes if space else None,
        free_metadata=space.spare_metadata if space and document.type is PoolKind.LVM_THIN else None,
        volumes=volumes,
        created_at=document.created_at,
    )


def build_volume_view(
    volume: Volume, path: str, seen: Seen | None, clones: tuple[str, ...], vms: tuple[str, ...]
) -> VolumeView:
    """One volume; pure."""
    document = volume.document
    state, allocated, sha256 = STATES[document.intent], None, None
    size_bytes = document.size_bytes
    if seen is None:
        state = VolumeState.MISSING if state is VolumeState.READY else state
    else:
        allocated, sha256 = seen.look.allocated_bytes, find_checksum(document, seen.look)
        size_bytes = seen.size_bytes
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
        path=path,
        sha256=sha256,
        created_at=document.created_at,
    )
