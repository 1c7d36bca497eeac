"""The VMs that users defined, in the store; every change names the revision that it has seen."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

from duovisor.controlling.plugging.changes import apply_change, name_devices
from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.errors import (
    DocumentConflictError,
    DocumentExistsError,
    DocumentNotFoundError,
)
from duovisor.controlling.store.records import Delete, Put, Transaction, is_absent, is_unchanged_since
from duovisor.controlling.vms.documents import RUNS, VM_KIND, VMS, VmDocument
from duovisor.controlling.vms.errors import RevisionConflictError, VmNameInUseError, VmNotFoundError
from duovisor.controlling.vms.records import Page, VmRecord, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.description import DeviceChange
    from duovisor.controlling.store.collection import Stored
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import Autostart
    from duovisor.spec.vm import Design, VirtualMachineSpec

_SCAN_PAGE = 500


class Definitions:
    """Definitions by name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._vms = Collection(store, VM_KIND, VMS)

    async def find(self, name: str) -> VmRecord | None:
        """A definition, or ``None``."""
        stored = await self._vms.find(name)
        return None if stored is None else _read(stored)

    async def get(self, name: str) -> VmRecord:
        """A definition. Raises ``VmNotFoundError``."""
        found = await self.find(name)
        if found is None:
            raise VmNotFoundError(f"there is no VM named {name!r}", remedy="duovisor vm list shows all")
        return found

    async def list(self, limit: int, after: str | None) -> Page[VmRecord]:
        """Up to ``limit`` definitions in the order of their names, behind ``after``."""
        page = await self._vms.list(limit=limit, after=after)
        last = page.items[-1].id if page.more else None
        return Page(items=tuple(map(_read, page.items)), after=last)

    async def scan(self) -> AsyncIterator[VmRecord]:
        """Every definition, as it is when its turn comes."""
        after: str | None = None
        while True:
            page = await self.list(_SCAN_PAGE, after)
            for record in page.items:
                yield record
            after = page.after
            if after is None:
                return

    async def create(
        self, spec: VirtualMachineSpec, autostart: Autostart, *, uuid: str | None = None
    ) -> VmRecord:
        """A new definition. Raises ``VmNameInUseError``."""
        document = VmDocument(uuid=uuid or str(uuid4()), spec=spec, autostart=autostart, created_at=now())
        try:
            return _read(await self._vms.create(spec.name, document))
        except DocumentExistsError as error:
            raise _name_in_use(spec.name) from error

    async def update(
        self, seen: VmRecord, spec: VirtualMachineSpec, autostart: Autostart, if_revision: int | None
    ) -> VmRecord:
        """Another specification. Raises ``RevisionConflictError`` or ``VmNotFoundError``."""
        check_revision(seen, if_revision)
        document = VmDocument(uuid=seen.uuid, spec=spec, autostart=autostart, created_at=seen.created_at)
        try:
            return _read(await self._vms.update(seen.name, document, seen_revision=seen.revision))
        except DocumentConflictError as error:
            raise _conflict(seen.name) from error
        except DocumentNotFoundError as error:
            raise VmNotFoundError(f"there is no VM named {seen.name!r} any more") from error

    async def change_device(self, name: str, change: DeviceChange) -> VmRecord:
        """A device more or less, whoever changes something else meanwhile; the same record if it has that.

        Raises ``VmNotFoundError`` or ``PlugRefusedError``.
        """
        while True:
            seen = await self.get(name)
            has, is_to_have = change.device in name_devices(seen.spec), change.disk or change.nic
            if has == bool(is_to_have):
                return seen
            spec = apply_change(seen.spec, change)
            with suppress(RevisionConflictError):
                return await self.update(seen, spec, seen.autostart, None)

    async def change_design(self, seen: VmRecord, design: Design) -> VmRecord:
        """Another design and nothing else; the same record if it has that. Raises as ``update``."""
        if seen.spec.design is design:
            return seen
        spec = seen.spec.model_copy(update={"design": design})
        return await self.update(seen, spec, seen.autostart, None)

    async def rename(self, seen: VmRecord, new: str, if_revision: int | None) -> VmRecord:
        """Another name. Raises ``RevisionConflictError`` or ``VmNameInUseError``."""
        check_revision(seen, if_revision)
        spec = seen.spec.model_copy(update={"name": new})
        document = VmDocument(uuid=seen.uuid, spec=spec, autostart=seen.autostart, created_at=seen.created_at)
        old_key, new_key = self._vms.key_of(seen.name), self._vms.key_of(new)
        outcome = await self._store.commit(
            Transaction(
                (is_unchanged_since(old_key, seen.revision), is_absent(new_key)),
                then=(Delete(old_key), Put(new_key, VM_KIND.encode(document))),
            )
        )
        if outcome.succeeded:
            return await self.get(new)
        if await self.find(new) is not None:
            raise _name_in_use(new)
        raise _conflict(seen.name)

    async def delete(self, seen: VmRecord, if_revision: int | None) -> None:
        """Forget a VM with its runs. Raises ``RevisionConflictError``."""
        check_revision(seen, if_revision)
        key = self._vms.key_of(seen.name)
        outcome = await self._store.commit(
            Transaction(
                (is_unchanged_since(key, seen.revision),), then=(Delete(key), Delete(RUNS + seen.uuid))
            )
        )
        if not outcome.succeeded:
            raise _conflict(seen.name)


def check_revision(seen: VmRecord, if_revision: int | None) -> None:
    """Raises ``RevisionConflictError`` unless the caller saw this revision, or does not care (``None``)."""
    if if_revision is not None and if_revision != seen.revision:
        raise _conflict(seen.name)


def _read(stored: Stored[VmDocument]) -> VmRecord:
    document = stored.document
    return VmRecord(
        name=stored.id,
        uuid=document.uuid,
        spec=document.spec,
        autostart=document.autostart,
        created_at=document.created_at,
        revision=stored.mod_revision,
    )


def _conflict(name: str) -> RevisionConflictError:
    return RevisionConflictError(
        f"VM {name!r} was changed by somebody else meanwhile", remedy="read it again and repeat the change"
    )


def _name_in_use(name: str) -> VmNameInUseError:
    return VmNameInUseError(f"there is a VM named {name!r} already", remedy="choose another name")
