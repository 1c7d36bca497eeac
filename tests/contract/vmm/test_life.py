"""What every VMM does for its owner, whichever it is: the life of a VM with drivers outside, from end to end.

The guest counts, so nothing that it did may be missing or done twice, whatever is done to the VM meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import find_gaps

from duovisor.controlling.supervision.records import DeviceState
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.vmm.conftest import Stage

    from duovisor.controlling.vms.manager import VmManager
    from duovisor.controlling.vms.records import VmStatus


async def read_status(manager: VmManager) -> VmStatus:
    return (await manager.get("vm")).status


async def wait_status(manager: VmManager, is_so: Callable[[VmStatus], bool]) -> VmStatus:
    async with asyncio.timeout(60):
        while not is_so(status := await read_status(manager)):
            await asyncio.sleep(0.02)
    return status


async def wait_disk(manager: VmManager, *, after: int = 0) -> int:
    """The disk's driver, another one than ``after``, once it serves and has a spare beside it."""

    def find(status: VmStatus) -> int | None:
        [disk] = [each for each in status.drivers if each.device == "disk0"]
        served = disk.state is DeviceState.RUNNING and disk.spare_pid is not None
        return disk.pid if served and disk.pid != after else None

    found = find(await wait_status(manager, lambda status: find(status) is not None))
    assert found is not None
    return found


async def read_said(manager: VmManager) -> bytes:
    return await manager.read_console_log("vm", 1 << 20)


async def test_from_start_to_stop(stage: Stage) -> None:
    async with stage.managed() as manager:
        await stage.start(manager)
        said = await stage.wait_more(manager)
        assert (said[:1], find_gaps(said)) == (b"b", 0)
        status = await read_status(manager)
        assert (status.state, status.vmm) == (State.RUNNING, stage.kind)
        with pytest.raises(WrongStateError):
            await manager.resume("vm")

        await manager.pause("vm")
        said = await read_said(manager)
        assert (await read_status(manager)).state is State.PAUSED
        for refused in (manager.pause, manager.update_vmm):
            with pytest.raises(WrongStateError):
                await refused("vm")
        assert await read_said(manager) == said
        await manager.resume("vm")
        assert find_gaps(await stage.wait_more(manager)) == 0

        await manager.reset("vm")
        count = len(await read_said(manager))
        said = await stage.wait_ticks(manager, count + 64)
        assert find_gaps(said) <= 1  # where it began anew
        assert find_gaps(said[-32:]) == 0

        await manager.stop("vm")
        assert (await read_status(manager)).state is State.STOPPED
    assert stage.kinds == ["created", "started", "paused", "resumed", "reset", "stopped"]


async def test_a_guest_that_switches_itself_off(stage: Stage) -> None:
    async with stage.managed() as manager:
        await stage.start(manager, leaving=True)
        status = await wait_status(manager, lambda status: status.state is State.STOPPED)
        assert status.faults == ()
        assert await read_said(manager) == b"o"
    assert stage.kinds == ["created", "started", "stopped"]


async def test_a_vmm_that_is_killed(stage: Stage) -> None:
    async with stage.managed() as manager:
        await stage.start(manager)
        await stage.wait_ticks(manager, 10)
        pid = (await read_status(manager)).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await wait_status(manager, lambda status: status.state is State.CRASHED)
        before = len(await read_said(manager))
        await manager.start("vm")
        said = await stage.wait_ticks(manager, before + 32)
        assert find_gaps(said[before:]) == 0
        await manager.stop("vm")
    assert stage.kinds == ["created", "started", "crashed", "started", "stopped"]


async def test_services_drivers_and_vmms_come_and_go_under_a_guest(stage: Stage) -> None:
    async with stage.managed() as manager:
        await stage.start(manager)
        await stage.wait_ticks(manager, 10)
        before = await read_status(manager)

    async with stage.managed() as manager:  # another service finds it
        status = await read_status(manager)
        assert (status.state, status.pid, status.vmm) == (State.RUNNING, before.pid, stage.kind)
        assert find_gaps(await stage.wait_more(manager)) == 0

        disk = await wait_disk(manager)
        os.kill(disk, signal.SIGKILL)
        succeeded = await wait_disk(manager, after=disk)
        replaced = await manager.replace_driver("vm", "disk0", latest=True)
        assert replaced.old_pid == succeeded
        assert find_gaps(await stage.wait_more(manager)) == 0

        await wait_disk(manager, after=succeeded)
        moved = await manager.update_vmm("vm")  # a new VMM takes the guest over
        assert (moved.vmm, moved.old_pid) == (stage.kind, before.pid)
        assert find_gaps(await stage.wait_more(manager)) == 0
        await manager.pause("vm")

    async with stage.managed() as manager:
        status = await read_status(manager)
        assert (status.state, status.pid) == (State.PAUSED, moved.new_pid)
        await manager.resume("vm")
        assert find_gaps(await stage.wait_more(manager)) == 0
        await manager.stop("vm")
    assert {"driver-recovered", "driver-replaced", "vmm-updated", "adopted"} <= set(stage.kinds)
