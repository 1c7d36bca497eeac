"""Kills a manager with -9 at step after step of a VM's life, and looks at what the next one makes of it.

A program: ``python -m tests.unit.vms.killed_manager FOLDER steps FIRST EVERY``. After each kill it recovers,
compares host and store, ends the VM, and compares again (``tests.unit.killing``).
With ``moments COUNT SECONDS`` in place of the steps, managers are killed at random moments.
It prints one JSON object: how many were ``killed``, ``kinds`` of recovery seen, ``violations``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.contract.driver_partition.waiting import find_waiting
from tests.unit.killing import NEVER, KillTrials, Steps
from tests.unit.vms.fake_host import (
    build_capabilities,
    build_directories,
    build_vm,
    find_files,
    find_processes,
)

from duovisor.controlling.description import load_description
from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.controlling.plugging.changes import name_devices
from duovisor.controlling.vms.documents import RUN_KIND, RUNS
from duovisor.controlling.vms.errors import ShutdownTimeoutError
from duovisor.controlling.vms.manager import VmManager
from duovisor.controlling.vms.records import Autostart, VmStatus
from duovisor.hypervisor.errors import UnplugTimeoutError
from duovisor.hypervisor.lifecycle import State
from duovisor.process_identity import read_children
from duovisor.spec.vm import DiskSpec, NicSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from duovisor.controlling.store.interface import Store
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

NAME = "vm"
SETTLE_STEPS, SETTLE_STEP_S = 200, 0.025


def find_own_factories() -> set[int]:
    """The processes that this one forks driver partitions from, and those partitions that wait."""
    found = set()
    for pid in read_children(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"drivers.factory" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found |= {pid, *find_waiting(pid)}
    return found


class Trials(KillTrials):
    """One host on which managers are killed."""

    def __init__(
        self,
        root: Path,
        capabilities: HostCapabilities,
        spec: VirtualMachineSpec,
        *,
        shutdown_timeout_s: float = 30.0,
    ) -> None:
        self.shutdown_timeout_s = shutdown_timeout_s
        self.root = root
        self.directories: Directories = build_directories(root)
        self.capabilities = capabilities
        self.spec = spec
        super().__init__(root, self.directories.state)
        self.disk = root / "plugged.raw"
        self.disk.write_bytes(bytes(1 << 20))

    def build_manager(self, store: Store) -> VmManager:
        return VmManager(store, self.directories, lambda event: None, capabilities=lambda: self.capabilities)

    async def live(self, steps: Steps) -> None:
        """A VM's life, with a note of each thing that was acknowledged."""
        async with self.open_store(steps) as store:
            manager = self.build_manager(store)
            await manager.open()
            await manager.recover()
            await manager.create(self.spec, Autostart())
            await manager.start(NAME)
            self.acknowledged.write_text(str((await manager.get(NAME)).status.pid))
            await manager.pause(NAME)
            await manager.resume(NAME)
            self.acknowledged.write_text("")
            with suppress(MoveRefusedError):  # a VM on user networking stays where it is
                await manager.update_vmm(NAME)
            self.acknowledged.write_text(str((await manager.get(NAME)).status.pid))
            await manager.attach(NAME, NicSpec(network="user"))
            await manager.attach(NAME, DiskSpec(path=str(self.disk), serial="plugged"))
            with suppress(UnplugTimeoutError):  # of a guest without a system
                plugged = self.find_plugged((await manager.get(NAME)).record.spec)
                await manager.detach(NAME, plugged, self.shutdown_timeout_s)
            await manager.reset(NAME)
            self.acknowledged.write_text("")
            try:
                await manager.shutdown(NAME, self.shutdown_timeout_s)
            except ShutdownTimeoutError:
                await manager.stop(NAME)
            await manager.start(NAME)
            self.acknowledged.write_text(str((await manager.get(NAME)).status.pid))
            await manager.reset(NAME)
            self.acknowledged.write_text("")
            await manager.stop(NAME)
            await manager.delete(NAME)
            await manager.close()

    def find_plugged(self, spec: VirtualMachineSpec) -> str:
        """The name of the disk that was plugged in."""
        return next(f"disk{slot}" for slot, disk in spec.numbered_disks() if disk.serial == "plugged")

    async def recover(self, step: int) -> None:
        """What the next manager makes of it."""
        async with self.open_store() as store:
            manager = self.build_manager(store)
            await manager.open()
            report = await manager.recover()
            for what, names in report.model_dump().items():
                self.kinds[what] += bool(names)
            self.violations += [f"step {step}: {line}" for line in report.problems]
            async for line in self.compare(manager, store):
                self.violations.append(f"step {step}: {line}")
            for vm in (await manager.list()).items:
                if vm.status.state is State.RUNNING:
                    await manager.stop(NAME)
                await manager.delete(NAME)
            async for line in self.compare(manager, store):
                self.violations.append(f"step {step}, at the end: {line}")
            if left := list((self.directories.state / "consoles").iterdir()):
                self.violations.append(f"step {step}: {left} is left")
            await manager.close()

    async def compare(self, manager: VmManager, store: Store) -> AsyncIterator[str]:
        """Everything in which host and store differ."""
        running = [vm.status for vm in (await manager.list()).items if vm.status.state is not State.STOPPED]
        running = [status for status in running if status.state is not State.DEFINED]
        acknowledged = self.acknowledged.read_text()
        if acknowledged and acknowledged not in {str(status.pid) for status in running}:
            yield f"the VM with pid {acknowledged} ran and does not: {running}"
        self.acknowledged.write_text("")
        for _ in range(SETTLE_STEPS):  # a spare may be just coming or going
            described = load_description(self.directories.vms / NAME)
            pids = {
                pid
                for each in (described.processes if described else ())
                for pid in (each.pid, each.watched_pid)
            }
            if (processes := find_processes(self.root) - find_own_factories()) == pids:
                break
            await asyncio.sleep(SETTLE_STEP_S)
        else:
            yield f"processes {processes}, not {pids}"
        files = {f"run {NAME}", f"memory {NAME}"} if running else set()
        if (found := find_files(self.directories) - {"mount"}) != files:
            yield f"files {found}, not {files}"
        if "mount" in find_files(self.directories) and not running:
            yield "the memory folder is mounted still"
        for entry in (await store.range(RUNS)).entries:
            run = RUN_KIND.decode(entry.value, key=entry.key)
            if run.intent != "none" or (run.state is State.RUNNING) != bool(running):
                yield f"the store says {run}"
        for vm in (await manager.list()).items:
            has = name_devices(described.spec) if described is not None else {}
            # fewer it may have: a guest that is reset lets go of what it kept before
            if extra := has.keys() - name_devices(vm.record.spec).keys():
                yield f"it runs with {extra}, which nobody wants"
        for status in running:
            async for line in self.check_running(manager, status):
                yield line

    async def check_running(self, manager: VmManager, status: VmStatus) -> AsyncIterator[str]:
        if status.state is State.PAUSED:
            await manager.resume(NAME)
        await manager.pause(NAME)
        await manager.resume(NAME)
        if (await manager.get(NAME)).status.state is not State.RUNNING:
            yield "it does not run after a pause"


def run_trials(trials: Trials, arguments: Sequence[str]) -> dict[str, Any]:
    """``steps FIRST EVERY``, until a life is over before its step comes, or ``moments COUNT SECONDS``."""
    if arguments[0] == "steps":
        return trials.run(int(arguments[1]), int(arguments[2]))
    killed = 0
    for number in range(int(arguments[1])):
        killed += trials.kill_at(NEVER, after_s=random.uniform(0.001, float(arguments[2])))
        asyncio.run(trials.recover(number))
    return trials.describe(killed)


def main() -> None:
    """Run trials with the fake QEMU."""
    root = Path(sys.argv[1])
    print(json.dumps(run_trials(Trials(root, build_capabilities(root), build_vm(NAME)), sys.argv[2:])))


if __name__ == "__main__":
    main()
