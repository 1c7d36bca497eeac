"""Disks with drivers other than the plain one: real partitions, their supervisor, a front end as the VMM."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.contract.supervision.conftest import Stage

from duovisor.controlling.disk_files import open_disk
from duovisor.controlling.key_files import create_key
from duovisor.controlling.machine_disks import plan_disk
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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

    async def close(self) -> None:
        await super().close()
        self.files.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[DiskStage]:
    before = len(os.listdir("/proc/self/fd"))
    made = DiskStage(run_dir)
    yield made
    await made.close()
    assert [path.name for path in run_dir.glob("*.control")] == []
    assert len(os.listdir("/proc/self/fd")) == before
