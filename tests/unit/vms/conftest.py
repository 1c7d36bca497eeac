"""A manager on a fake host: ``host`` → ``manager``; what is left on the host at the end fails the test."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.unit.vms.fake_host import build_capabilities, build_directories, find_files, find_processes

from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.vms.manager import VmManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import RecoveryReport, VmEvent


class Host:
    """Folders, a store that outlives managers, and the events of all of them."""

    def __init__(self, root: Path, store: Store) -> None:
        self.root = root
        self.directories = build_directories(root)
        self.capabilities = build_capabilities(root)
        self.store = store
        self.events: list[VmEvent] = []
        self._told = asyncio.Event()
        self.report: RecoveryReport

    @property
    def kinds(self) -> list[str]:
        return [event.kind.value for event in self.events]

    def emit(self, event: VmEvent) -> None:
        self.events.append(event)
        self._told.set()

    async def wait_for(self, kind: str) -> None:
        """Wait until such an event came."""
        async with asyncio.timeout(10):
            while kind not in self.kinds:
                self._told.clear()
                await self._told.wait()

    @asynccontextmanager
    async def managed(self) -> AsyncIterator[VmManager]:
        """A manager from its start to its orderly end; VMs run on."""
        manager = VmManager(self.store, self.directories, self.emit, capabilities=lambda: self.capabilities)
        await manager.open()
        self.report = await manager.recover()
        try:
            yield manager
        finally:
            await manager.close()


@pytest.fixture
def root() -> Iterator[Path]:
    """A short path: a Unix socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Path(name)


@pytest_asyncio.fixture
async def host(root: Path) -> AsyncIterator[Host]:
    async with open_memory_store() as store:
        host = Host(root, store)
        yield host
        async with host.managed() as manager:
            for vm in (await manager.list()).items:
                if vm.status.pid is not None:
                    await manager.stop(vm.record.name)
        assert not find_processes(root)
        assert not find_files(host.directories)


@pytest_asyncio.fixture
async def manager(host: Host) -> AsyncIterator[VmManager]:
    async with host.managed() as manager:
        yield manager
