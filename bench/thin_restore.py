"""How long a saved guest of the thin VMM takes to answer again: state and memory from files, new drivers.

A VM is booted, saved and ended; then the clock runs from the request to restore it until its guest, which
knows nothing of all this, has done a command.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.controlling.incarnation import Incarnation
from duovisor.controlling.machine import Machine
from duovisor.controlling.machine_checks import check_start
from duovisor.controlling.machine_place import make_place
from duovisor.controlling.memory_folder import open_memory_folder
from duovisor.hardware.capabilities import read_capabilities
from duovisor.hypervisor.qemu.console import port_socket
from duovisor.hypervisor.thin_plan import STATE
from duovisor.hypervisor.vmm import Vmm

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.controlling.machine_place import Place
    from duovisor.controlling.supervision.factories import Factories
    from duovisor.directories import Directories
    from duovisor.spec.vm import VirtualMachineSpec

TIMEOUT_S = 300.0


class RestoredVmm(Vmm):
    """A VMM that inherits a saved state; ``state`` is its descriptor."""

    state_descriptor = -1

    def launch(self, console_log: Path, **options: Any) -> None:
        """Start the process with one descriptor more."""
        super().launch(console_log, **{**options, "taps": {STATE: self.state_descriptor}})


async def save(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories, state: Path, memory: Path
) -> None:
    """Boot a VM, write its state and its memory to files, and end it."""
    machine = await Machine.start(
        spec, read_capabilities(directories.cache), directories, factories, die_with_owner=True
    )
    try:
        async with connect_probe(machine.port_path(PORT_NAME)) as guest:
            await guest.wait_booted(TIMEOUT_S)
        await machine.vmm.pause()
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # no part of a VM's life yet, so of no method of Vmm's
            await machine.vmm._qmp.getfd(STATE, descriptor)
            await machine.vmm._qmp.execute("x-duovisor-save", fdname=STATE)
        finally:
            os.close(descriptor)
        memory.hardlink_to(machine.place.memory_file)
    finally:
        await machine.clean_up()


async def time_restore(spec: VirtualMachineSpec, directories: Directories, factories: Factories) -> float:
    """Seconds from the request to restore until the guest has done a command."""
    with ExitStack() as stack:
        folder = stack.enter_context(open_memory_folder(directories.runtime))  # outlasts the first VM
        state, memory = directories.runtime / "bench-thin.state", folder / "bench-thin.memory"
        for path in (state, memory):
            stack.callback(path.unlink, missing_ok=True)
        await save(spec, directories, factories, state, memory)
        place = await make_place(spec.name, directories)
        stack.callback(place.remove)
        memory.rename(place.memory_file)
        with state.open("rb") as saved:
            return await restore(spec, directories, factories, place, saved.fileno())


async def restore(
    spec: VirtualMachineSpec, directories: Directories, factories: Factories, place: Place, state: int
) -> float:
    """Start a VMM and drivers on what was saved; seconds until its guest has answered."""
    started = time.monotonic()
    checked = check_start(spec, read_capabilities(directories.cache))
    run_dir = place.open_incarnation(1)
    plan = checked.build_plan(run_dir, place)
    plan = replace(plan, argv=(*plan.argv, "--descriptor", f"{STATE}=@{STATE}@"))
    vmm = RestoredVmm(plan, run_dir, checked.tools)
    vmm.state_descriptor = state
    incarnation = Incarnation(
        1, spec, checked.vmm, vmm, checked.open_disks, factories, lambda *_: None, lambda: None
    )
    place.give_files(spec, vmm.owner)
    try:
        incarnation.prepare()
        await incarnation.begin(checked, place.run_dir / "console.log", die_with_owner=True)
        await incarnation.run()
        async with connect_probe(run_dir / f"{port_socket(spec.ports.index(PORT_NAME))}.sock") as guest:
            await guest.run("true", TIMEOUT_S)
            return time.monotonic() - started
    finally:
        await incarnation.end()
