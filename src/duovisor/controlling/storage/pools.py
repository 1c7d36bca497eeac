"""The pools of this host, in the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.storage.answers import Answers
from duovisor.controlling.storage.documents import POOL_KIND, POOLS, PoolDocument
from duovisor.controlling.storage.errors import (
    PoolExistsError,
    PoolNotFoundError,
    PoolRefusedError,
    PoolUnavailableError,
)
from duovisor.controlling.storage.folder import Folder
from duovisor.controlling.storage.places import overlap, prepare_folder
from duovisor.controlling.storage.records import DEFAULT_POOL, PoolKind
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.errors import DocumentExistsError
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.records import now

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.storage.folder import Space
    from duovisor.controlling.store.collection import Stored
    from duovisor.controlling.store.interface import Store


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

    async def get_for_new(self, name: str) -> Folder:
        """The folder for a new volume, of ``default`` even if it is not there yet.

        Raises ``PoolNotFoundError`` or ``PoolUnavailableError``.
        """
        if name == DEFAULT_POOL and await self._pools.find(name) is None:
            await self.create(name, str(self._default_folder), or_get=True)
        return await self.folder(name)

    async def folder(self, name: str) -> Folder:
        """A pool's folder. Raises ``PoolNotFoundError``; ``PoolUnavailableError`` when its server is away."""
        document = await self.get(name)
        folder = Folder(name, document.path, document.type)
        if folder.kind is PoolKind.NFS:
            await self.read_space(folder)
        return folder

    async def read_space(self, folder: Folder) -> Space:
        """Its size and free space, from a thread. Raises ``PoolUnavailableError``, for a server's in time."""
        if folder.kind is PoolKind.NFS:
            return await self.answers.ask(f"pool {folder.pool}: {folder.path}", folder.read_space)
        return await asyncio.to_thread(folder.read_space)

    async def look_at(self, name: str) -> tuple[Folder, bool]:
        """A pool's folder, and whether it can be looked into at once. Raises ``PoolNotFoundError``."""
        document = await self.get(name)
        folder = Folder(name, document.path, document.type)
        try:
            if folder.kind is PoolKind.NFS:
                await self.read_space(folder)
        except PoolUnavailableError:
            return folder, False
        return folder, True

    async def create(
        self, name: str, path: str, kind: PoolKind = PoolKind.DIRECTORY, *, or_get: bool = False
    ) -> PoolDocument:
        """A pool over a folder; what lies in it stays.

        Raises ``PoolExistsError``, ``PoolRefusedError`` or ``PoolUnavailableError``.
        """
        async with self._creating:
            if (known := await self._pools.find(name)) is not None:
                if or_get:
                    return known.document
                raise PoolExistsError(f"there is a pool {name!r} already", remedy="choose another name")
            real = await self.answers.ask(path, lambda: prepare_folder(path, kind))
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
