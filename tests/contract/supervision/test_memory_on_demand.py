"""Drivers whose guest's memory comes while they work: a pager, storage drivers, a front end as the VMM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.contract.supervision.conftest import Stage

from duovisor.channel.frontend import GUEST_START
from duovisor.channel.on_demand import OnDemand
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_client import NO_STATUS
from duovisor.controlling.errors import PartitionError
from duovisor.controlling.snapshots import paging
from duovisor.controlling.snapshots.folder import MEMORY
from duovisor.controlling.snapshots.loading import SavedMachine
from duovisor.controlling.snapshots.paging import Paging
from duovisor.controlling.supervision.records import DriverEventKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from duovisor.controlling.supervision.device import DeviceSupervisor

MEMORY_BYTES = 64 << 20
USED_FROM, USED_TO = 4 << 20, 40 << 20  # before and behind are holes; the front end's own things lie before
PIECE = 96 << 10
KINDS = DriverEventKind


class EndingVmm:
    """A VMM's process that can be ended."""

    has_ended = False

    async def kill(self) -> None:
        self.has_ended = True


class PagedStage(Stage):
    """The same with a saved memory, which a pager loads; it fills what it is asked for, and hardly more."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        (run_dir / MEMORY).write_bytes(b"")
        with (run_dir / MEMORY).open("r+b") as file:
            file.truncate(MEMORY_BYTES)
            file.seek(USED_FROM)
            file.write(random.Random(1).randbytes(USED_TO - USED_FROM))
        self.saved = (run_dir / MEMORY).read_bytes()
        self.process = EndingVmm()
        vmm: Any = SimpleNamespace(
            plan=SimpleNamespace(name="vm", memory_mib=64), run_dir=run_dir, process=self.process
        )
        self.paging = Paging(vmm, self.factories, self.events.append, lambda: None)
        self._pager: OnDemand | None = None

    def page_memory(self) -> AbstractAsyncContextManager[Mapping[str, int]]:
        return self.paging.lend()

    async def wait_let_go(self, pid: int) -> None:
        """Wait until a driver has no userfaultfd any more, nor the device by which one is made."""
        async with asyncio.timeout(120):
            while any("userfaultfd" in name for name in list_open(pid)):
                await asyncio.sleep(0.01)

    async def load(self) -> None:
        """Begin to load, as a VM's start does, with the front end as its VMM."""
        memory = self.run_dir.joinpath("link")
        memory.symlink_to(f"/proc/{os.getpid()}/fd/{self.front.memory_descriptor}")
        async with self.paging.loading(SavedMachine(self.run_dir), memory) as loaded:
            given = {name: os.dup(number) for name, number in self.paging.inherit(0).items() if number}
            await loaded
        self._pager = OnDemand(given["userfault"], given["pager"])
        self._pager.register(self.front.view, 0)
        await self.paging.note_running()

    def build_direct(self) -> DeviceSupervisor:
        """The same device with a driver past the page cache: the disk's own transfers meet missing pages."""
        os.close(self.descriptor)
        try:
            self.descriptor = os.open(self.image, os.O_RDWR | os.O_DIRECT)
        except OSError:
            self.descriptor = os.open(self.image, os.O_RDWR)
            pytest.skip("this file system has no O_DIRECT")
        device = self.build_device()
        device.plan = device.crew.plan = replace(device.plan, words=(*device.plan.words, "--direct"))
        return device

    def transfer(self, kind: int, sector: int, address: int, length: int) -> None:
        """A request of the guest's on memory that nobody has touched."""
        header_at, header = self.front.allocate(layout.REQUEST_HEADER.size)
        status_at, status = self.front.allocate(1)
        layout.REQUEST_HEADER.pack_into(header, 0, kind, 0, sector)
        status[0] = NO_STATUS
        data = (GUEST_START + address, length)
        reads = kind == layout.REQUEST_IN
        queue = self.client.queue
        head = queue.prepare(
            [(header_at, len(header)), *([] if reads else [data])],
            [*([data] if reads else []), (status_at, 1)],
        )
        queue.submit(head)
        queue.kick()
        queue.wait(120.0)
        queue.release(head)
        assert status[0] == layout.STATUS_OK

    async def close(self) -> None:
        await self.paging.end()
        await super().close()
        if self._pager is not None:
            self._pager.pager.close()
            for descriptor in self._pager.held:
                os.close(descriptor)


def list_open(pid: int) -> list[str]:
    """What the descriptors of a process are of."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was just closed
            found.append(os.readlink(link))
    return found


@pytest_asyncio.fixture
async def stage(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PagedStage]:
    if not paging.can_page():
        pytest.skip("there is no userfaultfd that this user may open")
    monkeypatch.setattr(paging, "PACE_S", 3600.0)
    made = PagedStage(run_dir)
    yield made
    await made.close()


@pytest.mark.parametrize("cache", ["writeback", "none"])
async def test_requests_on_pages_that_are_not_there_yet(stage: PagedStage, cache: str) -> None:
    await stage.load()
    device = stage.build_direct() if cache == "none" else stage.build_device()
    await device.start()
    await stage.wait_greeted()
    image, expected = bytearray(stage.image.read_bytes()), bytearray(stage.saved)

    async def work(first: int) -> None:
        """Writes from missing pages and reads into others, not at their beginning, and into holes."""
        for step in range(4):
            place = (first + step) * PIECE
            source = USED_FROM + place + 4096 + 512 * step
            await asyncio.to_thread(stage.transfer, layout.REQUEST_OUT, place // 512, source, PIECE)
            image[place : place + PIECE] = stage.saved[source : source + PIECE]
            for start in (USED_FROM + (16 << 20) + place + 1536, USED_TO + place + 512):
                await asyncio.to_thread(stage.transfer, layout.REQUEST_IN, place // 512, start, PIECE)
                expected[start : start + PIECE] = image[place : place + PIECE]

    await work(0)
    await stage.wait_spare()  # it has mapped the memory, too
    os.kill(device.pids[0], signal.SIGKILL)
    await stage.wait_told(KINDS.RECOVERED)
    await work(4)
    await stage.wait_spare()
    for pid in device.pids:
        os.kill(pid, signal.SIGKILL)
    await stage.wait_told(KINDS.RECOVERED, 2)
    await work(8)
    assert stage.paging.is_loading
    await stage.paging.set_pace(0.0)
    told = await stage.wait_told(KINDS.MEMORY_LOADED)
    assert told.message.startswith("36 MiB of memory loaded, ")
    await work(12)
    assert stage.image.read_bytes() == bytes(image)
    memory = os.pread(stage.front.memory_descriptor, MEMORY_BYTES, 0)
    assert memory[USED_FROM:] == bytes(expected)[USED_FROM:]
    for pid in device.pids:
        await stage.wait_let_go(pid)


async def test_all_is_there_before_the_driver_has_met_its_vmm(stage: PagedStage) -> None:
    await stage.load()
    device = stage.build_device()
    stage.accepts.clear()
    await device.start()
    await stage.paging.set_pace(0.0)
    await stage.wait_told(KINDS.MEMORY_LOADED)
    await stage.wait_let_go(device.pids[0])
    stage.accepts.set()
    await stage.wait_greeted()
    await asyncio.to_thread(stage.transfer, layout.REQUEST_OUT, 0, USED_FROM + PIECE, PIECE)
    assert stage.image.read_bytes()[:PIECE] == stage.saved[USED_FROM + PIECE : USED_FROM + 2 * PIECE]
    assert [event.kind for event in stage.events] == [KINDS.MEMORY_LOADED]


async def test_a_saved_memory_that_is_not_there(stage: PagedStage) -> None:
    (stage.run_dir / MEMORY).write_bytes(b"too short")
    with pytest.raises(PartitionError, match="the saved memory has not the size of the guest's"):
        await stage.load()


async def test_a_saved_memory_that_cannot_be_read_any_more(stage: PagedStage) -> None:
    await stage.load()
    os.truncate(stage.run_dir / MEMORY, USED_FROM + (1 << 20))
    await stage.paging.set_pace(0.0)
    told = await stage.wait_told(KINDS.MEMORY_LOST)
    assert "Bad address" in told.message
    assert "its snapshot can be restored again" in told.message
    async with asyncio.timeout(60):
        while not stage.process.has_ended:
            await asyncio.sleep(0.01)
