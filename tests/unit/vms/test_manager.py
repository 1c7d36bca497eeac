"""VMs by name: their definitions, their lives, and one thing at a time."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm, find_files
from tests.unit.vms.fake_qemu import BANNER, ENDS_AT_ONCE, IGNORES_POWER

from duovisor.controlling.errors import ProcessorsTakenError
from duovisor.controlling.vms.errors import (
    BusyError,
    RevisionConflictError,
    ShutdownTimeoutError,
    VmChangeError,
    VmNameInUseError,
    VmNotFoundError,
)
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()


async def state_of(manager: VmManager, name: str = "vm") -> State:
    return (await manager.get(name)).status.state


async def test_definitions(manager: VmManager) -> None:
    first = await manager.create(build_vm("b"), OFF)
    await manager.create(build_vm("a"), Autostart(enabled=True, order=2))
    await manager.create(build_vm("c"), OFF)
    assert first.status.state is State.DEFINED
    with pytest.raises(VmNameInUseError):
        await manager.create(build_vm("b"), OFF)
    page = await manager.list(2)
    assert [vm.record.name for vm in page.items] == ["a", "b"]
    assert [vm.record.name for vm in (await manager.list(2, page.after)).items] == ["c"]
    assert (await manager.list(2, page.after)).after is None
    changed = await manager.update("b", build_vm("b", cpus=2), OFF, first.record.revision)
    assert changed.record.spec.cpus == 2
    assert (changed.record.uuid, changed.record.created_at) == (first.record.uuid, first.record.created_at)
    with pytest.raises(RevisionConflictError):
        await manager.update("b", build_vm("b", cpus=3), OFF, first.record.revision)
    with pytest.raises(VmChangeError):
        await manager.update("b", build_vm("other"), OFF)
    with pytest.raises(RevisionConflictError):
        await manager.delete("b", first.record.revision)
    with pytest.raises(VmNameInUseError):
        await manager.rename("b", "c")
    renamed = await manager.rename("b", "d", changed.record.revision)
    assert (renamed.record.name, renamed.record.spec.name, renamed.record.uuid) == (
        "d",
        "d",
        first.record.uuid,
    )
    await manager.delete("d", renamed.record.revision)
    for lost in ("b", "d"):
        with pytest.raises(VmNotFoundError):
            await manager.get(lost)


async def test_one_of_many_changes_wins(manager: VmManager) -> None:
    seen = (await manager.create(build_vm(), OFF)).record.revision
    changes = [manager.update("vm", build_vm(cpus=cpus), OFF, seen) for cpus in range(1, 9)]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert all(isinstance(o, BusyError | RevisionConflictError) for o in outcomes if isinstance(o, Exception))


async def test_a_life(host: Host, manager: VmManager) -> None:
    await manager.create(build_vm(), OFF)
    said: list[int] = []
    await manager.start("vm", lambda percent, message: said.append(percent))
    assert said == sorted(said)
    assert said[-1] == 100
    status = (await manager.get("vm")).status
    assert (status.state, [process.role for process in status.processes]) == (State.RUNNING, ["vmm"])
    assert "run vm" in find_files(host.directories)
    await manager.pause("vm")
    assert await state_of(manager) is State.PAUSED
    await manager.reset("vm")
    await manager.resume("vm")
    await manager.shutdown("vm")
    assert await state_of(manager) is State.STOPPED
    assert not find_files(host.directories)
    await manager.start("vm")
    await manager.stop("vm")
    assert (await manager.get("vm")).status.faults == ()
    assert host.kinds == [
        "created", "started", "paused", "reset", "resumed", "stopped", "started", "stopped",
    ]  # fmt: skip


async def test_wrong_states_change_nothing(manager: VmManager) -> None:
    await manager.create(build_vm(), OFF)
    for action in (manager.stop, manager.pause, manager.resume, manager.reset, manager.shutdown):
        with pytest.raises(WrongStateError, match="does not run"):
            await action("vm")
        with pytest.raises(VmNotFoundError):
            await action("none")
    with pytest.raises(WrongStateError):
        manager.console("vm")
    await manager.start("vm")
    with pytest.raises(WrongStateError, match="cannot start vm: it is running"):
        await manager.start("vm")
    with pytest.raises(WrongStateError, match="cannot delete"):
        await manager.delete("vm")
    with pytest.raises(WrongStateError, match="cannot rename"):
        await manager.rename("vm", "other")
    with pytest.raises(WrongStateError, match="cannot resume"):
        await manager.resume("vm")
    changed = await manager.update("vm", build_vm(cpus=2), OFF)
    assert changed.status.restart_needed
    await manager.stop("vm")


async def test_one_action_at_a_time(host: Host, manager: VmManager) -> None:
    (host.root / IGNORES_POWER).touch()
    await manager.create(build_vm(), OFF)
    starts = await asyncio.gather(*(manager.start("vm") for _ in range(5)), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in starts) == ["BusyError"] * 4 + ["NoneType"]
    shutdown = asyncio.create_task(manager.shutdown("vm", 30))
    await asyncio.sleep(0.05)
    assert (await manager.get("vm")).status.action == "shutdown"
    for action in (manager.pause, manager.start, manager.delete, manager.reset):
        with pytest.raises(BusyError):
            await action("vm")
    await manager.stop("vm")  # the plug can be pulled while the guest takes its time
    await shutdown
    assert await state_of(manager) is State.STOPPED


async def test_a_guest_that_does_not_shut_down_runs_on(host: Host, manager: VmManager) -> None:
    (host.root / IGNORES_POWER).touch()
    await manager.create(build_vm(), OFF)
    await manager.start("vm")
    with pytest.raises(ShutdownTimeoutError):
        await manager.shutdown("vm", 0.05)
    assert await state_of(manager) is State.RUNNING
    await manager.pause("vm")


async def test_a_guest_that_ends_before_the_button_is_acknowledged_has_shut_down(
    host: Host, manager: VmManager
) -> None:
    (host.root / ENDS_AT_ONCE).touch()
    await manager.create(build_vm(), OFF)
    await manager.start("vm")
    await manager.shutdown("vm")
    assert await state_of(manager) is State.STOPPED


async def test_a_killed_vmm_is_a_crash(host: Host, manager: VmManager) -> None:
    await manager.create(build_vm(), OFF)
    await manager.start("vm")
    pid = (await manager.get("vm")).status.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await host.wait_for("crashed")
    assert await state_of(manager) is State.CRASHED
    assert not find_files(host.directories)
    assert "was killed by SIGKILL" in (await manager.get("vm")).status.faults[-1].message
    await manager.start("vm")
    assert await state_of(manager) is State.RUNNING


async def test_a_start_that_fails_leaves_nothing(host: Host, manager: VmManager) -> None:
    qemu = host.root / "qemu-system-x86_64"
    qemu.write_text("#!/bin/sh\necho no room on the moon\nexit 1\n")
    await manager.create(build_vm(), OFF)
    with pytest.raises(Exception, match="no room on the moon"):
        await manager.start("vm")
    assert not find_files(host.directories)
    status = (await manager.get("vm")).status
    assert status.state is State.DEFINED
    assert "no room on the moon" in status.faults[-1].message
    assert host.kinds[-1] == "start-failed"


async def test_a_cancelled_start_leaves_nothing(host: Host, manager: VmManager) -> None:
    (host.root / "qemu-system-x86_64").write_text("#!/bin/sh\nexec sleep 600\n")
    await manager.create(build_vm(), OFF)
    start = asyncio.create_task(manager.start("vm"))
    await asyncio.sleep(0.1)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not find_files(host.directories)
    assert await state_of(manager) is State.DEFINED


async def test_console_is_kept(manager: VmManager) -> None:
    await manager.create(build_vm(), OFF)
    await manager.start("vm")
    seen, complete = bytearray(), asyncio.Event()

    def show(data: bytes) -> None:
        seen.extend(data)
        if seen.endswith(b"typed"):
            complete.set()

    detach = manager.console("vm").attach(show)
    manager.console("vm").write(b"typed")
    async with asyncio.timeout(10):
        await complete.wait()
    detach()
    await manager.stop("vm")
    assert await manager.read_console_log("vm", 1000) == BANNER + b"typed"
    assert await manager.read_console_log("vm", 3) == b"ped"
    await manager.start("vm")
    await manager.stop("vm")
    assert (await manager.read_console_log("vm", 1000)).startswith(BANNER + b"typed")
    await manager.delete("vm")


async def test_fifty_at_once(host: Host, manager: VmManager) -> None:
    names = [f"vm{number:02}" for number in range(50)]
    for name in names:
        await manager.create(build_vm(name), OFF)
    await asyncio.gather(*map(manager.start, names))
    assert {vm.status.state for vm in (await manager.list()).items} == {State.RUNNING}
    await asyncio.gather(*map(manager.stop, names))
    assert not find_files(host.directories)


async def test_more_processors_are_not_reserved_than_there_are(manager: VmManager) -> None:
    await manager.create(build_vm(cpu_reservation=3), OFF)
    with pytest.raises(ProcessorsTakenError, match="only 2 are left"):
        await manager.start("vm")
    assert (await manager.get("vm")).status.state is State.DEFINED
