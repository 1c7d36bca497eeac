"""What the manager does when it starts: adopt what runs, finish or undo what was interrupted, sweep.

Everything is decided from three things: the run folders on the host (``machine.json``), the runs in the
store (with what was meant), and whether the processes named there live. Each step can be repeated, as this
may be killed as well.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.console_log import remove_console_log
from duovisor.controlling.description import FILE, load_description
from duovisor.controlling.errors import ControllingError, NameInUseError
from duovisor.controlling.leftovers import can_go_on, undo
from duovisor.controlling.memory_folder import remove_orphaned_memory
from duovisor.controlling.plugging.changes import name_devices
from duovisor.controlling.run_folder import list_run_folders, open_run_folder, remove_folder
from duovisor.controlling.supervision.factories import remove_orphaned_logs
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.media import describe_medium, has_medium, note_medium
from duovisor.controlling.vms.records import Autostart, EventKind, Fault, RecoveryReport, VmEvent, now
from duovisor.errors import DuovisorError
from duovisor.hypervisor.errors import HypervisorError
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.qemu.cdroms import cdrom_name
from duovisor.spec.cdrom import MAX_CDROMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.description import DeviceChange, MachineDescription
    from duovisor.controlling.run_folder import RunFolder
    from duovisor.controlling.vms.definitions import Definitions
    from duovisor.controlling.vms.documents import RunDocument
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.runs import Runs
    from duovisor.directories import Directories
    from duovisor.spec.cdrom import CdromSpec
    from duovisor.spec.vm import Design, VirtualMachineSpec

PARALLEL = 16
LOCK_TIMEOUT_S, LOCK_RETRY_S = 2.0, 0.01


class Recovery:
    """One recovery; ``run`` it once."""

    def __init__(
        self,
        definitions: Definitions,
        runs: Runs,
        host: HostVms,
        directories: Directories,
        boot_id: str,
        emit: Callable[[VmEvent], None],
    ) -> None:
        self._definitions = definitions
        self._runs = runs
        self._host = host
        self._directories = directories
        self._boot_id = boot_id
        self._emit = emit
        self._found: dict[str, list[str]] = defaultdict(list)
        self._adopted: set[str] = set()
        self._lost: dict[str, str] = {}
        self._parallel = asyncio.Semaphore(PARALLEL)

    async def run(self) -> RecoveryReport:
        """Bring store and host together again, and say what was found."""
        vms = self._directories.vms
        restarted = any(run.state is State.RUNNING and run.boot_id != self._boot_id for run in self._runs)
        async with asyncio.TaskGroup() as group:
            for name in list_run_folders(vms):
                group.create_task(self._look_at(name))
        for run in self._runs:
            if run.uuid not in self._adopted:
                await self._settle(run)
        await asyncio.to_thread(self._sweep, vms)
        found = {what: tuple(sorted(set(names))) for what, names in self._found.items()}
        return RecoveryReport(**found, host_restarted=restarted)

    async def _look_at(self, name: str) -> None:
        async with self._parallel:
            try:
                folder = await self._own(name)
            except ControllingError as error:
                self._found["problems"].append(str(error))
                return
            if folder is None:
                return
            try:
                await self._deal_with(folder)
            except (DuovisorError, OSError) as error:
                self._found["problems"].append(f"{name}: {error}")
                folder.release()

    async def _own(self, name: str) -> RunFolder | None:
        """Own a run folder; ``None`` for that of somebody's foreground VM.

        A program that the dead service was just starting has its locks still, until it has begun.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                return open_run_folder(self._directories.vms, name)
            except NameInUseError:
                if _owner_lives(self._directories.vms / name) or time.monotonic() > deadline:
                    return None
            await asyncio.sleep(LOCK_RETRY_S)

    async def _deal_with(self, folder: RunFolder) -> None:
        """Adopt or undo what a run folder describes."""
        left = load_description(folder.path)
        if left is None and (folder.path / FILE).exists():
            raise ControllingError(f"{folder.path / FILE} cannot be read; it was left alone")
        if left is not None and can_go_on(left) and not self._is_to_stop(left):
            await self._ensure_defined(left)
            if await self._adopt(folder, left):
                return
        await undo(folder, left)
        folder.remove()
        if left is None or not left.uuid:
            self._found["removed"].append(str(folder.path))

    def _is_to_stop(self, left: MachineDescription) -> bool:
        return self._runs.of(left.uuid, left.spec.name).intent is Intent.STOP

    async def _ensure_defined(self, left: MachineDescription) -> None:
        """A VM that runs and is not in the store, which may be an older copy, comes back to it."""
        record = await self._definitions.find(left.spec.name)
        if record is None:
            await self._definitions.create(left.spec.without_places(), Autostart(), uuid=left.uuid)
            self._found["problems"].append(f"{left.spec.name} ran and was not defined; it is again")
        elif record.uuid != left.uuid:
            raise ControllingError("a VM of this name runs, and another one is defined; it was left alone")

    async def _adopt(self, folder: RunFolder, left: MachineDescription) -> bool:
        try:
            machine = await self._host.adopt(folder, left)
        except (HypervisorError, OSError) as error:
            self._lost[left.uuid] = f"could not be adopted and was ended: {error}"
            return False
        self._adopted.add(left.uuid)
        self._found["adopted"].append(left.spec.name)
        run = self._runs.of(left.uuid, left.spec.name)
        if run.intent is Intent.SWITCH:
            run = await self._settle_switch(run, machine.spec.design)
        if run.intent is Intent.SNAPSHOT:
            await machine.current.resume()  # it stood still for one that nobody finishes
        if run.plugging is not None:
            run = await self._settle_plugging(run, run.plugging, machine.spec)
        settled = run.at_rest().changed(state=State.RUNNING, boot_id=self._boot_id)
        if settled != run:
            await self._runs.write(settled)
        self._host.activate(left.uuid, machine, EventKind.ADOPTED)
        return True

    async def _settle_switch(self, run: RunDocument, design: Design) -> RunDocument:
        """A switch that was under way is over; what runs tells how it came out."""
        if design is not run.switching_to:
            fault = "its switch was interrupted; it runs on as it was"
            self._found["rolled_back"].append(run.name)
            self._tell(EventKind.SWITCH_FAILED, run, fault)
            return run.with_fault(Fault(at=now(), message=fault))
        await self._definitions.change_design(await self._definitions.get(run.name), design)
        self._found["finished"].append(run.name)
        self._tell(EventKind.SWITCHED, run, f"{design} now; the service was away when it came to that")
        return run

    async def _settle_plugging(
        self, run: RunDocument, change: DeviceChange, spec: VirtualMachineSpec
    ) -> RunDocument:
        """A device was coming or going; whether the VM has it tells how it came out."""
        if change.cdrom is not None:
            return await self._settle_medium(run, change, change.cdrom, spec)
        comes = bool(change.disk or change.nic)
        if (change.device in name_devices(spec)) is not comes:
            fault = f"{change.device} was to be {'attached' if comes else 'detached'}; that was interrupted"
            self._found["rolled_back"].append(run.name)
            self._tell(EventKind.FAULT, run, fault)
            return run.with_fault(Fault(at=now(), message=fault))
        await self._definitions.change_device(run.name, change)
        self._found["finished"].append(run.name)
        kind = EventKind.DEVICE_ATTACHED if comes else EventKind.DEVICE_DETACHED
        self._tell(kind, run, f"{change.device}; the service was away when it came to that")
        return run

    async def _settle_medium(
        self, run: RunDocument, change: DeviceChange, cdrom: CdromSpec, spec: VirtualMachineSpec
    ) -> RunDocument:
        """A drive's medium was being changed; what is in it tells how it came out."""
        drive = next(index for index in range(MAX_CDROMS) if cdrom_name(index) == change.device)
        if not has_medium(spec, drive, cdrom):
            fault = f"the medium of {change.device} was to be changed; that was interrupted"
            self._found["rolled_back"].append(run.name)
            self._tell(EventKind.FAULT, run, fault)
            return run.with_fault(Fault(at=now(), message=fault))
        await note_medium(self._definitions, run.name, drive, cdrom)
        self._found["finished"].append(run.name)
        self._tell(EventKind.MEDIUM_CHANGED, run, describe_medium(drive, cdrom))
        return run

    async def _settle(self, run: RunDocument) -> None:
        """Make the run of a VM that does not run say so."""
        at_rest = run.at_rest()
        ended = at_rest.changed(state=State.STOPPED, ended_boot_id=self._boot_id, ended_at=now())
        if run.intent is Intent.START:
            fault = "its start was interrupted and undone"
            await self._conclude(at_rest, "rolled_back", EventKind.ROLLED_BACK, fault)
        elif run.intent in (Intent.SHUTDOWN, Intent.STOP):
            await self._conclude(ended, "finished", EventKind.STOPPED, "")
        elif run.uuid in self._lost:
            crashed = ended.changed(state=State.CRASHED)
            await self._conclude(crashed, "ended", EventKind.CRASHED, self._lost[run.uuid])
        elif run.state is State.RUNNING:
            here = run.boot_id == self._boot_id
            fault = "ended while the service was away" if here else "ended with the host, which was restarted"
            await self._conclude(ended, "ended", EventKind.STOPPED, fault)

    async def _conclude(self, run: RunDocument, what: str, kind: EventKind, fault: str) -> None:
        if fault:
            run = run.with_fault(Fault(at=now(), message=fault))
        await self._runs.write(run)
        self._found[what].append(run.name)
        self._tell(kind, run, fault)

    def _tell(self, kind: EventKind, run: RunDocument, message: str) -> None:
        self._emit(VmEvent(kind=kind, name=run.name, uuid=run.uuid, message=message))

    def _sweep(self, vms: Path) -> None:
        """Remove memory files without a run folder, and what VMs that were deleted had kept."""
        if self._directories.runtime.is_dir():
            swept = remove_orphaned_memory(self._directories.runtime, vms)
            swept += remove_orphaned_logs(self._directories.runtime)
            self._found["removed"] += map(str, swept)
        for path in self._host.console_logs.glob("*.log"):
            if path.stem not in self._runs:
                remove_console_log(path)
                self._found["removed"].append(str(path))
        for path in self._host.lasting_folders.glob("*"):
            if path.name not in self._runs:
                remove_folder(path)
                self._found["removed"].append(str(path))


def _owner_lives(folder: Path) -> bool:
    left = load_description(folder)
    return left is not None and Path(f"/proc/{left.owner_pid}").exists()
