"""VMs with disks that are clones: of an image's disk, or of another VM's.

What is about to be made is in the store first (``/vm-clones/NAME``), so that who comes after a ``kill -9``
removes the volumes of a VM that never came to be.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from pydantic import AwareDatetime  # noqa: TC002  # pydantic reads the annotation at run time

from duovisor.controlling.storage.errors import (
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
    VolumeRefusedError,
)
from duovisor.controlling.storage.records import DEFAULT_POOL, Model, VolumeRef
from duovisor.controlling.storage.steps import commit
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.errors import VmNameInUseError
from duovisor.controlling.vms.records import now
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import DiskSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.records import Autostart, Progress, VmView
    from duovisor.spec.vm import VirtualMachineSpec

    Define = Callable[[VirtualMachineSpec, Autostart], Awaitable[VmView]]

PREFIX = "/vm-clones/"
MADE_PERCENT = 90


class CloneDocument(Model):
    """The volumes that are being made for a VM, none of which was there when that began."""

    name: str
    volumes: tuple[str, ...]
    begun_at: AwareDatetime


KIND = DocumentKind("vm-clone", CloneDocument)


class DiskClone(NamedTuple):
    """A volume to be cloned; ``size_bytes`` is how large the clone is to become, None: as its source."""

    source: VolumeRef
    target: VolumeRef
    linked: bool = False
    size_bytes: int | None = None


class Cloner:
    """Makes such VMs; ``define`` is the manager's way to define one."""

    def __init__(self, store: Store, storage: Storage, definitions: Definitions, define: Define) -> None:
        self._store = store
        self._storage = storage
        self._definitions = definitions
        self._define = define

    async def make(
        self, spec: VirtualMachineSpec, autostart: Autostart, disks: Sequence[DiskClone], progress: Progress
    ) -> VmView:
        """Clone the volumes and define the VM, or leave nothing of either.

        Raises ``VmNameInUseError``, ``VolumeExistsError``, and as ``Storage.clone``.
        """
        if await self._definitions.find(spec.name) is not None:
            raise VmNameInUseError(f"there is a VM named {spec.name!r} already", remedy="choose another name")
        for disk in disks:
            if await self._storage.volumes.find(disk.target) is not None:
                raise VolumeExistsError(
                    f"there is a volume {disk.target} already", remedy="delete it, or choose another name"
                )
        volumes = tuple(str(disk.target) for disk in disks)
        document = CloneDocument(name=spec.name, volumes=volumes, begun_at=now())
        await self._store.put(PREFIX + spec.name, KIND.encode(document))
        try:
            for number, disk in enumerate(disks):
                await self._clone(disk, _share(progress, number, len(disks)))
            vm = await commit(self._finish(spec, autostart))
        except BaseException:
            await commit(self._undo(document))
            raise
        progress(100, f"{spec.name} is defined")
        return vm

    async def recover(self) -> tuple[str, ...]:
        """Remove what was left of VMs that were never defined; returns their names."""
        undone = []
        for entry in [entry async for entry in walk(self._store, PREFIX)]:
            document = KIND.decode(entry.value, key=entry.key)
            if await self._definitions.find(document.name) is None:
                await self._undo(document)
                undone.append(document.name)
            else:
                await self._store.delete(PREFIX + document.name)
        return tuple(undone)

    async def _clone(self, disk: DiskClone, progress: Progress) -> None:
        await self._storage.clone(disk.source, disk.target, linked=disk.linked, progress=progress)
        made = (await self._storage.volumes.get(disk.target)).document
        if disk.size_bytes is not None and disk.size_bytes != made.size_bytes:
            await self._storage.resize(disk.target, disk.size_bytes, _refuse_online, progress)

    async def _finish(self, spec: VirtualMachineSpec, autostart: Autostart) -> VmView:
        vm = await self._define(spec, autostart)
        await self._store.delete(PREFIX + spec.name)
        return vm

    async def _undo(self, document: CloneDocument) -> None:
        """Delete what was made; a volume that somebody else made or uses meanwhile stays."""
        for name in document.volumes:
            ref = VolumeRef.parse(name)
            volume = await self._storage.volumes.find(ref)
            if volume is None or volume.document.created_at < document.begun_at:
                continue
            with contextlib.suppress(VolumeNotFoundError, VolumeInUseError):
                await self._storage.delete(ref)
        await self._store.delete(PREFIX + document.name)


def plan_copy(
    spec: VirtualMachineSpec, name: str, pool: str | None
) -> tuple[VirtualMachineSpec, list[DiskClone]]:
    """The specification of a copy of a VM, and its volumes; pure.

    Addresses and forwards of NICs are left to the original. Raises ``VolumeRefusedError`` for a disk that
    both would write to.
    """
    clones: list[DiskClone] = []
    disks: list[DiskSpec] = []
    for index, disk in enumerate(spec.disks):
        if disk.read_only or disk.cloud_init is not None:
            disks.append(disk)
            continue
        if disk.volume is None:
            raise VolumeRefusedError(
                f"disk {index} of {spec.name} ({disk.path or disk.driver}) is no volume, and two VMs cannot "
                "write to it",
                remedy="duovisor volume upload makes a volume of an image",
            )
        source = VolumeRef.parse(disk.volume)
        target = VolumeRef(pool=pool or source.pool, name=f"{name}-{len(clones)}" if clones else name)
        clones.append(DiskClone(source, target))
        disks.append(disk.model_copy(update={"volume": str(target)}))
    nics = tuple(nic.model_copy(update={"mac": None, "address": None, "forward": ()}) for nic in spec.nics)
    return spec.model_copy(update={"name": name, "disks": tuple(disks), "nics": nics}), clones


def plan_instance(
    spec: VirtualMachineSpec, template: str, *, pool: str = DEFAULT_POOL, linked: bool, size_bytes: int | None
) -> tuple[VirtualMachineSpec, list[DiskClone]]:
    """A VM whose first disk is a clone of a template's volume: its specification and that clone; pure.

    Raises ``SpecError`` where that disk finds no place beside its others.
    """
    target = VolumeRef(pool=pool, name=spec.name)
    clone = DiskClone(VolumeRef.parse(template), target, linked, size_bytes)
    disks = (DiskSpec(volume=str(target)), *spec.disks)
    return build_spec({**spec.model_dump(), "disks": [disk.model_dump() for disk in disks]}), [clone]


def _share(progress: Progress, number: int, count: int) -> Progress:
    """The part of a progress that is one disk's."""

    def show(percent: int, said: str) -> None:
        progress(MADE_PERCENT * (number * 100 + percent) // (100 * count), said)

    return show


async def _refuse_online(volume: str, _: object) -> None:
    raise VolumeInUseError(f"volume {volume} is in use, though it was just made")
