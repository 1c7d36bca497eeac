"""The pools of this host, in the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.storage.answers import Answers
from duovisor.controlling.storage.backends import open_backend, prepare_place
from duovisor.controlling.storage.documents import POOL_KIND, POOLS, PoolDocument
from duovisor.controlling.storage.errors import (
    PoolExistsError,
    PoolNotFoundError,
    PoolRefusedError,
)
from duovisor.controlling.storage.places import overlap
from duovisor.controlling.storage.records import DEFAULT_POOL, PoolKind
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.errors import DocumentExistsError
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.records import now
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.storage.backend import Backend, Space
    from duovisor.controlling.store.collection import Stored
    from duovisor.controlling.store.interface import Store


LVM_S = 30.0  # LVM's commands wait for each other


class Pools:
    """Pools by name; ``default_folder`` is where the pool ``default`` is made when it is first used."""

    def __init__(self, store: Store, default_folder: Path) -> None:
        self._store = store
        self._pools = Collection(store, POOL_KIND, POOLS)
        self._default_folder = default_folder
        self.answers = Answers()
        self._creating = asyncio.Lock()  # no two that overlap at once

    async def list(self) -> list[Stored[PoolDocument]]:
        """All of them by name; a host has few."""
        return [self._pools.read(entry) async for entry in walk(self._store, POOLS)]

    async def get(self, name: str) -> PoolDocument:
        """A pool. Raises ``PoolNotFoundError``."""
        found = await self._pools.find(name)
        if found is None:
            raise PoolNotFoundError(f"there is no pool {name!r}", remedy="duovisor pool list shows all")
        return found.document

    async def get_for_new(self, name: str) -> Backend:
        """What a new volume is made in, for ``default`` even if it is not there yet.

        Raises ``PoolNotFoundError`` or ``PoolUnavailableError``.
        """
        if name == DEFAULT_POOL and await self._pools.find(name) is None:
            await self.create(name, str(self._default_folder), or_get=True)
        return await self.backend(name)

    async def backend(self, name: str) -> Backend:
        """What a pool is made of. Raises ``PoolNotFoundError``; ``PoolUnavailableError`` when it is away."""
        backend = open_backend(name, await self.get(name))
        if backend.may_hang:
            await self.read_space(backend)
        return backend

    async def read_space(self, backend: Backend) -> Space:
        """Its size and free space, from a thread. Raises ``PoolUnavailableError``, for a server's in time."""
        if not backend.may_hang:
            return await asyncio.to_thread(backend.read_space)
        about = f"pool {backend.pool}: {backend.path}"
        return await self.answers.ask(about, backend.read_space, LVM_S if backend.are_devices else None)

    async def look_at(self, name: str) -> tuple[Backend, bool]:
        """What a pool is made of, and whether it can be looked into at once. Raises ``PoolNotFoundError``."""
        backend = open_backend(name, await self.get(name))
        try:
            if backend.may_hang:
                await self.read_space(backend)
        except DuovisorError:
            return backend, False
        return backend, True

    async def create(
        self, name: str, path: str, kind: PoolKind = PoolKind.DIRECTORY, *, or_get: bool = False
    ) -> PoolDocument:
        """A pool over a folder or an LVM thin pool; what lies in it stays.

        Raises ``PoolExistsError``, ``PoolRefusedError``, ``PoolUnavailableError`` or ``HostLacksError``.
        """
        async with self._creating:
            if (known := await self._pools.find(name)) is not None:
                if or_get:
                    return known.document
                raise PoolExistsError(f"there is a pool {name!r} already", remedy="choose another name")
            patience_s = LVM_S if kind is PoolKind.LVM_THIN else None
            real = await self.answers.ask(path, lambda: prepare_place(path, kind), patience_s)
            for other in await self.list():
                if overlap(real, other.document.path):
                    raise PoolRefusedError(
                        f"{path} overlaps pool {other.id}, which is in {other.document.path}",
                        remedy="pools lie beside each other",
                    )
            document = PoolDocument(type=kind, path=real, created_at=now())
            try:
                return (await self._pools.create(name, document)).document
            except DocumentExistsError as error:
                raise PoolExistsError(f"there is a pool {name!r} already") from error

    async def delete(self, name: str) -> None:
        """Forget a pool. Raises ``PoolNotFoundError``."""
        await self.get(name)
        await self._store.delete(self._pools.key_of(name))
