"""Snapshots of the VMs of this host: taken under a running guest, restored when it does not run.

``recover`` comes before VMs are adopted. It settles the files that a service left half done; a VM that stood
still for a snapshot goes on when it is adopted, for that intent was written down.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.machine_checks import check_start
from duovisor.controlling.snapshots.copying import run_copies
from duovisor.controlling.snapshots.errors import SnapshotRefusedError
from duovisor.controlling.snapshots.folder import SnapshotFolder, explaining, list_folders
from duovisor.controlling.snapshots.loading import SavedMachine
from duovisor.controlling.snapshots.restoring import (
    bring_disks_back,
    check_disks,
    check_files,
    check_processors,
    settle,
)
from duovisor.controlling.snapshots.taking import check_vm, take_snapshot
from duovisor.controlling.vms.documents import Intent
from duovisor.controlling.vms.records import EventKind
from duovisor.errors import DuovisorError
from duovisor.hardware.processors import read_processors
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.sizes import format_bytes
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.snapshots.documents import Snapshot, SnapshotView
    from duovisor.controlling.vms.active import ActiveVm
    from duovisor.controlling.vms.host_vms import HostVms
    from duovisor.controlling.vms.records import Progress, VmRecord
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.hardware.processors import Processors
    from duovisor.spec.vm import VirtualMachineSpec

    Tell = Callable[[EventKind, str, str, str], None]

DISKS_PERCENT, START_PERCENT = 10, 70
LOADED_TIMEOUT_S = 60.0  # a guest that was restored a moment ago


def read_host_processors() -> Processors:
    """Those of this host."""
    return read_processors(Path("/"))


class Snapshots:
    """Whoever calls sees to it that one thing at a time is done to a VM. Every method raises as they say."""

    def __init__(
        self,
        directories: Directories,
        host: HostVms,
        lend: Lend,
        tell: Tell,
        processors: Callable[[], Processors] = read_host_processors,
    ) -> None:
        self._root = directories.state / "snapshots"
        self._host = host
        self._lend = lend
        self._tell = tell
        self._processors = processors

    def _folder(self, uuid: str) -> SnapshotFolder:
        return SnapshotFolder(self._root, uuid)

    async def list_all(self, record: VmRecord) -> tuple[SnapshotView, ...]:
        """A VM's, oldest first. Raises ``SnapshotBrokenError``."""
        folder = self._folder(record.uuid)
        return await asyncio.to_thread(lambda: tuple(map(folder.view, folder.list_all())))

    async def get(self, record: VmRecord, name: str) -> SnapshotView:
        """One of them. Raises ``SnapshotNotFoundError`` or ``SnapshotBrokenError``."""
        folder = self._folder(record.uuid)
        return await asyncio.to_thread(lambda: folder.view(folder.get(name)))

    def require_none(self, record: VmRecord) -> None:
        """A VM is not forgotten before its snapshots are. Raises ``SnapshotRefusedError``."""
        names = self._folder(record.uuid).list_names()
        if names:
            raise SnapshotRefusedError(
                f"{record.name} has snapshots: {', '.join(names)}",
                remedy=f"duovisor vm snapshot delete {record.name} {' '.join(names)}",
            )

    async def take(self, vm: ActiveVm, name: str, progress: Progress) -> None:
        """Save a VM as it is now; it goes on whatever comes of it. Raises ``DuovisorError``."""
        machine = vm.machine
        machine.vmm.lifecycle.require({State.RUNNING, State.PAUSED}, "take a snapshot of")
        check_vm(machine.spec, machine.current.decision.kind)
        folder = self._folder(vm.uuid)
        folder.require_absent(name)
        if not await machine.current.paging.wait_loaded(LOADED_TIMEOUT_S):
            raise SnapshotRefusedError(
                f"{vm.name} was restored, and its memory is still being loaded",
                remedy="try again in a moment",
            )
        try:
            snapshot = await self._take(vm, folder, name, progress)
        except DuovisorError as error:
            await asyncio.shield(self._host.note_failure(vm, EventKind.SNAPSHOT_FAILED, str(error)))
            raise
        said = describe_taken(folder.view(snapshot))
        self._tell(EventKind.SNAPSHOT_TAKEN, vm.name, vm.uuid, f"{name}: {said}")
        progress(100, said)

    async def _take(self, vm: ActiveVm, folder: SnapshotFolder, name: str, progress: Progress) -> Snapshot:
        ran = vm.machine.vmm.state is State.RUNNING
        with folder.making(name) as half:
            if ran:
                await self._host.announce(vm, Intent.SNAPSHOT)
            try:
                snapshot = await take_snapshot(vm.machine, half, name, self._processors(), progress)
            finally:
                if ran and self._host.find(vm.uuid) is vm:
                    await asyncio.shield(self._host.announce(vm, Intent.NONE))
            await asyncio.to_thread(folder.finish, half, snapshot)
        return snapshot

    async def restore(
        self, record: VmRecord, name: str, capabilities: HostCapabilities, progress: Progress
    ) -> None:
        """Start a VM that does not run where a snapshot was taken. Raises ``DuovisorError``.

        Before its disks are touched all is checked that can be; they have the snapshot's content then,
        whatever becomes of the start.
        """
        folder = self._folder(record.uuid)
        snapshot = await asyncio.to_thread(folder.get, name)
        check_processors(snapshot, self._processors())
        saved = folder.path / name
        check_files(saved, snapshot)
        wanted = snapshot.spec.model_copy(update={"name": record.name})
        async with AsyncExitStack() as lent:
            spec = await lent.enter_async_context(self._lend(before := _without_kernel(wanted)))
            await asyncio.to_thread(check_disks, snapshot, spec)
            checked = await asyncio.to_thread(check_start, spec, capabilities)
            checked.open_disks.close()
            if checked.vmm.kind is not VmmKind.THIN:
                raise SnapshotRefusedError(
                    f"snapshot {name} is of the thin VMM, which cannot run {record.name} here: "
                    f"{checked.vmm.reason}"
                )
            await self._bring_disks_back(folder, snapshot, spec, progress)
            if before is not wanted:
                await lent.aclose()
                spec = await lent.enter_async_context(self._lend(wanted))
            progress(START_PERCENT, "loading memory and starting the processes")
            await self._host.start(record, spec, capabilities, SavedMachine(saved))
        self._tell(EventKind.SNAPSHOT_RESTORED, record.name, record.uuid, name)
        progress(100, f"runs on from {snapshot.created_at:%Y-%m-%d %H:%M:%S}")

    async def _bring_disks_back(
        self, folder: SnapshotFolder, snapshot: Snapshot, spec: VirtualMachineSpec, progress: Progress
    ) -> None:
        total = sum(disk.size_bytes for disk in snapshot.disks if disk.file is not None)

        def tell(done: int) -> None:
            share = (START_PERCENT - DISKS_PERCENT) * min(done, total) // max(total, 1)
            progress(DISKS_PERCENT + share, "bringing the disks back")

        with explaining(folder.path):
            await run_copies(lambda follow: bring_disks_back(folder.path, snapshot, spec, follow), tell)

    async def delete(self, record: VmRecord, name: str) -> None:
        """Remove a snapshot. Raises ``SnapshotNotFoundError`` or ``SnapshotBrokenError``."""
        folder = self._folder(record.uuid)
        with explaining(folder.path):
            await asyncio.to_thread(folder.remove, name)
        self._tell(EventKind.SNAPSHOT_DELETED, record.name, record.uuid, name)

    async def recover(self) -> tuple[list[str], list[str]]:
        """Settle what was left half done: paths that were removed, and problems."""
        return await asyncio.to_thread(self._recover)

    def _recover(self) -> tuple[list[str], list[str]]:
        removed: list[str] = []
        problems: list[str] = []
        for folder in list_folders(self._root):
            try:
                settle(folder.path)
                removed += folder.sweep()
            except (DuovisorError, OSError) as error:
                problems.append(f"snapshots in {folder.path}: {error}")
        return removed, problems


def describe_taken(view: SnapshotView) -> str:
    """What it took: ``paused 210.3 ms, 182 MiB of memory, 1 disk, 1.2 GiB on the host``; pure."""
    disks = f"{len(view.disks)} disk{'s' * (len(view.disks) != 1)}"
    return (
        f"paused {view.pause_ms:.1f} ms, {format_bytes(view.memory_bytes)} of memory, {disks}, "
        f"{format_bytes(view.host_bytes)} on the host"
    )


def _without_kernel(spec: VirtualMachineSpec) -> VirtualMachineSpec:
    """The same without a kernel that is on one of its disks, which is not back yet."""
    if spec.kernel is None or spec.kernel.disk is None:
        return spec
    return spec.model_copy(update={"kernel": None})
