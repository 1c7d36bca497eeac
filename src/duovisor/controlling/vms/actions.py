"""What every action on a VM stands on: definitions, runs, the host, and one thing at a time."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.vms.boot import read_boot_id
from duovisor.controlling.vms.definitions import Definitions
from duovisor.controlling.vms.errors import BusyError
from duovisor.controlling.vms.host_vms import HostVms
from duovisor.controlling.vms.records import EventKind, VmEvent, VmView
from duovisor.controlling.vms.runs import Runs
from duovisor.controlling.vms.status import build_active_status, build_resting_status
from duovisor.hypervisor.errors import WrongStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.records import VmRecord
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities


class Given(NamedTuple):
    """What a manager is made with; see ``VmManager``."""

    store: Store
    directories: Directories
    emit: Callable[[VmEvent], None]
    lend: Lend
    capabilities: Callable[[], HostCapabilities]


class VmActions:
    """The base of the manager."""

    def __init__(self, given: Given) -> None:
        self._store, self._directories, self._emit, self._lend, self._capabilities = given
        self._boot_id = read_boot_id()
        self._definitions = Definitions(given.store)
        self._runs = Runs(given.store)
        self._host = HostVms(self._runs, given.directories, self._boot_id, given.emit, given.capabilities)
        self._actions: dict[str, str] = {}

    @contextmanager
    def _exclusive(self, name: str, action: str) -> Iterator[None]:
        """Do one thing at a time to a VM. Raises ``BusyError`` at once."""
        if name in self._actions:
            raise BusyError(
                f"cannot {action} {name!r}: another action is under way ({self._actions[name]})",
                remedy="wait for its end, or cancel it",
            )
        self._actions[name] = action
        try:
            yield
        finally:
            del self._actions[name]

    async def _require_active(self, name: str, action: str) -> ActiveVm:
        vm = self._host.find((await self._definitions.get(name)).uuid)
        if vm is None:
            raise not_running(name, action)
        return vm

    def _require_resting(self, record: VmRecord, action: str) -> None:
        vm = self._host.find(record.uuid)
        if vm is not None:
            raise WrongStateError(
                f"cannot {action} {record.name}: it is {self._view(record).status.state}",
                remedy="it must not be running",
            )

    def _view(self, record: VmRecord) -> VmView:
        run = self._runs.of(record.uuid, record.name)
        action = self._actions.get(record.name, "")
        vm = self._host.find(record.uuid)
        if vm is None:
            status = build_resting_status(run, self._boot_id, action)
        else:
            status = build_active_status(vm.machine, run, record, action)
        return VmView(record=record, status=status)

    def _tell(self, kind: EventKind, name: str, uuid: str, message: str = "") -> None:
        self._emit(VmEvent(kind=kind, name=name, uuid=uuid, message=message))


def not_running(name: str, action: str) -> WrongStateError:
    """The error for what can be done only to a VM that runs."""
    return WrongStateError(f"cannot {action} {name}: it does not run", remedy=f"duovisor vm start {name}")
