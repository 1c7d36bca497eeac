"""The VMs that run on this host now: how each begins, what it meets, and how it ends; kept in the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.machine import Machine
from duovisor.controlling.supervision.factories import Factories
from duovisor.controlling.supervision.records import DriverEventKind
from duovisor.controlling.vms.active import ActiveVm
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.records import EventKind, Fault, VmEvent, now
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duovisor.controlling.description import DeviceChange, MachineDescription
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.controlling.snapshots.loading import SavedMachine
    from duovisor.controlling.supervision.records import DriverEvent, Tell
    from duovisor.controlling.vms.records import VmRecord
    from duovisor.controlling.vms.runs import Runs
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import Design, VirtualMachineSpec


class HostVms:
    """Active VMs by uuid. Whoever calls sees to it that one thing at a time is done to a VM."""

    def __init__(
        self,
        runs: Runs,
        directories: Directories,
        boot_id: str,
        emit: Callable[[VmEvent], None],
        capabilities: Callable[[], HostCapabilities],
    ) -> None:
        self._runs = runs
        self._directories = directories
        self._boot_id = boot_id
        self._emit = emit
        self._capabilities = capabilities
        self._active: dict[str, ActiveVm] = {}
        self._factories = Factories(directories.runtime, end_with_owner=False)
        self._notes: set[asyncio.Task[None]] = set()

    @property
    def console_logs(self) -> Path:
        """The folder of what guests printed."""
        return self._directories.state / "consoles"

    @property
    def lasting_folders(self) -> Path:
        """The folder of the folders of what outlasts VMs' runs."""
        return self._directories.state / "vms"

    def lasting(self, uuid: str) -> Path:
        """Where a VM keeps what its next run should find: UEFI's variables, its TPM's memory."""
        return self.lasting_folders / uuid

    def console_log(self, uuid: str) -> Path:
        """Where a VM's console output is kept, through all its runs."""
        return self.console_logs / f"{uuid}.log"

    @property
    def active(self) -> tuple[ActiveVm, ...]:
        """All that have a machine."""
        return tuple(self._active.values())

    def find(self, uuid: str) -> ActiveVm | None:
        """A VM that has a machine."""
        return self._active.get(uuid)

    def find_by_name(self, name: str) -> ActiveVm | None:
        """A VM that has a machine; its name cannot change meanwhile."""
        return next((vm for vm in self._active.values() if vm.name == name), None)

    async def start(
        self,
        record: VmRecord,
        spec: VirtualMachineSpec,
        capabilities: HostCapabilities,
        saved: SavedMachine | None = None,
    ) -> None:
        """Start a VM that has no machine; on failure or cancellation, nothing of it stays on the host.

        ``spec`` is its specification with the places of its volumes; it begins where it was ``saved``.
        """
        run = self._runs.of(record.uuid, record.name).changed(name=record.name)
        await self._runs.write(run.changed(intent=Intent.START))
        try:
            machine = await Machine.start(
                spec,
                capabilities,
                self._directories,
                self._factories,
                self._driver_teller(record.name, record.uuid),
                uuid=record.uuid,
                console_log=self.console_log(record.uuid),
                lasting=self.lasting(record.uuid),
                saved=saved,
            )
        except BaseException as error:
            said = "its start was cancelled" if isinstance(error, asyncio.CancelledError) else str(error)
            failed = run.changed(intent=Intent.NONE).with_fault(Fault(at=now(), message=said))
            await asyncio.shield(self._runs.write(failed))
            self._tell(EventKind.START_FAILED, record.name, record.uuid, said)
            raise
        run = run.changed(intent=Intent.NONE, state=State.RUNNING, boot_id=self._boot_id, ended_at=None)
        written = asyncio.ensure_future(self._runs.write(run))
        self.activate(record.uuid, machine, EventKind.STARTED)  # its end is written after its beginning
        await asyncio.shield(written)

    async def adopt(self, folder: RunFolder, left: MachineDescription) -> Machine:
        """Take over a VM that runs; raises what ``Machine.adopt`` raises."""
        log = self.console_log(left.uuid)
        tell = self._driver_teller(left.spec.name, left.uuid)
        return await Machine.adopt(
            folder,
            left,
            self._directories,
            log,
            self._factories,
            self._capabilities,
            tell,
            lasting=self.lasting(left.uuid),
        )

    def activate(self, uuid: str, machine: Machine, kind: EventKind) -> None:
        """Watch over a machine from now on."""
        vm = ActiveVm(uuid, machine, self._on_fault, self._on_end)
        self._active[uuid] = vm
        self._tell(kind, vm.name, uuid, f"pid {machine.description.processes[0].pid}")

    async def announce(self, vm: ActiveVm, intent: Intent, switching_to: Design | None = None) -> None:
        """Write down what is about to be done to a VM; ``Intent.NONE`` takes it back."""
        run = self._runs.of(vm.uuid, vm.name)
        await self._runs.write(run.at_rest().changed(intent=intent, switching_to=switching_to))

    async def announce_change(self, vm: ActiveVm, change: DeviceChange) -> None:
        """Write down which device is about to be plugged in or out."""
        run = self._runs.of(vm.uuid, vm.name)
        await self._runs.write(run.changed(intent=Intent.PLUG, plugging=change))

    async def note_failure(self, vm: ActiveVm, kind: EventKind, message: str) -> None:
        """Something that was tried with a VM went wrong: an event, and a fault of the VM."""
        run = self._runs.of(vm.uuid, vm.name).with_fault(Fault(at=now(), message=message))
        self._tell(kind, vm.name, vm.uuid, message)
        await self._runs.write(run)

    async def detach_all(self) -> None:
        """Let go of all VMs; they run on."""
        active = tuple(self._active.values())
        await asyncio.gather(*(vm.detach() for vm in active))
        self._active.clear()
        await self._factories.close()
        await asyncio.gather(*self._notes, return_exceptions=True)

    async def _on_fault(self, vm: ActiveVm, message: str) -> None:
        await self.note_failure(vm, EventKind.FAULT, message)

    async def _on_end(self, vm: ActiveVm, state: State) -> None:
        crashed = state is State.CRASHED
        words = vm.describe_crash() if crashed else ""
        run = self._runs.of(vm.uuid, vm.name)
        if crashed:
            run = run.with_fault(Fault(at=now(), message=words))
        ended = run.at_rest().changed(state=state, ended_boot_id=self._boot_id, ended_at=now())
        try:
            await self._runs.write(ended)
        finally:
            self._active.pop(vm.uuid, None)
            self._tell(EventKind.CRASHED if crashed else EventKind.STOPPED, vm.name, vm.uuid, words)

    def _driver_teller(self, name: str, uuid: str) -> Tell:
        """What a VM's drivers are told of through; a device that was given up is a fault of the VM."""

        def tell(event: DriverEvent) -> None:
            message = f"{event.device}: {event.message}"
            self._tell(EventKind(event.kind.value), name, uuid, message)
            if event.kind in (DriverEventKind.FAILED, DriverEventKind.MEMORY_LOST):
                run = self._runs.of(uuid, name).with_fault(Fault(at=now(), message=message))
                note = asyncio.create_task(self._runs.write(run))
                self._notes.add(note)
                note.add_done_callback(self._notes.discard)

        return tell

    def _tell(self, kind: EventKind, name: str, uuid: str, message: str = "") -> None:
        self._emit(VmEvent(kind=kind, name=name, uuid=uuid, message=message))
