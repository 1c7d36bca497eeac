"""How long a snapshot of a guest on the thin VMM takes until that answers again: disks, memory, new drivers.

A VM is booted, saved as ``duovisor vm snapshot create`` does it, and ended; then the clock runs from the
request to restore it until its guest, which knows nothing of all this, has done a command.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.machine import Machine
from duovisor.controlling.snapshots.folder import SnapshotFolder
from duovisor.controlling.snapshots.loading import SavedMachine
from duovisor.controlling.snapshots.restoring import bring_disks_back, check_files, check_processors
from duovisor.controlling.snapshots.taking import take_snapshot
from duovisor.controlling.vms.records import ignore_progress
from duovisor.controlling.vms.snapshots import read_host_processors
from duovisor.hardware.capabilities import read_capabilities

if TYPE_CHECKING:
    from duovisor.controlling.snapshots.documents import Snapshot
    from duovisor.controlling.supervision.factories import Factories
    from duovisor.directories import Directories
    from duovisor.spec.vm import VirtualMachineSpec

TIMEOUT_S = 300.0
NAME = "bench"


async def save(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories, folder: SnapshotFolder
) -> Snapshot:
    """Boot a VM, take a snapshot of it, and end it."""
    machine = await Machine.start(
        spec, read_capabilities(directories.cache), directories, factories, die_with_owner=True
    )
    try:
        async with connect_probe(machine.port_path(PORT_NAME)) as guest:
            await guest.wait_booted(TIMEOUT_S)
        with folder.making(NAME) as half:
            snapshot = await take_snapshot(machine, half, NAME, read_host_processors(), ignore_progress)
            folder.finish(half, snapshot)
    finally:
        await machine.clean_up()
    return snapshot


async def time_restore(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories
) -> dict[str, float]:
    """Seconds from the request to restore until the guest has done a command, and what was restored."""
    folder = SnapshotFolder(directories.state / "bench-snapshots", NAME)
    snapshot = await save(spec, directories, factories, folder)
    try:
        started = time.monotonic()
        check_processors(snapshot, read_host_processors())
        check_files(folder.path / NAME, snapshot)
        bring_disks_back(folder.path, snapshot, spec, lambda count: None)
        machine = await Machine.start(
            spec,
            read_capabilities(directories.cache),
            directories,
            factories,
            die_with_owner=True,
            saved=SavedMachine(folder.path / NAME),
        )
        running = time.monotonic()
        try:
            async with connect_probe(machine.port_path(PORT_NAME)) as guest:
                await guest.run("true", TIMEOUT_S)
            answered = time.monotonic()
        finally:
            await machine.clean_up()
    finally:
        folder.remove(NAME)
    return {
        "restore_s": answered - started,
        "restore_to_running_s": running - started,
        "snapshot_pause_ms": snapshot.pause_ms,
        "snapshot_memory_mib": snapshot.memory_bytes / (1 << 20),
    }
