"""Disks with drivers other than the plain one: real partitions, their supervisor, a front end as the VMM."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from tests.contract.succession.load import finish
from tests.contract.supervision.conftest import Stage

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.key_files import create_key
from duovisor.controlling.machine_disks import plan_disk
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.records import DriverEventKind
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.contract.succession.load import Load

    from duovisor.spec.vm import DiskSpec


class DiskStage(Stage):
    """A VM without a guest whose one disk is as a specification says."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.files = ExitStack()
        self.key = run_dir / "disk.key"
        create_key(self.key)

    def build_disk(self, **disk: Any) -> DeviceSupervisor:
        """The supervisor of a disk; it is on ``image`` unless ``path`` says otherwise."""
        spec = self.build_spec(**disk)
        opened = self.files.enter_context(open_disk(spec.disks[0]))
        plan = plan_disk(spec, 0, opened.descriptors, files=self.files)
        self.device = DeviceSupervisor(replace(plan, hang_s=30.0), self, self.factories, self.events.append)
        self.client.timeout_s = 120
        return self.device

    def build_encrypted(self, **disk: Any) -> DeviceSupervisor:
        """The same with the encrypting driver and this stage's key."""
        return self.build_disk(driver="encrypted", key_file=str(self.key), **disk)

    def build_spec(self, **disk: Any) -> VirtualMachineSpec:
        """The specification of the VM."""
        full = {"path": str(self.image), **disk}
        document = {"name": "vm", "design": "microkernelized", "memory": "64M", "disks": [full]}
        return VirtualMachineSpec.model_validate(document)

    def find_disk(self, **disk: Any) -> DiskSpec:
        """The specification of the disk alone."""
        return self.build_spec(**disk).disks[0]

    async def kill_under_load(self, load: Load, source: random.Random, kills: int) -> None:
        """Kill the driver again and again between requests; the load is finished when this returns."""
        assert self.device is not None
        for count in range(1, kills + 1):
            pid = self.device.describe().pid
            assert pid is not None
            enough = load.done + source.randrange(5, 60)
            async with asyncio.timeout(120):
                while load.done < enough:
                    load.submit(source)
                    load.collect()
                    await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            await self.wait_told(DriverEventKind.RECOVERED, count)
            await self.wait_spare()
        await asyncio.to_thread(finish, [load])

    async def close(self) -> None:
        await super().close()
        self.files.close()


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[DiskStage]:
    before = len(os.listdir("/proc/self/fd"))
    made = DiskStage(run_dir)
    yield made
    await made.close()
    assert len(os.listdir("/proc/self/fd")) <= before
