"""The process that waits for a machine: what it becomes, and when it is not taken."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.contract.driver_partition.waiting import find_waiting as find_waiting_partitions
from tests.contract.driver_partition.waiting import wait_waiting
from tests.contract.thin_vmm.lab import find_gaps

from duovisor.controlling import machine
from duovisor.controlling.supervision.factories import WAITING
from duovisor.hypervisor import thin_spare
from duovisor.hypervisor.errors import VmmStartError
from duovisor.process_identity import read_children
from duovisor.sandbox import uid_of

if TYPE_CHECKING:
    from tests.contract.thin_vmm.lab import Lab

    from duovisor.controlling.vms.manager import VmManager
    from duovisor.hypervisor.thin_spare import Spare


def find_waiting(manager: VmManager) -> Spare:
    """The one that waits."""
    waiting = manager._host._factories._vmm
    assert waiting is not None
    return waiting


def read_vmm_pids(manager: VmManager) -> tuple[int, int]:
    """The running VMM's own process and bubblewrap's."""
    [vmm] = [each for each in manager._host.active[0].machine.description.processes if each.is_vmm]
    return vmm.pid, vmm.watched_pid


async def test_the_one_that_waits_becomes_the_next_vmm(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        first = find_waiting(manager)
        await manager.stop("vm")
        await manager.start("vm")
        pid, watched = read_vmm_pids(manager)
        assert watched == first._process.pid
        assert read_children(watched) == [pid]
        assert find_waiting(manager) is not first
        said = await lab.wait_more(manager)
        assert find_gaps(said[-50:]) == 0
    async with lab.managed() as manager:  # and another service adopts it
        assert read_vmm_pids(manager) == (pid, watched)
        said = await lab.wait_more(manager)
        assert find_gaps(said[-50:]) == 0


async def test_partitions_that_wait_become_the_next_vms_drivers(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "WAITING_AFTER_S", 3600.0)  # then they come when the test wants them
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        factories = manager._host._factories
        factory = await factories.get()
        devices = manager._host.active[0].machine.devices
        async with asyncio.timeout(60):
            while any(device.describe().spare_pid is None for device in devices.values()):
                await asyncio.sleep(0.02)
        assert find_waiting_partitions(factory.process.pid) == []
        await manager.stop("vm")
        factories.prepare_partitions(0.0)
        waiting = await wait_waiting(factory, WAITING)
        await manager.start("vm")
        serving = {device.describe().pid for device in manager._host.active[0].machine.devices.values()}
        assert len(serving) == 2
        assert serving < set(waiting)
        assert find_gaps((await lab.wait_more(manager))[-50:]) == 0
        pidfds = [os.pidfd_open(pid) for pid in find_waiting_partitions(factory.process.pid)]
    for pidfd in pidfds:  # with the service they are gone
        assert select.select([pidfd], [], [], 0)[0]
        os.close(pidfd)
    async with lab.managed() as manager:
        assert find_gaps((await lab.wait_more(manager))[-50:]) == 0


async def test_a_restored_guest_answers_before_spares_are_started(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SPARES_AFTER_S", 3600.0)
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        await manager.create_snapshot("vm", "one")
        await manager.stop("vm")
        await manager.restore_snapshot("vm", "one")
        factories, vm = manager._host._factories, manager._host.active[0]
        await lab.wait_more(manager)
        assert factories._vmm is None
        statuses = [device.describe() for device in vm.machine.devices.values()]
        assert [status.spare_pid for status in statuses] == [None] * len(statuses)
        factories.prepare_vmm()  # somebody starts another VM: what was to come later, comes now, and once
        find_waiting(manager)
        assert factories._later is None
        for device in vm.machine.devices.values():
            device.want_spare()
        async with asyncio.timeout(60):
            while any(device.describe().spare_pid is None for device in vm.machine.devices.values()):
                await asyncio.sleep(0.02)
        await manager.stop("vm")
        await manager.delete_snapshot("vm", "one")


async def test_it_has_become_somebody_who_can_do_nothing(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        pid, _ = read_vmm_pids(manager)
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0 or (name == "CapBnd" and os.geteuid() != 0), name
        assert (status["NoNewPrivs"], status["Seccomp"], status["Name"]) == ("1", "2", "vm")
        if os.geteuid() == 0:
            assert status["Uid"].split() == status["Gid"].split() == [str(uid_of("vm"))] * 4
            assert status["Groups"].split() == []
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert f"Max data size {132 << 20}" in " ".join(limits.split())
        for name in ("mnt", "pid", "net", "ipc", "uts"):
            assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        held = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        files = {path for path in held if path.startswith("/")}
        vm = manager._host.active[0]
        assert files == {
            "/dev/null", "/dev/kvm", str(lab.root / "kernel"), vm.machine.description.memory_file,
            str(vm.machine.console_log), str(vm.machine.vmm.run_dir / "vmm.log"),
        }  # fmt: skip
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        writable = {where for _, where, _, options, *_ in mounts if "ro" not in options.split(",")}
        assert writable == {"/dev/null", "/dev/urandom"}
        assert not [where for _, where, *_ in mounts if str(lab.root) in where]


async def test_one_that_died_or_runs_old_code_is_not_taken(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        await manager.stop("vm")
        dead = find_waiting(manager)
        dead._process.kill_now()
        await manager.start("vm")
        await manager.stop("vm")
        old = find_waiting(manager)
        assert old is not dead
        monkeypatch.setattr(thin_spare, "read_code", lambda package: (("new.py", 1, 1),))
        await manager.start("vm")
        assert read_vmm_pids(manager)[1] != old._process.pid
        assert old.has_ended


async def test_one_that_dies_when_it_is_taken_fails_the_start_and_no_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        await manager.stop("vm")
        waiting = find_waiting(manager)
        waiting._process.kill_now()
        monkeypatch.setattr(type(waiting), "has_ended", property(lambda spare: False))
        with pytest.raises(VmmStartError, match="vm: its VMM could not be told what to run"):
            await manager.start("vm")
        monkeypatch.undo()
        await manager.start("vm")


async def test_it_ends_with_who_started_it(lab: Lab) -> None:
    async with lab.managed() as manager:
        await lab.define(manager)
        await manager.start("vm")
        waiting = find_waiting(manager)
        pidfd = os.pidfd_open(waiting._process.pid)
        waiting._birth.close()  # as the end of the service does
        assert select.select([pidfd], [], [], 30)[0]
        os.close(pidfd)
        assert os.path.exists(f"/proc/{read_vmm_pids(manager)[0]}")
        os.kill(read_vmm_pids(manager)[0], signal.SIGKILL)
        await manager._host.active[0].wait_gone(timeout_s=30)
