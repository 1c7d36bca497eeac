"""Limits of processors and memory through the manager: in the definition, or refused and unchanged."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.unit.vms.fake_host import build_vm
from tests.unit.vms.fake_qemu import DEVICES, REFUSES_DEVICES

from duovisor.controlling.errors import HostLacksError, ProcessorsTakenError
from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.vms import resource_actions
from duovisor.controlling.vms.errors import VmChangeError
from duovisor.controlling.vms.records import Autostart
from duovisor.controlling.vms.resource_actions import describe_resources
from duovisor.hypervisor.errors import QmpError

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.spec.vm import VirtualMachineSpec

OFF = Autostart()


async def test_a_host_that_cannot_keep_them_refuses_and_nothing_changes(host: Host) -> None:
    host.capabilities = replace(host.capabilities, groups_problem="this host does not run systemd")
    async with host.managed() as manager:
        await manager.create(build_vm(), OFF)
        with pytest.raises(HostLacksError, match="does not run systemd"):
            await manager.set_limits("vm", {"cpu_limit": 1})
        with pytest.raises(VmChangeError, match="more than cpu_limit"):
            await manager.set_limits("vm", {"cpu_limit": 1, "cpu_reservation": 2})
        assert (await manager.get("vm")).record.spec == build_vm()
        await manager.set_limits("vm", {"cpu_limit": None})  # it has none
    assert host.kinds.count("limited") == 1


async def test_a_running_vm_without_a_group_refuses_and_nothing_changes(host: Host) -> None:
    host.capabilities = replace(host.capabilities, groups_problem="")
    async with host.managed() as manager:
        await manager.create(build_vm(), OFF)
        await manager.start("vm")
        with pytest.raises(HostLacksError, match="cannot keep"):
            await manager.set_limits("vm", {"memory_limit_mib": 512})
        vm = await manager.get("vm")
        assert (vm.record.spec, vm.status.restart_needed) == (build_vm(), False)


async def test_what_is_in_force_is_in_the_definition(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[VirtualMachineSpec] = []

    async def note(_: object, spec: VirtualMachineSpec, __: object) -> None:
        asked.append(spec)

    host.capabilities = replace(host.capabilities, groups_problem="")
    monkeypatch.setattr(resource_actions, "change_limits", note)
    async with host.managed() as manager:
        await manager.create(build_vm(), OFF)
        await manager.start("vm")
        vm = await manager.set_limits("vm", {"memory_limit_mib": 512})
        assert asked == [build_vm(memory_limit="512M")] == [vm.record.spec]
        assert not vm.status.restart_needed
        assert describe_resources(vm.record.spec) == "at most 512 MiB of memory"
        await manager.set_limits("vm", {"memory_limit_mib": None})
        assert asked[1:] == [build_vm()]


async def test_processors_of_others_cannot_be_reserved(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def accept(*_: object) -> None:
        return

    monkeypatch.setattr(resource_actions, "change_limits", accept)
    monkeypatch.setattr(resource_actions, "check_group_limits", lambda *_: None)
    async with host.managed() as manager:
        for name in ("vm", "other"):
            await manager.create(build_vm(name), OFF)
            await manager.start(name)
        await manager.set_limits("other", {"cpu_reservation": 1.5})
        await manager.set_limits("other", {"cpu_reservation": 1.75})  # its own do not count
        with pytest.raises(ProcessorsTakenError, match=r"only 0\.25 are left"):
            await manager.set_limits("vm", {"cpu_reservation": 0.5})
        await manager.set_limits("vm", {"cpu_reservation": 0.25})


async def test_processors_come_to_a_vm_with_room(host: Host) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(cpus=2, cpus_max=4), OFF)
        await manager.start("vm")
        for wrong, said in ((5, "cpus 5 is more than cpus_max 4"), (1, "it has 2, and its guest")):
            with pytest.raises((VmChangeError, PlugRefusedError), match=said):
                await manager.set_cpus("vm", wrong)
        vm = await manager.set_cpus("vm", 3)
        assert (vm.record.spec.cpus, vm.status.restart_needed) == (3, False)
        assert read_devices(host) == ["cpu2"]
        (host.root / REFUSES_DEVICES).touch()
        with pytest.raises(QmpError):
            await manager.set_cpus("vm", 4)
        vm = await manager.get("vm")
        assert (vm.record.spec.cpus, vm.status.restart_needed) == (4, True)  # the rest at its next start
        (host.root / REFUSES_DEVICES).unlink()
    async with host.managed() as manager:
        await manager.set_cpus("vm", 4)  # or so
        assert read_devices(host) == ["cpu2", "cpu3"]
        assert not (await manager.get("vm")).status.restart_needed
        await manager.update_vmm("vm")
        assert read_devices(host) == []  # it began with them
        assert not (await manager.get("vm")).status.restart_needed
        await manager.stop("vm")
        vm = await manager.set_cpus("vm", 1)
        assert vm.record.spec.cpus == 1


async def test_processors_that_came_before_the_service_was_killed_are_counted(host: Host) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(cpus_max=2), OFF)
        await manager.start("vm")
        vm = manager._host.find_by_name("vm")
        assert vm is not None
        await vm.machine.vmm.add_processors(2)  # and nothing is written down
    async with host.managed() as manager:
        vm = manager._host.find_by_name("vm")
        assert vm is not None
        assert vm.machine.spec.cpus == 2
        await manager.set_cpus("vm", 2)
        assert not (await manager.get("vm")).status.restart_needed


async def test_a_vm_without_room_says_how_to_get_some(host: Host) -> None:
    async with host.managed() as manager:
        await manager.create(build_vm(), OFF)
        await manager.start("vm")
        with pytest.raises(PlugRefusedError, match="room for 1") as caught:
            await manager.set_cpus("vm", 2)
        assert "cpus_max=2" in caught.value.remedy
        assert (await manager.get("vm")).record.spec.cpus == 1


def read_devices(host: Host) -> list[str]:
    found: list[str] = json.loads((host.root / DEVICES).read_text())["devices"]
    return [name for name in found if name.startswith("cpu")]
