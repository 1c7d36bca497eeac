"""Running VMs get another VMM, and the design of those that do not run is changed."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm, find_processes
from tests.unit.vms.fake_qemu import BANNER, CANNOT_LOAD, NEVER_GREETS, NO_ROOM, VERSION

from duovisor.controlling.errors import HostLacksError
from duovisor.controlling.moving.errors import MoveFailedError, MoveRefusedError
from duovisor.controlling.vms.documents import RUN_KIND, RUNS, Intent, RunDocument
from duovisor.controlling.vms.errors import BusyError, VmNotFoundError
from duovisor.controlling.vms.moves import check_switch, describe_versions
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State
from duovisor.spec.vm import Design, VmmKind

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()


async def start(manager: VmManager) -> int:
    """Define and start a VM; the pid of its VMM."""
    await manager.create(build_vm(), OFF)
    await manager.start("vm")
    return await pid_of(manager)


async def pid_of(manager: VmManager) -> int:
    pid = (await manager.get("vm")).status.pid
    assert pid is not None
    return pid


async def read_run(host: Host) -> RunDocument:
    (entry,) = (await host.store.range(RUNS)).entries
    return RUN_KIND.decode(entry.value, key=entry.key)


async def test_a_vm_gets_the_installed_vmm(host: Host, manager: VmManager) -> None:
    old = await start(manager)
    (host.root / VERSION).write_text("10.0.3")
    said: list[tuple[int, str]] = []
    result = await manager.update_vmm("vm", lambda percent, message: said.append((percent, message)))
    new = await pid_of(manager)
    assert (result.old_pid, result.new_pid) == (old, new)
    assert find_processes(host.root) == {new}
    assert (result.old_version, result.new_version) == ("7.2.0", "10.0.3")
    assert (result.old_design, result.new_design) == (Design.MONOLITHIC, Design.MONOLITHIC)
    assert list(result.step_ms) == [
        "start", "settle", "pause", "save", "translate", "load", "hand_over", "go", "end",
    ]  # fmt: skip
    assert 0 < result.pause_ms < sum(result.step_ms.values()) <= result.total_ms
    assert [percent for percent, _ in said] == sorted(percent for percent, _ in said)
    assert said[1] == (70, "write out what is cached")
    assert said[-1][1].startswith(f"QEMU 7.2.0 → 10.0.3: paused {result.pause_ms:.1f} ms, 0 KiB moved, ")
    assert host.kinds == ["created", "started", "vmm-updated"]
    assert host.events[-1].message.startswith(f"QEMU 7.2.0 → 10.0.3, pid {old} → {new}, paused ")


async def test_the_same_program_replaces_the_process(host: Host, manager: VmManager) -> None:
    await start(manager)
    said: list[str] = []
    for _ in range(2):
        before = await pid_of(manager)
        await manager.update_vmm("vm", lambda percent, message: said.append(message))
        assert await pid_of(manager) != before
        assert said[-1].startswith("the same QEMU 7.2.0: paused ")
    status = (await manager.get("vm")).status
    assert (status.state, status.restart_needed, status.faults) == (State.RUNNING, False, ())


async def test_a_vm_that_has_moved_lives_on(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager)
        seen = bytearray()
        manager.console("vm").attach(seen.extend)
        await manager.update_vmm("vm")
        assert seen == BANNER * 2  # of both: who watches the console goes on with the new one
        await manager.pause("vm")
        await manager.resume("vm")
    async with host.managed() as manager:
        assert host.report.adopted == ("vm",)
        await manager.update_vmm("vm")
        await manager.shutdown("vm")
        assert (await manager.get("vm")).status.state is State.STOPPED


async def test_a_move_that_fails_leaves_the_vm_as_it_was(host: Host, manager: VmManager) -> None:
    pid = await start(manager)
    (host.root / CANNOT_LOAD).touch()
    with pytest.raises(MoveFailedError, match=f"{NO_ROOM}.*it runs on as it was"):
        await manager.update_vmm("vm")
    status = (await manager.get("vm")).status
    assert (status.state, status.pid) == (State.RUNNING, pid)
    assert find_processes(host.root) == {pid}
    assert NO_ROOM in status.faults[-1].message
    assert host.kinds[-1] == "vmm-update-failed"
    (host.root / CANNOT_LOAD).unlink()
    assert (await manager.update_vmm("vm")).old_pid == pid


async def test_a_move_can_be_given_up_until_the_guest_stands_still(host: Host, manager: VmManager) -> None:
    pid = await start(manager)
    (host.root / NEVER_GREETS).touch()
    update = asyncio.create_task(manager.update_vmm("vm"))
    while len(find_processes(host.root)) < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(BusyError):
        await manager.pause("vm")
    update.cancel()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert find_processes(host.root) == {pid}
    status = (await manager.get("vm")).status
    assert (status.state, status.action, status.faults) == (State.RUNNING, "", ())
    assert (host.kinds[-1], host.events[-1].message) == (
        "vmm-update-failed",
        "it was cancelled; it runs on as it was",
    )


async def test_a_move_is_not_given_up_any_more_once_the_guest_stands_still(
    host: Host, manager: VmManager
) -> None:
    pid = await start(manager)
    cancelled = []

    def cancel(percent: int, message: str) -> None:
        if message == "pause the guest":
            cancelled.append(update.cancel())

    update = asyncio.create_task(manager.update_vmm("vm", cancel))
    result = await update
    assert cancelled == [True]
    assert (result.old_pid, result.new_pid) == (pid, await pid_of(manager))
    assert host.kinds[-1] == "vmm-updated"


async def test_what_a_switch_needs_is_checked_before_anything_is_touched(
    host: Host, manager: VmManager
) -> None:
    pid = await start(manager)
    with pytest.raises(MoveRefusedError, match="vm is monolithic already"):
        await manager.switch("vm", Design.MONOLITHIC)
    with pytest.raises(HostLacksError):  # there is no sandbox on the fake host
        await manager.switch("vm", Design.MICROKERNELIZED)
    await manager.pause("vm")
    for refused in (manager.switch("vm", Design.MICROKERNELIZED), manager.update_vmm("vm")):
        with pytest.raises(WrongStateError, match="it is paused"):
            await refused
    view = await manager.get("vm")
    assert (view.status.pid, view.record.spec.design, view.status.faults) == (pid, Design.MONOLITHIC, ())
    run = await read_run(host)
    assert (run.intent, run.switching_to) == (Intent.NONE, None)
    assert host.kinds == ["created", "started", "paused"]


def test_a_guest_of_the_thin_vmm_stays_in_its_design() -> None:
    check_switch("vm", VmmKind.QEMU)
    with pytest.raises(MoveRefusedError, match="vm runs on the thin VMM") as refused:
        check_switch("vm", VmmKind.THIN)
    assert refused.value.remedy == "stop it, and duovisor vm edit vm --set vmm=qemu"


async def test_a_result_names_the_program(manager: VmManager) -> None:
    await start(manager)
    result = await manager.update_vmm("vm")
    assert result.vmm is VmmKind.QEMU
    thin = result.model_copy(update={"vmm": VmmKind.THIN, "old_version": "0.1.0", "new_version": "0.2.0"})
    assert describe_versions(thin) == "thin VMM 0.1.0 → 0.2.0"


async def test_the_running_design_is_not_that_of_the_definition(manager: VmManager) -> None:
    await start(manager)
    await manager.update("vm", build_vm(design="microkernelized"), OFF)
    with pytest.raises(MoveRefusedError) as refused:
        await manager.switch("vm", Design.MONOLITHIC)
    assert "duovisor vm edit vm --set design=monolithic" in refused.value.remedy


async def test_a_vm_that_does_not_run_has_the_design_when_it_starts(host: Host, manager: VmManager) -> None:
    made = await manager.create(build_vm(cpus=3), Autostart(enabled=True))
    said: list[str] = []
    result = await manager.switch("vm", Design.MICROKERNELIZED, lambda percent, message: said.append(message))
    assert (result, said) == (None, ["microkernelized at its next start"])
    record = (await manager.get("vm")).record
    assert record.spec == made.record.spec.model_copy(update={"design": Design.MICROKERNELIZED})
    assert record.autostart.enabled
    assert host.events[-1].message == "monolithic → microkernelized at its next start"
    with pytest.raises(MoveRefusedError, match="already"):
        await manager.switch("vm", Design.MICROKERNELIZED)
    with pytest.raises(WrongStateError, match="cannot update the VMM of vm: it does not run"):
        await manager.update_vmm("vm")
    with pytest.raises(VmNotFoundError):
        await manager.switch("none", Design.MONOLITHIC)


@pytest.mark.parametrize("wanted", list(Design))
async def test_an_interrupted_switch_is_settled_by_what_runs(host: Host, wanted: Design) -> None:
    """The service is killed while it switches: the VM of this test runs monolithic after that."""
    defined = Design.MICROKERNELIZED if wanted is Design.MONOLITHIC else Design.MONOLITHIC
    async with host.managed() as manager:
        pid = await start(manager)
        await manager.update("vm", build_vm(design=defined, cpus=2), OFF)
    await write_switch(host, wanted)
    async with host.managed() as manager:
        view = await manager.get("vm")
        assert view.status.pid == pid
        assert (view.record.spec.design, view.record.spec.cpus) == (Design.MONOLITHIC, 2)
        if wanted is Design.MONOLITHIC:
            assert (host.report.finished, host.report.rolled_back) == (("vm",), ())
            assert (host.kinds[-2:], view.status.faults) == (["switched", "adopted"], ())
        else:
            assert (host.report.finished, host.report.rolled_back) == ((), ("vm",))
            assert host.kinds[-2:] == ["switch-failed", "adopted"]
            assert "it runs on as it was" in view.status.faults[-1].message
    run = await read_run(host)
    assert (run.intent, run.switching_to) == (Intent.NONE, None)
    async with host.managed() as manager:
        assert (host.report.finished, host.report.rolled_back) == ((), ())


async def test_a_design_that_was_edited_is_not_taken_back(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager)
        await manager.update("vm", build_vm(design="microkernelized"), OFF)
    async with host.managed() as manager:
        view = await manager.get("vm")
        assert (view.record.spec.design, view.status.restart_needed) == (Design.MICROKERNELIZED, True)


async def test_a_vm_that_ended_with_an_interrupted_switch(host: Host) -> None:
    async with host.managed() as manager:
        pid = await start(manager)
    await write_switch(host, Design.MICROKERNELIZED)
    os.kill(pid, 9)
    while pid in find_processes(host.root):
        await asyncio.sleep(0.01)
    async with host.managed() as manager:
        assert (host.report.ended, host.report.finished) == (("vm",), ())
        status = (await manager.get("vm")).status
        assert (status.state, status.faults[-1].message) == (
            State.STOPPED,
            "ended while the service was away",
        )


async def write_switch(host: Host, wanted: Design) -> None:
    """What a service leaves that is killed in the middle of a switch."""
    run = (await read_run(host)).changed(intent=Intent.SWITCH, switching_to=wanted)
    await host.store.put(RUNS + run.uuid, RUN_KIND.encode(run))
