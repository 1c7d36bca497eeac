"""VMs that end with a process: however that ends, whoever watches, whatever is done to the VM meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.api.fake_manager import FakeVmManager

from duovisor.controlling.service import autodestroy
from duovisor.controlling.service.autodestroy import MESSAGE, PREFIX, Autodestroy
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.events import EventLog
from duovisor.controlling.service.operations import Operations
from duovisor.controlling.service.peer import Peer
from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.vms.errors import VmNameInUseError, VmNotFoundError
from duovisor.controlling.vms.records import Autostart
from duovisor.controlling.vms.volumes import lend_none
from duovisor.directories import find_directories
from duovisor.spec.vm import VirtualMachineSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.controlling.service.events import EventDocument
    from duovisor.controlling.store.interface import Store

SPEC = VirtualMachineSpec(name="web")
REST = Autostart()


class Host:
    """A store, a manager and what acts on them; ``open`` is a service that begins to watch."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self.store, self.events = store, events
        self.manager = FakeVmManager(store, find_directories(), lambda _: None, lend_none)
        self.operations = Operations(store, events)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Autodestroy]:
        watcher = Autodestroy(self.store, self.manager, self.operations, self.events)
        await watcher.open()
        try:
            yield watcher
        finally:
            await watcher.close()

    async def wait_idle(self) -> None:
        """Wait until no VM has an owner."""
        async with asyncio.timeout(60):
            while (await self.store.range(PREFIX)).entries:
                await asyncio.sleep(0.01)

    async def wait_event(self, action: str, outcome: str) -> EventDocument:
        """Wait for what is told."""
        async with asyncio.timeout(60):
            while True:
                page = await self.events.read(after=0, limit=1000)
                for event in page.events:
                    if (event.action, event.outcome) == (action, outcome):
                        return event
                await asyncio.sleep(0.01)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with open_memory_store() as store:
        log = EventLog(store)
        await log.open()
        yield Host(store, log)
        await log.close()


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process
        process.kill()


def peer_of(process: subprocess.Popen[bytes]) -> Peer:
    return Peer(process.pid, os.getuid(), frozenset())


async def is_there(manager: FakeVmManager, name: str = "web") -> bool:
    try:
        await manager.get(name)
    except VmNotFoundError:
        return False
    return True


@pytest.mark.parametrize("runs", [False, True])
async def test_vm_goes_with_its_process(host: Host, owner: subprocess.Popen[bytes], runs: bool) -> None:
    async with host.open() as watcher:
        vm = await watcher.create(SPEC, REST, peer_of(owner))
        if runs:
            await host.manager.start("web", lambda *_: None)
        assert await is_there(host.manager)
        owner.kill()
        await host.wait_idle()
        assert not await is_there(host.manager)
    told = await host.wait_event("vm.delete", "done")
    assert (told.object, told.actor, told.message) == (f"vm/{vm.record.name}", "service", MESSAGE)


async def test_vm_goes_though_it_is_called_otherwise_now(host: Host, owner: subprocess.Popen[bytes]) -> None:
    async with host.open() as watcher:
        vm = await watcher.create(SPEC, REST, peer_of(owner))
        await host.manager.rename("web", "other", vm.record.revision)
        await host.manager.create(SPEC, REST)  # somebody's, with the name that it had
        owner.kill()
        await host.wait_idle()
    assert await is_there(host.manager, "web")
    assert not await is_there(host.manager, "other")


async def test_next_service_goes_on_watching(host: Host, owner: subprocess.Popen[bytes]) -> None:
    async with host.open() as watcher:
        await watcher.create(SPEC, REST, peer_of(owner))
    async with host.open():
        assert await is_there(host.manager)
        owner.kill()
        await host.wait_idle()
    assert not await is_there(host.manager)


async def test_next_service_finds_that_the_process_has_ended(
    host: Host, owner: subprocess.Popen[bytes]
) -> None:
    async with host.open() as watcher:
        await watcher.create(SPEC, REST, peer_of(owner))
    owner.kill()
    owner.wait()
    assert await is_there(host.manager)
    async with host.open():
        await host.wait_idle()
    assert not await is_there(host.manager)


async def test_what_is_under_way_is_cancelled(host: Host, owner: subprocess.Popen[bytes]) -> None:
    async with host.open() as watcher:
        await watcher.create(SPEC.model_copy(update={"name": "slow"}), REST, peer_of(owner))
        start = await host.operations.start(
            "vm.start", "vm/slow", "user:me", lambda progress: host.manager.start("slow", progress)
        )
        owner.kill()
        await host.wait_idle()
        assert host.operations.get(start.id).state == "cancelled"
    assert not await is_there(host.manager, "slow")


async def test_a_vm_that_cannot_go_is_told_of_and_tried_again_by_the_next_service(
    host: Host, owner: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autodestroy, "REST_S", 0.0)

    async def refuse(name: str, if_revision: int) -> None:
        raise VmNameInUseError("it has snapshots")

    async with host.open() as watcher:
        await watcher.create(SPEC, REST, peer_of(owner))
        with monkeypatch.context() as patch:
            patch.setattr(host.manager, "delete", refuse)
            owner.kill()
            told = await host.wait_event("vm.delete", "failed")
        assert told.message == f"{MESSAGE}, but it stays: it has snapshots"
        assert await is_there(host.manager)
    async with host.open():
        await host.wait_idle()
    assert not await is_there(host.manager)


async def test_a_name_in_use_leaves_nothing(host: Host, owner: subprocess.Popen[bytes]) -> None:
    await host.manager.create(SPEC, REST)
    async with host.open() as watcher:
        with pytest.raises(VmNameInUseError):
            await watcher.create(SPEC, REST, peer_of(owner))
    assert not (await host.store.range(PREFIX)).entries
    assert await is_there(host.manager)


@pytest.mark.parametrize("number", [None, 0, 2**22])
async def test_a_process_that_cannot_be_seen_is_refused(host: Host, number: int | None) -> None:
    peer = None if number is None else Peer(number, 0, frozenset())
    async with host.open() as watcher:
        with pytest.raises(RequestInvalidError) as caught:
            await watcher.create(SPEC, REST, peer)
    assert caught.value.field == "autodestroy"
    assert not await is_there(host.manager)
    assert not (await host.store.range(PREFIX)).entries
