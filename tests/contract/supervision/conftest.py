"""A device under supervision, with a front end in the VMM's place and real partitions."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest_asyncio
from tests.contract.supervised import SupervisedStage

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.description import ProcessDescription

IMAGE_BYTES = 4 << 20


class Stage(SupervisedStage):
    """A VM without a guest: its disk, its channel, and what was told of its device."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, FrontEnd())
        self.image = run_dir / "disk.raw"
        self.image.write_bytes(os.urandom(IMAGE_BYTES))
        self.descriptor = os.open(self.image, os.O_RDWR)
        self.client = BlockClient(self.front)
        self.client.timeout_s = 120.0
        self.recorded: list[ProcessDescription] = []

    def build_device(
        self, on_failure: DriverFailure = DriverFailure.PAUSE, *, hang_s: float = 30.0
    ) -> DeviceSupervisor:
        plan = DevicePlan(
            device="disk0",
            role="storage driver",
            driver="block",
            words=("--queue-size", "128"),
            descriptors={"image": self.descriptor},
            hang_s=hang_s,
            on_failure=on_failure,
            uid=0x70001234,
            limits=build_limits(64),
        )
        self.device = DeviceSupervisor(plan, self, self.factories, self.events.append)
        return self.device

    def record(self) -> None:
        assert self.device is not None
        self.recorded = self.device.crew.describe()

    async def read(self, sector: int = 0) -> bytes:
        """Read 4 KiB as the guest would."""
        await self.wait_greeted()
        return await asyncio.to_thread(self.client.read, sector, 4096)

    async def write(self, sector: int, data: bytes) -> None:
        await self.wait_greeted()
        await asyncio.to_thread(self.client.write, sector, data)

    async def close(self) -> None:
        await super().close()
        os.close(self.descriptor)


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[Stage]:
    made = Stage(run_dir)
    yield made
    await made.close()
