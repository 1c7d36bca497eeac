"""Takes a snapshot of a running machine: it stands still until memory and disks are copied.

Disks are copied as their drivers left them when the machine stopped: they had finished what was under way,
and what they wrote is in their files. So the copies fit the memory, whatever the guest had cached.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.snapshots.copying import copy_content, count_allocated, run_copies
from duovisor.controlling.snapshots.documents import SavedDisk, Snapshot
from duovisor.controlling.snapshots.errors import SnapshotRefusedError
from duovisor.controlling.snapshots.folder import MEMORY, STATE
from duovisor.controlling.vms.records import now
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.qemu.disks import disk_socket
from duovisor.spec.vm import DiskFormat, VmmKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.snapshots.copying import Follow
    from duovisor.controlling.vms.records import Progress
    from duovisor.hardware.processors import Processors
    from duovisor.spec.vm import DiskSpec, VirtualMachineSpec

COPY_PERCENT, SYNC_PERCENT = 10, 80


class Source(NamedTuple):
    """A disk to be copied: its name, and a descriptor of its file."""

    name: str
    descriptor: int


def check_vm(spec: VirtualMachineSpec, program: VmmKind) -> None:
    """Refuse what could not be saved whole; pure. Raises ``SnapshotRefusedError``."""
    if program is not VmmKind.THIN:
        raise SnapshotRefusedError(
            f"{spec.name} runs on the QEMU VMM, whose VMs have no snapshots yet",
            remedy="a microkernelized VM with a direct-kernel guest on KVM can have vmm: thin",
        )
    for index, disk in enumerate(spec.disks):
        if not disk.read_only and (reason := find_obstacle(disk)):
            raise SnapshotRefusedError(f"{disk_socket(index)} of {spec.name} {reason}")


def find_obstacle(disk: DiskSpec) -> str | None:
    """Why what was written to a disk cannot be copied with the memory; pure."""
    if disk.driver_file is not None:
        return "has a driver of your own: what that keeps beside the file cannot be known"
    if disk.format is not DiskFormat.RAW:
        return f"is a {disk.format} image, part of which is in its format process: only raw ones can be saved"
    return None


async def take_snapshot(
    machine: Machine, half: Path, name: str, processors: Processors, progress: Progress
) -> Snapshot:
    """Fill the folder ``half``; the machine runs on, if it ran. Raises ``DuovisorError`` or ``OSError``."""
    spec = machine.spec
    check_vm(spec, machine.current.decision.kind)
    sources = find_sources(machine)
    memory = os.open(machine.place.memory_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        total = count_allocated(memory) + sum(count_allocated(each.descriptor) for each in sources)
        written: dict[str, int] = {}

        def tell(done: int) -> None:
            share = (SYNC_PERCENT - COPY_PERCENT) * min(done, total) // max(total, 1)
            progress(COPY_PERCENT + share, "copying memory and disks")

        async with _standing_still(machine) as pause:
            await _write_state(machine, half / STATE)
            copies = (Source(MEMORY, memory), *sources)
            written = await run_copies(partial(_copy_all, copies, half), tell)
    finally:
        os.close(memory)
        for source in sources:
            os.close(source.descriptor)
    progress(SYNC_PERCENT, "writing it to the disk")
    return Snapshot(
        name=name,
        created_at=now(),
        spec=spec.without_places(),
        vendor=processors.vendor,
        processor=processors.model,
        flags=processors.flags,
        disks=tuple(_describe(index, disk, half) for index, disk in enumerate(spec.disks)),
        memory_bytes=written[MEMORY],
        pause_ms=round(pause[0], 1),
    )


def find_sources(machine: Machine) -> list[Source]:
    """The disks that a guest writes to, each open once more for reading. Raises ``SnapshotRefusedError``."""
    found: list[Source] = []
    for index, disk in enumerate(machine.spec.disks):
        if disk.read_only:
            continue
        name = disk_socket(index)
        image = machine.devices[name].plan.descriptors["image"]
        # not the driver's own descriptor, which may be for O_DIRECT; nor the path, which may lead elsewhere
        descriptor = os.open(f"/proc/self/fd/{image}", os.O_RDONLY | os.O_CLOEXEC)
        found.append(Source(name, descriptor))
        if not os.path.isfile(f"/proc/self/fd/{descriptor}"):
            for source in found:
                os.close(source.descriptor)
            raise SnapshotRefusedError(
                f"{name} of {machine.name} is a block device; only files can be saved",
                remedy="use a volume of a pool that is a folder",
            )
    return found


@contextlib.asynccontextmanager
async def _standing_still(machine: Machine) -> AsyncIterator[list[float]]:
    """Pause it meanwhile, if it runs; what is yielded holds the pause's length (ms) afterwards."""
    took: list[float] = []
    was_running = machine.vmm.state is State.RUNNING
    began = time.monotonic()
    try:
        if was_running:
            await machine.vmm.pause()
        yield took
    finally:
        if was_running:
            with contextlib.suppress(WrongStateError):  # it has ended
                await asyncio.shield(machine.vmm.resume())
        took.append((time.monotonic() - began) * 1000 if was_running else 0.0)


async def _write_state(machine: Machine, path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await machine.vmm.write_state(descriptor)
    finally:
        os.close(descriptor)


def _copy_all(sources: tuple[Source, ...], half: Path, follow: Follow) -> dict[str, int]:
    """Copy each to the file of its name; how many bytes each takes."""
    sizes = {}
    for source in sources:
        path = half / source.name
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            copy_content(source.descriptor, target, follow)
        finally:
            os.close(target)
        sizes[source.name] = count_allocated(source.descriptor)
    return sizes


def _describe(index: int, disk: DiskSpec, half: Path) -> SavedDisk:
    name = disk_socket(index)
    if disk.read_only:
        found = os.stat(disk.path) if disk.path else None
        return SavedDisk(
            name=name,
            file=None,
            size_bytes=found.st_size if found else 0,
            changed_ns=found.st_mtime_ns if found else 0,
        )
    return SavedDisk(name=name, file=name, size_bytes=(half / name).stat().st_size)
