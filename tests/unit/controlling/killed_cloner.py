"""Kills who makes VMs on clones with -9 at step after step, and looks at what the next one makes of it.

A program: ``python -m tests.unit.controlling.killed_cloner FOLDER FIRST EVERY``. It prints one JSON object:
how many were ``killed``, ``kinds`` of recovery seen, ``violations`` (``tests.unit.killing``).
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.unit.controlling.test_cloning import BASE, Hosts
from tests.unit.killing import KillTrials, Steps
from tests.unit.storage.conftest import MIB

from duovisor.controlling.cloning import plan_copy
from duovisor.controlling.storage.records import VolumeFormat
from duovisor.controlling.vms.records import Autostart, ignore_progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Trials(KillTrials):
    """One host on which VMs are made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(root, root / "state")

    @asynccontextmanager
    async def open(self, steps: Steps | None = None) -> AsyncIterator[Hosts]:
        async with self.open_store(steps) as store:
            host = Hosts(self.root, store)
            await host.storage.recover()
            self.kinds["undone"] += len(await host.cloner.recover())
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

    async def recover(self, step: int) -> None:
        """What the next one makes of it: VMs with their volumes, and no volume without a VM."""
        async with self.open() as host:
            await self.look(step, host)

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
    print(json.dumps(trials.run(int(sys.argv[2]), int(sys.argv[3]))))


if __name__ == "__main__":
    main()
