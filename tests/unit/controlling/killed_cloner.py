"""Kills who makes VMs on clones with -9 at step after step, and looks at what the next one makes of it.

A program: ``python -m tests.unit.controlling.killed_cloner FOLDER FIRST EVERY``; steps are those of
``tests.unit.storage.killed_storage``, and so is what it prints.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.controlling.test_cloning import BASE, Hosts
from tests.unit.storage.conftest import MIB
from tests.unit.vms.killed_manager import Steps, count_store_steps

from duovisor.controlling.cloning import plan_copy
from duovisor.controlling.storage.records import VolumeFormat
from duovisor.controlling.store.errors import StoreInUseError
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.vms.records import Autostart, ignore_progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRIES = 200  # a program that was just starting has the dead one's locks until it has begun


class Trials:
    """One host on which VMs are made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.acknowledged = root / "acknowledged"
        self.undone = 0
        self.violations: list[str] = []

    @asynccontextmanager
    async def open(self, steps: Steps | None = None) -> AsyncIterator[Hosts]:
        async with open_sqlite_store(self.root / "state/store.sqlite") as store:
            if steps is not None:
                count_store_steps(store, steps.count)
            host = Hosts(self.root, store)
            await host.storage.recover()
            self.undone += len(await host.cloner.recover())
            yield host

    async def prepare(self) -> None:
        (self.root / "state").mkdir(parents=True)
        async with self.open() as host:
            await host.storage.create(BASE, 2 * MIB, VolumeFormat.QCOW2)

    async def live(self, steps: Steps) -> None:
        """A VM on a larger linked clone, and a copy of it, each noted when it was acknowledged."""
        async with self.open(steps) as host:
            vm = await host.instantiate(size_bytes=4 * MIB)
            self.acknowledged.write_text("web")
            spec, clones = plan_copy(vm.record.spec, "copy", None)
            await host.cloner.make(spec, Autostart(), clones, ignore_progress)
            self.acknowledged.write_text("web copy")

    def kill_at(self, step: int) -> bool:
        """Live until this step; whether it came that far."""
        self.acknowledged.write_text("")
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(self.live(Steps(step)))
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        if status not in (0, signal.SIGKILL):
            self.violations.append(f"step {step}: it failed by itself ({status})")
        return status != 0

    async def recover(self, step: int) -> None:
        """What the next one makes of it: VMs with their volumes, and no volume without a VM."""
        for _ in range(TRIES):
            with suppress(StoreInUseError):
                async with self.open() as host:
                    await self.look(step, host)
                return
            await asyncio.sleep(0.02)
        raise TimeoutError("somebody has the store")

    async def look(self, step: int, host: Hosts) -> None:
        vms = {record.name: record async for record in host.definitions.scan()}
        volumes = {str(volume.ref) async for volume in host.storage.volumes.scan()} - {str(BASE)}
        named = {disk.volume for record in vms.values() for disk in record.spec.disks}
        if volumes != named:
            self.violations.append(f"step {step}: volumes {volumes}, named by VMs {named}")
        if lost := set(self.acknowledged.read_text().split()) - set(vms):
            self.violations.append(f"step {step}: {lost} were there and are not")
        if left := await host.left():
            self.violations.append(f"step {step}: {left} are left")
        for name in ("copy", "web"):
            if name in vms:
                await host.definitions.delete(vms[name], None)
                await host.storage.delete(BASE.model_copy(update={"name": name}))
        if host.files != ["base.qcow2"]:
            self.violations.append(f"step {step}: files {host.files}")


def main() -> None:
    """Run trials until a life is over before its step comes."""
    trials = Trials(Path(sys.argv[1]))
    asyncio.run(trials.prepare())
    step, every, killed = int(sys.argv[2]), int(sys.argv[3]), 0
    while trials.kill_at(step):
        asyncio.run(trials.recover(step))
        killed += 1
        step += every
    print(json.dumps({"killed": killed, "undone": trials.undone, "violations": trials.violations}))


if __name__ == "__main__":
    main()
