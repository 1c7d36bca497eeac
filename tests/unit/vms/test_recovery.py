"""One manager after the other: what runs is adopted, what ended is told, what is left is removed."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm, find_files, find_processes, kill_and_wait
from tests.unit.vms.fake_qemu import BANNER, RESET_MESSAGE

from duovisor.controlling.description import FILE
from duovisor.controlling.errors import NameInUseError
from duovisor.controlling.machine import start_machine
from duovisor.controlling.store.records import Delete, Transaction
from duovisor.controlling.vms import actions
from duovisor.controlling.vms.documents import VMS
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.qemu.console import QMP_SOCKET
from duovisor.hypervisor.qmp import Qmp

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()


async def start_vm(host: Host, name: str = "vm", **document: object) -> int:
    """Start a VM with a manager that ends; returns the VMM's pid."""
    async with host.managed() as manager:
        await manager.create(build_vm(name, **document), OFF)
        await manager.start(name)
        pid = (await manager.get(name)).status.pid
    assert pid is not None
    return pid


async def states(manager: VmManager) -> dict[str, State]:
    return {vm.record.name: vm.status.state for vm in (await manager.list()).items}


async def test_vms_outlive_the_manager(host: Host) -> None:
    pid = await start_vm(host)
    assert find_processes(host.root) == {pid}
    async with host.managed() as manager:
        assert host.report.adopted == ("vm",), host.events
        status = (await manager.get("vm")).status
        assert (status.pid, status.state) == (pid, State.RUNNING)
        await manager.pause("vm")
    async with host.managed() as manager:
        assert await states(manager) == {"vm": State.PAUSED}
        await manager.resume("vm")
        await manager.shutdown("vm")
        assert await states(manager) == {"vm": State.STOPPED}
    assert host.kinds[-1] == "stopped"
    assert host.kinds.count("adopted") == 2


async def test_a_vm_that_was_reset_while_paused_is_adopted(host: Host) -> None:
    pid = await start_vm(host)
    async with host.managed() as manager:
        await manager.pause("vm")
        await manager.reset("vm")
    async with host.managed() as manager:
        status = (await manager.get("vm")).status
        assert (status.pid, status.state) == (pid, State.PAUSED)
        await manager.resume("vm")
        assert await states(manager) == {"vm": State.RUNNING}


async def test_what_is_printed_without_a_manager_is_kept_and_shown(host: Host) -> None:
    await start_vm(host)
    monitor = Qmp("vm")
    await monitor.connect(host.directories.vms / "vm/current" / f"{QMP_SOCKET}.sock")
    await monitor.system_reset()
    await monitor.disconnect()
    async with host.managed() as manager:
        seen = bytearray()
        manager.console("vm").attach(seen.extend)
        assert seen.startswith(BANNER + RESET_MESSAGE)
        assert (await manager.read_console_log("vm", 1000)).startswith(BANNER + RESET_MESSAGE)


async def test_an_adopted_vmm_that_is_killed_has_crashed(host: Host) -> None:
    pid = await start_vm(host)
    async with host.managed() as manager:
        os.kill(pid, signal.SIGKILL)
        await host.wait_for("crashed")
        assert await states(manager) == {"vm": State.CRASHED}


async def test_ended_while_nobody_looked(host: Host) -> None:
    kill_and_wait(await start_vm(host))
    async with host.managed() as manager:
        assert host.report.ended == ("vm",)
        status = (await manager.get("vm")).status
        assert (status.state, status.faults[-1].message) == (
            State.STOPPED,
            "ended while the service was away",
        )
        assert not find_files(host.directories)


async def test_after_a_restart_of_the_host(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_and_wait(await start_vm(host))
    async with host.managed() as manager:
        await manager.create(build_vm("wanted"), Autostart(enabled=True))
        await manager.start_autostart_vms()
        assert await states(manager) == {"vm": State.STOPPED, "wanted": State.RUNNING}
        await manager.stop("wanted")
        await manager.start_autostart_vms()  # once in each boot
        await manager.start("vm")
        pid = (await manager.get("vm")).status.pid
        assert pid is not None
    kill_and_wait(pid)
    monkeypatch.setattr(actions, "read_boot_id", lambda: "another boot")
    async with host.managed() as manager:
        assert host.report.host_restarted
        assert await states(manager) == {"vm": State.STOPPED, "wanted": State.DEFINED}
        assert "the host, which was restarted" in (await manager.get("vm")).status.faults[-1].message
        await manager.start_autostart_vms()
        assert await states(manager) == {"vm": State.STOPPED, "wanted": State.RUNNING}


async def test_autostart_keeps_order_and_goes_on_after_a_failure(host: Host) -> None:
    async with host.managed() as manager:
        for name, order in (("late", 9), ("early", 1), ("broken", 1)):
            kernel = {"kernel": {"path": "/none"}, "firmware": "direct-kernel"} if name == "broken" else {}
            await manager.create(build_vm(name, **kernel), Autostart(enabled=True, order=order, delay_s=0.01))
        await manager.create(build_vm("never"), OFF)
        await manager.start_autostart_vms()
        assert await states(manager) == {
            "broken": State.DEFINED, "early": State.RUNNING, "late": State.RUNNING, "never": State.DEFINED,
        }  # fmt: skip
    started = [event.name for event in host.events if event.kind == "started"]
    assert started == ["early", "late"]


async def test_a_silent_vmm_is_ended(host: Host) -> None:
    pid = await start_vm(host)
    (host.directories.vms / "vm/1/qmp.sock").unlink()
    async with host.managed() as manager:
        assert await states(manager) == {"vm": State.CRASHED}
        assert "could not be adopted" in (await manager.get("vm")).status.faults[-1].message
        assert pid not in find_processes(host.root)


async def test_a_running_vm_that_the_store_forgot_comes_back(host: Host) -> None:
    pid = await start_vm(host)
    await host.store.commit(Transaction(then=(Delete(VMS + "vm"),)))
    async with host.managed() as manager:
        assert (await manager.get("vm")).status.pid == pid
        assert len(host.report.problems) == 1


async def test_a_name_that_is_another_vm_s_now(host: Host) -> None:
    pid = await start_vm(host)
    old = await host.store.delete(VMS + "vm")
    assert old is not None
    async with host.managed() as manager:
        pass
    await host.store.delete(VMS + "vm")
    async with host.managed() as manager:
        assert (await manager.get("vm")).status.pid == pid


async def test_what_another_version_wrote_is_left_alone(host: Host) -> None:
    pid = await start_vm(host)
    description = host.directories.vms / "vm" / FILE
    text = description.read_text()
    description.write_text('{"version": 99}')
    async with host.managed():
        assert "was left alone" in host.report.problems[0]
        assert pid in find_processes(host.root)
    description.write_text(text)


async def test_leftovers_of_no_vm(host: Host) -> None:
    async with host.managed():
        pass
    (host.directories.vms / "gone").mkdir(parents=True)
    (host.directories.state / "consoles/gone.log").touch()
    async with host.managed():
        assert len(host.report.removed) == 2
    assert not find_files(host.directories)


async def test_a_foreground_vm_is_somebody_else_s(host: Host) -> None:
    async with start_machine(build_vm("front"), host.capabilities, host.directories) as machine:
        async with host.managed() as manager:
            await manager.create(build_vm("front"), OFF)
            with pytest.raises(NameInUseError, match="runs already"):
                await manager.start("front")
        assert machine.vmm.state is State.RUNNING


async def test_a_foreground_vm_does_not_take_the_name_of_one_that_runs(host: Host) -> None:
    pid = await start_vm(host)
    with pytest.raises(NameInUseError, match="the service that started it does not"):
        async with start_machine(build_vm(), host.capabilities, host.directories):
            pass
    assert find_processes(host.root) == {pid}
