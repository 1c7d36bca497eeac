"""A device under supervision, with a front end in the VMM's place and real partitions."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.drivers.block_client import BlockClient
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.factories import Factories
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.spec.vm import DriverFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.controlling.description import ProcessDescription
    from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind

IMAGE_BYTES = 4 << 20


class Stage:
    """A VM without a guest: its run folder, its channel, and what was told of its device."""

    name = "vm"

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.image = run_dir / "disk.raw"
        self.image.write_bytes(os.urandom(IMAGE_BYTES))
        self.descriptor = os.open(self.image, os.O_RDWR)
        self.front = FrontEnd()
        self.client = BlockClient(self.front)
        self.events: list[DriverEvent] = []
        self.recorded: list[ProcessDescription] = []
        self.paused = False
        self.ended = False
        self.device: DeviceSupervisor | None = None
        self.factories = Factories(run_dir, end_with_owner=True)
        self._greeted = asyncio.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / "disk0.sock"))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        """Greet who connects, one after the other, as a VMM does."""
        loop = asyncio.get_running_loop()
        while True:
            connected, _ = await loop.sock_accept(self._listener)
            connected.setblocking(True)
            await asyncio.to_thread(self.front.connect, connected)
            self._greeted.set()

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

    # what a device's supervisor needs of its VM

    def connect(self, device: str) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(str(self.run_dir / f"{device}.sock"))
        except OSError as error:
            channel.close()
            raise PartitionError(str(error)) from error
        return channel

    def record(self) -> None:
        assert self.device is not None
        self.recorded = self.device.crew.describe()

    async def wait_ended(self, *, timeout_s: float) -> bool:
        return self.ended

    async def pause(self) -> bool:
        self.paused = True
        return True

    async def resume(self) -> None:
        self.paused = False

    async def note_full(self, device: str) -> bool:
        raise AssertionError(f"{device} has room")

    async def set_link(self, nic: str, *, up: bool) -> None:
        raise AssertionError(f"{nic} is no network card")

    # what a test wants to know

    async def read(self, sector: int = 0) -> bytes:
        """Read 4 KiB as the guest would."""
        await asyncio.wait_for(self._greeted.wait(), 60)
        return await asyncio.to_thread(self.client.read, sector, 4096)

    async def write(self, sector: int, data: bytes) -> None:
        await asyncio.wait_for(self._greeted.wait(), 60)
        await asyncio.to_thread(self.client.write, sector, data)

    async def wait_told(self, kind: DriverEventKind, count: int = 1) -> DriverEvent:
        async with asyncio.timeout(120):
            while len(told := [event for event in self.events if event.kind is kind]) < count:
                await asyncio.sleep(0.005)
        return told[count - 1]

    async def wait_spare(self) -> int:
        assert self.device is not None
        async with asyncio.timeout(120):
            while (pid := self.device.describe().spare_pid) is None:
                await asyncio.sleep(0.005)
        return pid

    async def close(self) -> None:
        self.ended = True
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        if self.device is not None:
            await self.device.end()
        self.front.close()
        self._listener.close()
        os.close(self.descriptor)
        await self.factories.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[Stage]:
    made = Stage(run_dir)
    yield made
    await made.close()
    assert [path.name for path in run_dir.glob("*.control")] == []
