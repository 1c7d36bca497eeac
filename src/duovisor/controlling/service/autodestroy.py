"""VMs that end with the process that asked for them, whatever ends it: ``duovisor run`` and the demo.

Libvirt calls it VIR_DOMAIN_START_AUTODESTROY, and ties it to a connection, which ends with the service, too.
Here it is the process at the other end of the Unix socket. Which VM belongs to which process is stored before
the VM is, so that the next service goes on watching, and finds out what ended while there was none.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.events import Outcome
from duovisor.controlling.service.identity import service_identity
from duovisor.controlling.service.operations import UNDER_WAY
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.walking import walk
from duovisor.errors import DuovisorError
from duovisor.process_identity import ProcessIdentity, open_living, read_identity

if TYPE_CHECKING:
    from duovisor.controlling.service.events import EventLog
    from duovisor.controlling.service.manager import VmManager
    from duovisor.controlling.service.operations import Operations
    from duovisor.controlling.service.peer import Peer
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import Autostart, VmView
    from duovisor.spec.vm import VirtualMachineSpec

PREFIX = "/vm-owners/"
TRIES = 5
REST_S = 2.0  # between two tries
MESSAGE = "the process that it was for has ended"

_log = logging.getLogger(__name__)


class OwnerDocument(BaseModel):
    """The process that a VM is for; ``name`` is what the VM was called at first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uuid: str
    name: str
    pid: int
    start_ticks: int


OWNER = DocumentKind("vm-owner", OwnerDocument)


class Autodestroy:
    """Watches those processes, and takes a VM away when its process has ended."""

    def __init__(self, store: Store, manager: VmManager, operations: Operations, events: EventLog) -> None:
        self._store = store
        self._manager = manager
        self._operations = operations
        self._events = events
        self._pidfds: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Go on with what earlier services were asked for; begins when the VMs of this host are known."""
        async for entry in walk(self._store, PREFIX):
            self._watch(OWNER.decode(entry.value, key=entry.key))

    async def close(self) -> None:
        """Watch no more; the VMs run on."""
        for uuid in tuple(self._pidfds):
            self._forget(uuid)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def create(self, spec: VirtualMachineSpec, autostart: Autostart, peer: Peer | None) -> VmView:
        """Define a VM that is for the process ``peer``. Raises ``RequestInvalidError``, or as the manager."""
        owner = _identify(peer)
        document = OwnerDocument(uuid=str(uuid4()), name=spec.name, **owner._asdict())
        key = PREFIX + document.uuid
        await self._store.put(key, OWNER.encode(document))
        try:
            vm = await self._manager.create(spec, autostart, uuid=document.uuid)
        except DuovisorError:
            await self._store.delete(key)
            raise
        self._watch(document)
        return vm

    def _watch(self, document: OwnerDocument) -> None:
        pidfd = open_living(ProcessIdentity(document.pid, document.start_ticks))
        if pidfd is None:
            self._end(document)
            return
        self._pidfds[document.uuid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._end, document)

    def _forget(self, uuid: str) -> None:
        pidfd = self._pidfds.pop(uuid, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _end(self, document: OwnerDocument) -> None:
        self._forget(document.uuid)
        task = asyncio.create_task(self._destroy(document), name=f"destroy {document.name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("cannot %s: %s", task.get_name(), error)

    async def _destroy(self, document: OwnerDocument) -> None:
        for attempt in range(1, TRIES + 1):
            vm = await self._find(document)
            try:
                if vm is not None:
                    await self._take_away(vm)
            except DuovisorError as error:  # somebody else does something with it, or it has snapshots
                assert vm is not None
                if attempt == TRIES:
                    self._tell(vm, Outcome.FAILED, f"{MESSAGE}, but it stays: {error.message}")
                    return
                await asyncio.sleep(REST_S)
                continue
            await self._store.delete(PREFIX + document.uuid)
            return

    async def _find(self, document: OwnerDocument) -> VmView | None:
        """The VM, whatever it is called now; ``None`` when it has been deleted."""
        after: str | None = None
        while True:
            page = await self._manager.list(1000, after)
            for vm in page.items:
                if vm.record.uuid == document.uuid:
                    return vm
            if page.after is None:
                return None
            after = page.after

    async def _take_away(self, vm: VmView) -> None:
        """Cancel what is under way, pull the plug, delete the definition."""
        name, who = vm.record.name, service_identity().name
        for operation in self._operations.list():
            if operation.object == f"vm/{name}" and operation.state in UNDER_WAY:
                await self._operations.cancel(operation.id)
                await self._operations.wait(operation.id)
        if (await self._manager.get(name)).status.pid is not None:
            stop = await self._operations.start(
                "vm.stop", f"vm/{name}", who, lambda _: self._manager.stop(name)
            )
            await self._operations.wait(stop.id)
        await self._manager.delete(name, (await self._manager.get(name)).record.revision)
        self._tell(vm, Outcome.DONE, MESSAGE)

    def _tell(self, vm: VmView, outcome: Outcome, message: str) -> None:
        self._events.emit(service_identity().name, "vm.delete", f"vm/{vm.record.name}", outcome, message)
        _log.info("%s: %s", vm.record.name, message)


def _identify(peer: Peer | None) -> ProcessIdentity:
    try:
        if peer is not None and peer.pid > 0:  # 0: it is in a PID namespace that is not below ours
            return read_identity(peer.pid)
    except ProcessLookupError:
        pass
    raise RequestInvalidError(
        "autodestroy: the process that asks cannot be seen from here",
        remedy="leave it out, and delete the VM yourself",
        field="autodestroy",
    )
