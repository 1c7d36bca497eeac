"""A device with a driver of one's own: real partitions, their supervisor, a front end as the VMM."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.machine_drivers import open_device, plan_device
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.controlling.supervision.factories import Factories
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind

ROOM = 64


class Stage:
    """A VM without a guest, which has one device."""

    name = "vm"

    def __init__(self, run_dir: Path, factories: Factories) -> None:
        self.run_dir = run_dir
        self.file = run_dir / "my_driver.py"
        self.files = ExitStack()
        self.front = FrontEnd(memory_bytes=4 << 20)
        self.events: list[DriverEvent] = []
        self.paused = False
        self.ended = False
        self.device: DeviceSupervisor | None = None
        self._factories = factories
        self._greeted = asyncio.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / "device0.sock"))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connected, _ = await loop.sock_accept(self._listener)
            connected.setblocking(True)
            await asyncio.to_thread(self.front.connect, connected)
            self._greeted.set()

    def build_device(self, source: str | None, *, hang_s: float = 30.0, **options: Any) -> DeviceSupervisor:
        """The device that ``source`` drives; ``None``: the entropy source."""
        device: dict[str, Any] = {"driver": "rng"}
        if source is not None:
            self.file.write_text(source)
            device = {"driver": str(self.file), "options": options}
        spec = VirtualMachineSpec.model_validate(
            {"name": "vm", "design": "microkernelized", "memory": "64M", "devices": [device]}
        )
        plan = plan_device(spec, 0, open_device(spec.devices[0], self.files), self.files)
        self.device = DeviceSupervisor(
            replace(plan, hang_s=hang_s), self, self._factories, self.events.append
        )
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
        """Nobody adopts this VM."""

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
        raise AssertionError("this VM has no network card")

    # what a test wants to know

    async def ask(self, text: bytes = b"", *, room: int = ROOM, timeout_s: float = 120) -> bytes:
        """One request; what the driver wrote."""
        head, answer = await self.submit(text, room=room)
        [(done, written)] = await asyncio.to_thread(self.front.queues[0].wait, timeout_s)
        assert done == head
        return bytes(answer[:written])

    async def submit(self, text: bytes = b"", *, room: int = ROOM) -> tuple[int, memoryview]:
        """Submit one request, and wait for nothing; its head, and where the answer will be."""
        await asyncio.wait_for(self._greeted.wait(), 10)
        address, view = self.front.allocate(len(text) + room)
        view[: len(text)] = text
        readable = [(address, len(text))] if text else []
        queue = self.front.queues[0]
        head = queue.prepare(readable, [(address + len(text), room)])
        queue.submit(head)
        queue.kick()
        return head, view[len(text) :]

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

    def read_log(self) -> str:
        return (self.run_dir / "device0.log").read_text()

    async def close(self) -> None:
        self.ended = True
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        if self.device is not None:
            await self.device.end()
        self.front.close()
        self._listener.close()
        self.files.close()


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dvt-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[Stage]:
    factories = Factories(run_dir, end_with_owner=True)
    made = Stage(run_dir, factories)
    yield made
    await made.close()
    await factories.close()
    assert [path.name for path in run_dir.glob("*.control")] == []
