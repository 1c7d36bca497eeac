"""A device with a driver of one's own: real partitions, their supervisor, a front end as the VMM."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from tests.contract.supervised import SupervisedStage

from duovisor.channel.frontend import FrontEnd
from duovisor.controlling.machine_drivers import open_device, plan_device
from duovisor.controlling.supervision.device import DeviceSupervisor
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


ROOM = 64


class Stage(SupervisedStage):
    """A VM without a guest, which has one device."""

    slot = "device0"

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, FrontEnd(memory_bytes=4 << 20))
        self.file = run_dir / "my_driver.py"
        self.files = ExitStack()

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
        self.device = DeviceSupervisor(replace(plan, hang_s=hang_s), self, self.factories, self.events.append)
        return self.device

    async def ask(self, text: bytes = b"", *, room: int = ROOM, timeout_s: float = 120) -> bytes:
        """One request; what the driver wrote."""
        head, answer = await self.submit(text, room=room)
        [(done, written)] = await asyncio.to_thread(self.front.queues[0].wait, timeout_s)
        assert done == head
        return bytes(answer[:written])

    async def submit(self, text: bytes = b"", *, room: int = ROOM) -> tuple[int, memoryview]:
        """Submit one request, and wait for nothing; its head, and where the answer will be."""
        await self.wait_greeted()
        address, view = self.front.allocate(len(text) + room)
        view[: len(text)] = text
        readable = [(address, len(text))] if text else []
        queue = self.front.queues[0]
        head = queue.prepare(readable, [(address + len(text), room)])
        queue.submit(head)
        queue.kick()
        return head, view[len(text) :]

    def read_log(self) -> str:
        return (self.run_dir / "device0.log").read_text()

    async def close(self) -> None:
        await super().close()
        self.files.close()


@pytest_asyncio.fixture
async def stage(run_dir: Path) -> AsyncIterator[Stage]:
    made = Stage(run_dir)
    yield made
    await made.close()
