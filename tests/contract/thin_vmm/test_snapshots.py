"""Snapshots by the manager, of a machine with real drivers and a micro guest, on any KVM."""

from __future__ import annotations

import os
import resource
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import DISK_BYTES, OLD, find_gaps

from duovisor.controlling import machine
from duovisor.controlling.snapshots.errors import (
    SnapshotExistsError,
    SnapshotFullError,
    SnapshotNotFoundError,
    SnapshotRefusedError,
)
from duovisor.controlling.vms.documents import Intent
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.contract.thin_vmm.lab import Lab

NEW = b"after!" * 1000


async def test_back_to_where_it_was(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        await lab.wait_ticks(manager, 100)
        said: list[str] = []
        await manager.create_snapshot("vm", "one", lambda _, message: said.append(message))
        at_most = len(await manager.read_console_log("vm", 1 << 20))
        assert said[-1].startswith("paused ")
        assert (await manager.get("vm")).status.state is State.RUNNING
        assert find_gaps(await lab.wait_more(manager)) == 0  # it went on as if nothing had been
        with pytest.raises(SnapshotExistsError):
            await manager.create_snapshot("vm", "one")
        with pytest.raises(WrongStateError):
            await manager.restore_snapshot("vm", "one")
        await manager.stop("vm")
        before = await manager.read_console_log("vm", 1 << 20)
        with lab.disk.open("r+b") as disk:
            disk.write(NEW)
        await manager.restore_snapshot("vm", "one")
        after = await lab.wait_ticks(manager, len(before) + 100)
        assert lab.disk.read_bytes()[: len(OLD)] == OLD
        assert find_gaps(after[len(before) :]) == 0
        first = after[len(before)]
        assert first in before[:at_most]  # not from the beginning, but from what it counted then
        [view] = await manager.list_snapshots("vm")
        assert (view.name, view.disks, view.memory_mib) == ("one", {"disk0": DISK_BYTES}, 64)
        assert view.memory_bytes < 4 << 20
        await manager.stop("vm")
        monkeypatch.setattr(machine, "can_page", lambda: False)  # as an older kernel, or who is not root
        before = await manager.read_console_log("vm", 1 << 20)
        await manager.restore_snapshot("vm", "one")  # as often as one likes
        after = await lab.wait_ticks(manager, len(before) + 100)
        assert find_gaps(after[len(before) :]) == 0
        assert after[len(before)] == first
        await manager.stop("vm")
        with pytest.raises(SnapshotRefusedError, match="vm has snapshots: one"):
            await manager.delete("vm")
        await manager.delete_snapshot("vm", "one")
        with pytest.raises(SnapshotNotFoundError):
            await manager.restore_snapshot("vm", "one")
    assert not list((lab.directories.state / "snapshots").iterdir())
    assert [path.name for path in lab.root.iterdir() if "restore" in path.name] == []
    kinds = [kind for kind in lab.kinds if kind != "memory-loaded"]  # which may come after the end
    assert kinds == [
        "created", "started", "snapshot-taken", "stopped", "started", "snapshot-restored", "stopped",
        "started", "snapshot-restored", "stopped", "snapshot-deleted",
    ]  # fmt: skip


async def test_what_cannot_be_is_refused_and_changes_nothing(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        with pytest.raises(WrongStateError, match="it does not run"):
            await manager.create_snapshot("vm", "one")
        await manager.start("vm")
        with limit_of_files(1 << 20), pytest.raises(SnapshotFullError, match="no room for the snapshot"):
            await manager.create_snapshot("vm", "one")
        assert await manager.list_snapshots("vm") == ()
        assert not (lab.directories.state / "snapshots").is_dir() or not list(
            (lab.directories.state / "snapshots").iterdir()
        )
        status = (await manager.get("vm")).status
        assert status.state is State.RUNNING
        assert "no room" in status.faults[-1].message
        assert find_gaps(await lab.wait_more(manager)) == 0
        await manager.create_snapshot("vm", "one")
        await manager.stop("vm")
        document = lab.directories.state.glob("snapshots/*/one/snapshot.json")
        for path in document:
            path.write_text(path.read_text().replace('"vendor":"', '"vendor":"Other'))
        lab.disk.write_bytes(NEW)
        os.truncate(lab.disk, DISK_BYTES)
        with pytest.raises(SnapshotRefusedError, match="was taken on"):
            await manager.restore_snapshot("vm", "one")
        assert lab.disk.read_bytes()[: len(NEW)] == NEW
        assert (await manager.get("vm")).status.state is State.STOPPED


async def test_a_vm_that_stood_still_for_a_snapshot_goes_on_under_the_next_service(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        vm = manager._host.active[0]  # as a service leaves it that is killed in the middle
        await manager._host.announce(vm, Intent.SNAPSHOT)
        await vm.machine.vmm.pause()
        half = lab.directories.state / "snapshots" / vm.uuid / ".half-one"
        half.mkdir(parents=True)
        (half / "memory").write_text("half")
    async with lab.managed() as manager:
        assert (await manager.get("vm")).status.state is State.RUNNING
        assert find_gaps(await lab.wait_more(manager)) == 0
        assert not half.exists()
        await manager.create_snapshot("vm", "one")
        await manager.pause("vm")
        await manager.create_snapshot("vm", "two")
    async with lab.managed() as manager:
        assert (await manager.get("vm")).status.state is State.PAUSED  # that was not for a snapshot
        assert [each.name for each in await manager.list_snapshots("vm")] == ["one", "two"]


@contextmanager
def limit_of_files(size_bytes: int) -> Iterator[None]:
    """Files of this process cannot become larger, as on a file system that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
