"""The VM manager: every VM of this host by name, what is wanted of it, what it does, and doing it.

One action at a time on each VM: a second one is refused at once. What touches the host is announced in the
store before and settled after, so that ``recover`` can finish or undo it. VMs outlive the manager.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from duovisor.controlling.anatomy import read_anatomy
from duovisor.controlling.console_log import read_console_log, remove_console_log
from duovisor.controlling.run_folder import remove_folder
from duovisor.controlling.vms.actions import Given
from duovisor.controlling.vms.autostart import run_autostart
from duovisor.controlling.vms.definitions import check_revision
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.errors import (
    ShutdownTimeoutError,
    VmChangeError,
)
from duovisor.controlling.vms.memory_actions import MemoryActions
from duovisor.controlling.vms.moves import Moves
from duovisor.controlling.vms.records import (
    EventKind,
    Page,
    VmEvent,
    VmView,
    ignore_progress,
)
from duovisor.controlling.vms.recovery import Recovery
from duovisor.controlling.vms.snapshots import Snapshots
from duovisor.controlling.vms.volumes import check_definition, find_disk, grow_disk, lend_none
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.anatomy import Anatomy
    from duovisor.controlling.snapshots.documents import SnapshotView
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.supervision.records import Replacement
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.records import Autostart, MoveResult, Progress, RecoveryReport, VmRecord
    from duovisor.controlling.vms.volumes import Grow, Lend
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import Design, VirtualMachineSpec

SHUTDOWN_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
SHUTDOWN = "shutdown"
STARTS_PER_CPU = 4  # a start mostly waits for its VMM


class VmManager(MemoryActions):
    """Manages the VMs of one host; one per state folder, whose store it is given.

    ``emit`` is told of everything that happens to a VM; ``lend`` finds the volumes of one that starts, and
    may raise what it likes; ``capabilities`` reads what the host can (it may
    block for a second). Every method raises ``DuovisorError``; a name may lead to ``VmNotFoundError``, an
    action to ``BusyError`` or ``WrongStateError``.
    """

    def __init__(
        self,
        store: Store,
        directories: Directories,
        emit: Callable[[VmEvent], None],
        lend: Lend = lend_none,
        *,
        capabilities: Callable[[], HostCapabilities] | None = None,
    ) -> None:
        capabilities = capabilities or (lambda: read_capabilities(directories.cache))
        super().__init__(Given(store, directories, emit, lend, capabilities))
        self._moves = Moves(self._definitions, self._host, self._tell)
        self._snapshots = Snapshots(directories, self._host, lend, self._tell)
        self._starts = asyncio.Semaphore(STARTS_PER_CPU * (os.cpu_count() or 1))

    async def open(self) -> None:
        """Read what was stored; nothing on the host is touched before ``recover``."""
        self._host.console_logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._runs.load()

    async def recover(self) -> RecoveryReport:
        """Adopt the VMs that run, finish or undo what was interrupted, remove what belongs to no VM."""
        removed, problems = await self._snapshots.recover()
        report = await Recovery(
            self._definitions, self._runs, self._host, self._directories, self._boot_id, self._emit
        ).run()
        self._guests.look_at_adopted(self._host.active)
        return report.model_copy(
            update={"removed": (*report.removed, *removed), "problems": (*report.problems, *problems)}
        )

    async def start_autostart_vms(self) -> None:
        """Start the VMs that start with the host, once in each boot."""
        await run_autostart(self._store, self._boot_id, self._definitions.scan(), self._start_with_host)

    async def _start_with_host(self, record: VmRecord) -> None:
        started_before = self._runs.of(record.uuid, record.name).boot_id == self._boot_id
        if not started_before:
            await self.start(record.name)

    async def close(self) -> None:
        """Let go of all VMs; they run on."""
        await self._guests.close()
        await self._host.detach_all()

    async def list(self, limit: int = 100, after: str | None = None) -> Page[VmView]:
        """VMs in the order of their names."""
        page = await self._definitions.list(limit, after)
        return Page(items=tuple(map(self._view, page.items)), after=page.after)

    async def get(self, name: str) -> VmView:
        """A VM by its name."""
        return self._view(await self._definitions.get(name))

    async def create(
        self, spec: VirtualMachineSpec, autostart: Autostart, *, uuid: str | None = None
    ) -> VmView:
        """Define a VM, by default with a new ``uuid``. Raises ``VmNameInUseError``."""
        check_definition(spec)
        record = await self._definitions.create(spec, autostart, uuid=uuid)
        self._tell(EventKind.CREATED, record.name, record.uuid)
        return self._view(record)

    async def update(
        self, name: str, spec: VirtualMachineSpec, autostart: Autostart, if_revision: int | None = None
    ) -> VmView:
        """Change a definition; a running VM takes it up at its next start.

        Raises ``RevisionConflictError`` or ``VmChangeError``.
        """
        if spec.name != name:
            raise VmChangeError(
                f"the specification names {spec.name!r}, not {name!r}", remedy="rename the VM"
            )
        check_definition(spec)
        with self._exclusive(name, "update"):
            seen = await self._definitions.get(name)
            record = await self._definitions.update(seen, spec, autostart, if_revision)
        self._tell(EventKind.UPDATED, name, record.uuid)
        return self._view(record)

    async def rename(self, name: str, new: str, if_revision: int | None = None) -> VmView:
        """Rename a VM that does not run. Raises ``VmNameInUseError`` or ``RevisionConflictError``."""
        with self._exclusive(name, "rename"), self._exclusive(new, "rename"):
            seen = await self._definitions.get(name)
            check_revision(seen, if_revision)
            self._require_resting(seen, "rename")
            record = await self._definitions.rename(seen, new, if_revision)
            if record.uuid in self._runs:
                await self._runs.write(self._runs.of(record.uuid, new).changed(name=new))
        self._tell(EventKind.RENAMED, new, record.uuid, f"it was called {name}")
        return self._view(record)

    async def delete(self, name: str, if_revision: int | None = None) -> None:
        """Forget a VM that does not run; its disks stay. Raises ``RevisionConflictError``."""
        with self._exclusive(name, "delete"):
            seen = await self._definitions.get(name)
            check_revision(seen, if_revision)
            self._require_resting(seen, "delete")
            self._snapshots.require_none(seen)
            await self._definitions.delete(seen, if_revision)
            self._runs.forget(seen.uuid)
            await asyncio.to_thread(remove_console_log, self._host.console_log(seen.uuid))
            await asyncio.to_thread(remove_folder, self._host.lasting(seen.uuid))
        self._tell(EventKind.DELETED, name, seen.uuid)

    async def start(self, name: str, progress: Progress = ignore_progress) -> None:
        """Start a VM. Raises what ``Machine.start`` raises, with nothing left on the host."""
        with self._exclusive(name, "start"):
            record = await self._definitions.get(name)
            self._require_resting(record, "start")
            progress(0, "waiting for other starts")
            async with self._starts:
                progress(10, "looking at the host")
                capabilities = await asyncio.to_thread(self._capabilities)
                progress(30, "starting the processes")
                with self._reserve(record.spec, capabilities.cpus):
                    async with self._lend(record.spec) as spec:
                        await self._host.start(record, spec, capabilities)
        progress(100, "running")

    async def shutdown(
        self, name: str, timeout_s: float = SHUTDOWN_TIMEOUT_S, progress: Progress = ignore_progress
    ) -> None:
        """Ask the guest, and wait. Raises ``ShutdownTimeoutError``; the VM runs on then."""
        with self._exclusive(name, SHUTDOWN):
            vm = await self._require_active(name, SHUTDOWN)
            vm.machine.vmm.lifecycle.require({State.RUNNING}, "shut down")
            await self._host.announce(vm, Intent.SHUTDOWN)
            try:
                await self._guests.shut_down(vm, timeout_s, progress)
            except TimeoutError:
                raise ShutdownTimeoutError(
                    f"the guest of {name!r} did not shut down within {timeout_s:g} s; it runs on",
                    remedy=f"duovisor vm stop {name} pulls the plug",
                ) from None
            finally:
                if self._host.find(vm.uuid) is vm:
                    await asyncio.shield(self._host.announce(vm, Intent.NONE))
        progress(100, "stopped")

    async def stop(self, name: str) -> None:
        """Pull the plug, also while a shutdown waits for the guest."""
        if self._actions.get(name) == SHUTDOWN:
            await self._pull_plug(await self._require_active(name, "stop"))
            return
        with self._exclusive(name, "stop"):
            await self._pull_plug(await self._require_active(name, "stop"))

    async def _pull_plug(self, vm: ActiveVm) -> None:
        await self._host.announce(vm, Intent.STOP)
        await vm.machine.vmm.kill()
        await vm.wait_gone(timeout_s=STOP_TIMEOUT_S)

    async def pause(self, name: str) -> None:
        """Stop a VM's processors."""
        with self._exclusive(name, "pause"):
            vm = await self._require_active(name, "pause")
            await vm.machine.vmm.pause()
        self._tell(EventKind.PAUSED, name, vm.uuid)

    async def resume(self, name: str) -> None:
        """Let a paused VM go on."""
        with self._exclusive(name, "resume"):
            vm = await self._require_active(name, "resume")
            revived = await vm.revive_devices()  # the guest would only meet again what it was paused for
            if not revived or vm.machine.vmm.state is not State.RUNNING:
                await vm.machine.vmm.resume()
        self._tell(EventKind.RESUMED, name, vm.uuid)
        self._guests.set_time(vm)

    async def reset(self, name: str) -> None:
        """Press a VM's reset button."""
        with self._exclusive(name, "reset"):
            vm = await self._require_active(name, "reset")
            await vm.machine.vmm.reset()
        self._tell(EventKind.RESET, name, vm.uuid)

    async def switch(
        self, name: str, design: Design, progress: Progress = ignore_progress
    ) -> MoveResult | None:
        """Give a VM the other design: if it runs, under its guest; else at its next start, which is None.

        Raises ``MoveRefusedError``, ``WrongStateError``, ``MoveFailedError`` or what a start may raise; it
        runs on as it was then.
        """
        with self._exclusive(name, "switch"):
            record = await self._definitions.get(name)
            vm = self._host.find(record.uuid)
            if vm is None:
                await self._moves.switch_at_rest(record, design, progress)
                return None
            capabilities = await asyncio.to_thread(self._capabilities)
            return await self._moves.switch(vm, record, design, capabilities, progress)

    async def update_vmm(self, name: str, progress: Progress = ignore_progress) -> MoveResult:
        """Replace a running VM's VMM by a new process of the installed QEMU. Raises as ``switch``."""
        action = "update the VMM of"
        with self._exclusive(name, action):
            vm = await self._require_active(name, action)
            capabilities = await asyncio.to_thread(self._capabilities)
            return await self._moves.update(vm, capabilities, progress)

    async def list_snapshots(self, name: str) -> tuple[SnapshotView, ...]:
        """A VM's snapshots, oldest first."""
        return await self._snapshots.list_all(await self._definitions.get(name))

    async def get_snapshot(self, name: str, snapshot: str) -> SnapshotView:
        """One of a VM's snapshots. Raises ``SnapshotNotFoundError``."""
        return await self._snapshots.get(await self._definitions.get(name), snapshot)

    async def create_snapshot(self, name: str, snapshot: str, progress: Progress = ignore_progress) -> None:
        """Save a running VM.

        Raises ``SnapshotExistsError``, ``SnapshotRefusedError``, ``SnapshotFullError`` or
        ``WrongStateError``.
        """
        action = "take a snapshot of"
        with self._exclusive(name, action):
            await self._snapshots.take(await self._require_active(name, action), snapshot, progress)

    async def restore_snapshot(self, name: str, snapshot: str, progress: Progress = ignore_progress) -> None:
        """Run a VM that does not run on from a snapshot.

        Raises ``SnapshotNotFoundError``, ``SnapshotRefusedError``, ``SnapshotBrokenError`` or as ``start``.
        """
        with self._exclusive(name, "restore"):
            record = await self._definitions.get(name)
            self._require_resting(record, "restore")
            capabilities = await asyncio.to_thread(self._capabilities)
            await self._snapshots.restore(record, snapshot, capabilities, progress)

    async def delete_snapshot(self, name: str, snapshot: str) -> None:
        """Remove a snapshot; the VM may run. Raises ``SnapshotNotFoundError``."""
        with self._exclusive(name, "delete a snapshot of"):
            await self._snapshots.delete(await self._definitions.get(name), snapshot)

    async def resize_volume(self, volume: str, grow_first: Grow) -> None:
        """Make a volume larger under the running VM that writes to it. Raises ``WrongStateError``."""
        vm, disk = find_disk(self._host.active, volume)
        with self._exclusive(vm.name, "resize a disk of"):
            await grow_disk(vm, disk, grow_first)

    async def replace_driver(self, name: str, device: str, *, latest: bool) -> Replacement:
        """Replace the driver of a device by a new process, ``latest``: with the code that is on disk now.

        Raises ``DeviceNotFoundError`` or ``PartitionError``; the driver goes on then.
        """
        action = "update the driver of" if latest else "restart the driver of"
        with self._exclusive(name, action):
            vm = await self._require_active(name, action)
            return await vm.find_device(device).replace(latest=latest)

    async def read_counters(self, name: str) -> dict[str, dict[str, int]]:
        """What the drivers of a VM have counted, by device; empty when it does not run."""
        vm = self._host.find_by_name(name)
        devices = vm.machine.devices if vm is not None else {}
        return {device: await supervisor.read_counters() for device, supervisor in tuple(devices.items())}

    async def read_console_log(self, name: str, max_bytes: int) -> bytes:
        """The end of what the guest printed, in this run and those before."""
        record = await self._definitions.get(name)
        return await asyncio.to_thread(read_console_log, self._host.console_log(record.uuid), max_bytes)

    async def anatomy(self, name: str) -> Anatomy:
        """The layers of a running VM, its processes and what of the host they hold."""
        vm = await self._require_active(name, "look into")
        return await asyncio.to_thread(read_anatomy, vm.machine.description)
