"""A guest that runs before its memory is loaded: whole afterwards, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import find_gaps
from tests.contract.thin_vmm.micro_guest import (
    REMEMBERING,
    REMEMBERING_FROM,
    REMEMBERING_TO,
    WRITTEN_TO,
    build_image,
)

from duovisor.controlling.description import read_description
from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.controlling.partitions.control import ControlConnection
from duovisor.controlling.snapshots import paging
from duovisor.controlling.snapshots.errors import SnapshotRefusedError
from duovisor.controlling.vms import snapshots
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.thin_vmm.lab import Lab

    from duovisor.controlling.description import MachineDescription
    from duovisor.controlling.snapshots.paging import Paging
    from duovisor.controlling.vms.manager import VmManager

STANDS_STILL_S = 3600.0
PAGE = 4096


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pager fills what is asked for, and hardly more."""
    if not paging.can_page():
        pytest.skip("there is no userfaultfd that this user may open")
    monkeypatch.setattr(paging, "PACE_S", STANDS_STILL_S)


@pytest.fixture
def remembering(lab: Lab) -> Lab:
    (lab.root / "kernel").write_bytes(build_image(REMEMBERING))
    return lab


async def test_whole_whatever_dies_meanwhile(remembering: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = remembering
    async with lab.managed() as manager:
        await begin(lab, manager)
        before = len(await manager.read_console_log("vm", 1 << 20))
        await manager.restore_snapshot("vm", "one")
        said = await lab.wait_ticks(manager, before + 3)  # it has asked for every page, three times
        assert find_paging(manager).is_loading
        assert [process.role for process in describe(lab).processes].count("pager") == 1
        with pytest.raises(MoveRefusedError, match="its memory is still being loaded"):
            await manager.update_vmm("vm")
        monkeypatch.setattr(snapshots, "LOADED_TIMEOUT_S", 0.01)
        with pytest.raises(SnapshotRefusedError, match="its memory is still being loaded"):
            await manager.create_snapshot("vm", "two")
        await kill_driver(lab, "disk0")
    async with lab.managed() as manager:  # the next service, which finds it so
        pager = find_paging(manager)
        assert pager.is_loading
        await kill_driver(lab, "disk0")
        said = await lab.wait_more_than(manager, said)
        assert pager.is_loading
        await pager.set_pace(0.0)
        await lab.wait_event("memory-loaded")
        assert "pager" not in [process.role for process in describe(lab).processes]
        said = await lab.wait_more_than(manager, said)
        assert find_gaps(said[before:]) == 0
        assert b"!" not in said
        await manager.pause("vm")
        [vm] = manager._host.active
        compare(vm.machine.place.memory_file, lab.find_snapshot("one") / "memory")
        await manager.resume("vm")
        await manager.create_snapshot("vm", "two")
        await manager.stop("vm")
    assert "fault" not in lab.kinds
    assert "memory-lost" not in lab.kinds


async def test_without_its_pager_it_ends_and_can_be_restored_again(remembering: Lab) -> None:
    lab = remembering
    async with lab.managed() as manager:
        await begin(lab, manager)
        await manager.restore_snapshot("vm", "one")
        os.kill(find_pager(lab), signal.SIGKILL)
        await lab.wait_event("crashed")
        [lost] = [event.message for event in lab.events if event.kind == "memory-lost"]
        assert lost.startswith("memory: pager (pid ")
        assert "can be restored again" in lost
        status = (await manager.get("vm")).status
        assert status.state is State.CRASHED
        assert any("was not loaded" in fault.message for fault in status.faults)
        await manager.restore_snapshot("vm", "one")
        pid = find_pager(lab)
    os.kill(pid, signal.SIGKILL)  # while there is no service
    async with lab.managed() as manager:
        status = (await manager.get("vm")).status
        assert status.state is State.CRASHED
        assert "its pager is gone" in status.faults[-1].message
        before = len(await manager.read_console_log("vm", 1 << 20))
        await manager.restore_snapshot("vm", "one")
        await find_paging(manager).set_pace(0.0)
        assert b"!" not in await lab.wait_ticks(manager, before + 3)
        await lab.wait_event("memory-loaded")
        await manager.stop("vm")


async def test_what_is_loaded_while_there_is_no_service(remembering: Lab) -> None:
    lab = remembering
    async with lab.managed() as manager:
        await begin(lab, manager)
        before = len(await manager.read_console_log("vm", 1 << 20))
        await manager.restore_snapshot("vm", "one")
        [pager] = [process for process in describe(lab).processes if process.role == "pager"]
    control = await ControlConnection.connect(lab.directories.vms / "vm" / "1" / pager.control)
    await control.request("limit", pace_s=0.0)
    async with asyncio.timeout(120):
        while (report := await control.request("status"))["there"] < report["total"]:
            await asyncio.sleep(0.01)
    control.close()
    assert "memory-loaded" not in lab.kinds
    async with lab.managed() as manager:
        await lab.wait_event("memory-loaded")
        assert "pager" not in [process.role for process in describe(lab).processes]
        assert b"!" not in await lab.wait_ticks(manager, before + 3)
        await manager.stop("vm")
    assert "memory-lost" not in lab.kinds


async def begin(lab: Lab, manager: VmManager) -> None:
    """A snapshot of a guest that has written its memory, and has ended."""
    await lab.define(manager)
    await manager.start("vm")
    await lab.wait_ticks(manager, 2)
    await manager.create_snapshot("vm", "one")
    await manager.stop("vm")


def find_paging(manager: VmManager) -> Paging:
    [vm] = manager._host.active
    return vm.machine.current.paging


def describe(lab: Lab) -> MachineDescription:
    return read_description(lab.directories.vms, "vm")


def find_pager(lab: Lab) -> int:
    [pid] = [process.pid for process in describe(lab).processes if process.role == "pager"]
    return pid


async def kill_driver(lab: Lab, device: str) -> None:
    """Kill the driver that serves, and wait for the next."""
    count = lab.kinds.count("driver-recovered")
    [pid] = [each.pid for each in describe(lab).processes if (each.device, each.duty) == (device, "active")]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(120):
        while lab.kinds.count("driver-recovered") == count:
            await asyncio.sleep(0.01)


def compare(memory: Path, saved: Path) -> None:
    """All of the saved memory is there, but for what this guest has written since."""
    now, then = memory.read_bytes(), saved.read_bytes()
    assert now[:REMEMBERING_FROM] == then[:REMEMBERING_FROM]
    assert now[REMEMBERING_TO:] == then[REMEMBERING_TO:]
    assert any(then[REMEMBERING_TO:WRITTEN_TO])
    for start in range(REMEMBERING_FROM, REMEMBERING_TO, PAGE):
        assert now[start : start + 8] == then[start : start + 8] == start.to_bytes(8, "little")
        assert now[start + 16 : start + PAGE] == then[start + 16 : start + PAGE]
