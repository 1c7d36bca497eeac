"""What every VMM does for its owner, whichever it is: the life of a VM with drivers outside, from end to end.

The guest counts, so nothing that it did may be missing or done twice, whatever is done to the VM meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.contract.thin_vmm.lab import DISK_BYTES, find_gaps
from tests.contract.vmm.two_way_guest import count_for_ever, obey_button, switch_off

from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.supervision.records import DeviceState
from duovisor.controlling.vms.errors import ShutdownTimeoutError
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.vmm import Vmm
from duovisor.spec.vm import DiskSpec, NicSpec, VmmKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tests.contract.vmm.conftest import Stage

    from duovisor.controlling.vms.manager import VmManager
    from duovisor.controlling.vms.records import VmStatus


PATIENCE_S = 60.0  # for what hangs


async def read_status(manager: VmManager) -> VmStatus:
    return (await manager.get("vm")).status


async def wait_status(manager: VmManager, is_so: Callable[[VmStatus], bool]) -> VmStatus:
    async with asyncio.timeout(60):
        while not is_so(status := await read_status(manager)):
            await asyncio.sleep(0.02)
    return status


async def wait_disk(manager: VmManager, name: str = "disk0", *, after: int = 0) -> int:
    """A disk's driver, another one than ``after``, once it serves and has a spare beside it."""

    def find(status: VmStatus) -> int | None:
        [disk] = [each for each in status.drivers if each.device == name]
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


async def let_switch_off(stage: Stage) -> None:
    """A guest's short life, and what is known of it afterwards."""
    async with stage.managed() as manager:
        await stage.start(manager, switch_off)
        status = await wait_status(manager, lambda status: status.state is State.STOPPED)
        assert status.faults == ()
        assert await read_said(manager) == b"o"
    assert stage.kinds == ["created", "started", "stopped"]


async def test_a_guest_that_switches_itself_off(stage: Stage) -> None:
    await let_switch_off(stage)


async def test_a_guest_that_has_ended_before_anybody_looks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Vmm._wait_told

    async def wait_told_late(self: Vmm, states: Collection[State], action: str) -> State:
        if action == "start":
            await self.lifecycle.wait_for(())
        return await real(self, states, action)

    monkeypatch.setattr(Vmm, "_wait_told", wait_told_late)
    await let_switch_off(stage)


async def test_the_power_button(stage: Stage) -> None:
    async with stage.managed() as manager:
        await stage.start(manager)
        await stage.wait_ticks(manager, 10)
        with pytest.raises(ShutdownTimeoutError):  # its guest has no ear for it
            await manager.shutdown("vm", timeout_s=0.2)
        assert find_gaps(await stage.wait_more(manager)) == 0
        await manager.stop("vm")

        before = await read_said(manager)
        stage.load(obey_button)
        await manager.start("vm")
        assert (await stage.wait_ticks(manager, len(before) + 1))[len(before) :] == b"r"
        await manager.shutdown("vm", timeout_s=PATIENCE_S)
        status = await read_status(manager)
        assert (status.state, status.faults) == (State.STOPPED, ())
        assert (await read_said(manager))[len(before) :] == b"ro"
    assert stage.kinds == ["created", "started", "stopped", "started", "stopped"]


async def test_devices_that_come_and_go_under_a_guest(stage: Stage) -> None:
    """All of it on QEMU; the thin VMM has no hot-plug, and says so before anything is touched."""
    extra = stage.root / "extra.raw"
    extra.write_bytes(bytes(DISK_BYTES))
    async with stage.managed() as manager:
        await stage.start(manager, partial(count_for_ever, letting_go=True))
        await wait_disk(manager)
        before, defined = await read_status(manager), (await manager.get("vm")).record.spec

        if stage.kind is VmmKind.THIN:
            for refused in (
                manager.attach("vm", DiskSpec(path=str(extra))),
                manager.attach("vm", NicSpec()),
                manager.detach("vm", "disk0"),
            ):
                with pytest.raises(PlugRefusedError, match="the devices of the thin VMM are fixed") as why:
                    await refused
                assert why.value.remedy == "stop it, and duovisor vm edit vm --set vmm=qemu"
        else:
            await manager.attach("vm", DiskSpec(path=str(extra)))
            disk = await wait_disk(manager, "disk1")
            os.kill(disk, signal.SIGKILL)
            await wait_disk(manager, "disk1", after=disk)
            assert find_gaps(await stage.wait_more(manager)) == 0
            await manager.detach("vm", "disk1", timeout_s=PATIENCE_S)
            await manager.attach("vm", NicSpec())
            assert len((await manager.get("vm")).record.spec.nics) == 1
            await manager.detach("vm", "nic0", timeout_s=PATIENCE_S)

        assert (await manager.get("vm")).record.spec == defined
        after = await read_status(manager)
        assert [each.device for each in after.drivers] == [each.device for each in before.drivers]
        assert after.pid == before.pid
        assert find_gaps(await stage.wait_more(manager)) == 0
        await manager.stop("vm")


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
