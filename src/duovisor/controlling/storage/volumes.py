"""The volumes of all pools, in the store, and who depends on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.storage.documents import VOLUME_KIND, VOLUMES, VolumeDocument, VolumeIntent
from duovisor.controlling.storage.errors import (
    PoolInUseError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.records import VolumeRef
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.errors import DocumentExistsError
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.definitions import Definitions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.store.collection import Stored
    from duovisor.controlling.store.interface import Store


class Volume(NamedTuple):
    """A volume as the store has it."""

    ref: VolumeRef
    document: VolumeDocument

    @property
    def file(self) -> str:
        """Its file in the pool's folder."""
        return file_of(self.ref.name, self.document)


def file_of(name: str, document: VolumeDocument) -> str:
    """The file of a volume; two volumes never share one, as each name ends in its format."""
    return f"{name}.{document.format}"


class Volumes:
    """Volumes by pool and name. Whoever changes one holds it (``Holds``)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._volumes = Collection(store, VOLUME_KIND, VOLUMES)
        self._definitions = Definitions(store)

    async def find(self, ref: VolumeRef) -> Volume | None:
        """A volume, or ``None``."""
        stored = await self._volumes.find(str(ref))
        return None if stored is None else _read(stored)

    async def get(self, ref: VolumeRef) -> Volume:
        """A volume. Raises ``VolumeNotFoundError``."""
        found = await self.find(ref)
        if found is None:
            raise VolumeNotFoundError(f"there is no volume {ref}", remedy="duovisor volume list shows all")
        return found

    async def get_ready(self, ref: VolumeRef) -> Volume:
        """One that is whole. Raises ``VolumeNotFoundError`` or ``VolumeRefusedError``."""
        found = await self.get(ref)
        if found.document.intent in (VolumeIntent.CREATE, VolumeIntent.DELETE):
            raise VolumeRefusedError(
                f"volume {ref} is being {found.document.intent}d", remedy="see duovisor operation list"
            )
        return found

    async def scan(self, pool: str | None = None) -> AsyncIterator[Volume]:
        """All volumes, or those of a pool, by name."""
        async for entry in walk(self._store, VOLUMES if pool is None else f"{VOLUMES}{pool}/"):
            yield _read(self._volumes.read(entry))

    async def create(self, ref: VolumeRef, document: VolumeDocument) -> None:
        """Raises ``VolumeExistsError``."""
        try:
            await self._volumes.create(str(ref), document)
        except DocumentExistsError as error:
            raise VolumeExistsError(
                f"there is a volume {ref} already", remedy="choose another name"
            ) from error

    async def write(self, ref: VolumeRef, document: VolumeDocument) -> None:
        """Replace what is known of a volume."""
        await self._store.put(self._volumes.key_of(str(ref)), VOLUME_KIND.encode(document))

    async def forget(self, ref: VolumeRef) -> None:
        """Delete what is known of a volume; its file is another's business."""
        await self._store.delete(self._volumes.key_of(str(ref)))

    async def read_clones(self) -> dict[str, list[str]]:
        """The linked clones of each volume that has some."""
        clones: dict[str, list[str]] = {}
        async for volume in self.scan():
            if volume.document.base is not None:
                clones.setdefault(volume.document.base, []).append(str(volume.ref))
        return clones

    async def read_vms(self) -> dict[str, list[str]]:
        """The VMs whose definition names a volume, or a path, by that."""
        users: dict[str, list[str]] = {}
        async for record in self._definitions.scan():
            for place in {disk.volume or disk.path for disk in record.spec.media}:
                users.setdefault(place, []).append(record.name)
        return users

    async def require_without_clones(self, ref: VolumeRef, action: str) -> None:
        """Raises ``VolumeInUseError`` when linked clones are based on it: each needs it as it is."""
        if clones := (await self.read_clones()).get(str(ref)):
            raise VolumeInUseError(
                f"cannot {action} volume {ref}: linked clones are based on it ({', '.join(clones)})",
                remedy="delete them first, or make full clones",
            )

    async def require_without_vms(self, ref: VolumeRef, path: str) -> None:
        """Raises ``VolumeInUseError`` when the definition of a VM names the volume, or its file."""
        users = await self.read_vms()
        if vms := [*users.get(str(ref), ()), *users.get(path, ())]:
            raise VolumeInUseError(
                f"volume {ref} is a disk of {', '.join(vms)}",
                remedy=f"duovisor vm delete {vms[0]}, or edit it",
            )

    async def require_pool_unused(self, pool: str, found: list[Volume], *, forget: bool) -> None:
        """Raises ``PoolInUseError`` when a pool has volumes, or with ``forget`` such as others need."""
        if found and not forget:
            raise PoolInUseError(
                f"pool {pool} has {len(found)} volumes",
                remedy="delete them; or forget them with it: duovisor pool delete --forget",
            )
        clones, users = await self.read_clones(), await self.read_vms()
        for volume in found:
            ref = str(volume.ref)
            outside = [clone for clone in clones.get(ref, ()) if not clone.startswith(f"{pool}/")]
            if outside:
                raise PoolInUseError(f"{', '.join(outside)} are linked clones of volume {ref}")
            if vms := users.get(ref):
                raise PoolInUseError(f"volume {ref} is a disk of {', '.join(vms)}")


def _read(stored: Stored[VolumeDocument]) -> Volume:
    return Volume(VolumeRef.parse(stored.id), stored.document)
