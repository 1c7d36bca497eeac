"""A VM without a guest whose one device is supervised: real partitions, a front end in the VMM's place."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

from duovisor.controlling.errors import PartitionError
from duovisor.controlling.supervision.factories import Factories

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from duovisor.channel.frontend import FrontEnd
    from duovisor.controlling.supervision.device import DeviceSupervisor
    from duovisor.controlling.supervision.records import DriverEvent, DriverEventKind


class SupervisedStage:
    """What a device's supervisor needs of its VM, and what was told of the device.

    A test's own stage sets ``device``; ``slot`` is the device's name in the VM.
    """

    name = "vm"
    slot = "disk0"

    def __init__(self, run_dir: Path, front: FrontEnd) -> None:
        self.run_dir = run_dir
        self.front = front
        self.events: list[DriverEvent] = []
        self.paused = False
        self.ended = False
        self.device: DeviceSupervisor | None = None
        self.factories = Factories(run_dir, end_with_owner=True)
        self.accepts, self._greeted = asyncio.Event(), asyncio.Event()
        self.accepts.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(run_dir / f"{self.slot}.sock"))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        """Greet who connects, one after the other, as a VMM does."""
        loop = asyncio.get_running_loop()
        while True:
            connected, _ = await loop.sock_accept(self._listener)
            await self.accepts.wait()
            connected.setblocking(True)
            await asyncio.to_thread(self.front.connect, connected)
            self._greeted.set()

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

    def page_memory(self) -> AbstractAsyncContextManager[Mapping[str, int]]:
        return nullcontext({})

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

    async def wait_greeted(self) -> None:
        """Wait until a driver has connected."""
        await asyncio.wait_for(self._greeted.wait(), 60)

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
        """End the drivers and fail if they left a socket behind."""
        self.ended = True
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        if self.device is not None:
            await self.device.end()
        self.front.close()
        self._listener.close()
        await self.factories.close()
        assert [path.name for path in self.run_dir.glob("*.control")] == []
