"""More memory through the manager: under the guest and in the definition, or refused and unchanged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.vms.fake_host import build_vm
from tests.unit.vms.fake_qemu import (
    AGENT_SILENT,
    DEVICES,
    MEMORY_ANSWER,
    MEMORY_OFFLINE,
    REFUSES_DEVICES,
)

from duovisor.controlling.errors import MemoryTooLargeError
from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.plugging.memory import UNSEEN
from duovisor.controlling.vms import memory_actions
from duovisor.controlling.vms.errors import VmChangeError
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor import memory as memory_files
from duovisor.hypervisor.errors import QmpError
from duovisor.hypervisor.memory import MODULES, MemoryFileError

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.controlling.machine import Machine
    from duovisor.controlling.vms.manager import VmManager

OFF = Autostart()


async def start(manager: VmManager, memory_mib: int = 16, **document: Any) -> None:
    await manager.create(build_vm(memory_mib=memory_mib, **document), OFF)
    await manager.start("vm")


def find_machine(manager: VmManager) -> Machine:
    vm = manager._host.find_by_name("vm")
    assert vm is not None
    return vm.machine


def read_parts(host: Host, kind: str = "devices") -> list[str]:
    found: list[str] = json.loads((host.root / DEVICES).read_text())[kind]
    return [name for name in found if name.startswith("dimm")]


def read_sizes(manager: VmManager) -> list[int]:
    """Of the files that modules are in, in MiB; those that none is in are empty."""
    return [file.stat().st_size >> 20 for file in find_machine(manager).place.module_files]


async def read(manager: VmManager) -> tuple[int, int, bool]:
    """What the definition says, what the VM has, and whether it needs a restart."""
    vm = await manager.get("vm")
    return vm.record.spec.memory_mib, find_machine(manager).spec.memory_mib, vm.status.restart_needed


async def test_memory_comes_moves_and_is_one_piece_at_the_next_start(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager, memory_max="1G", guest_agent=True)
        vm = await manager.set_memory("vm", 144)
        assert (vm.record.spec.memory_mib, vm.status.restart_needed, vm.status.memory_note) == (
            144,
            False,
            "",
        )
        await manager.set_memory("vm", 400)
        assert (read_parts(host), read_sizes(manager)) == (["dimm0", "dimm1"], [128, 256, *[0] * 6])
        assert [event.message for event in host.events if event.kind == "memory-set"] == [
            "144 MiB of memory", "400 MiB of memory",
        ]  # fmt: skip
    async with host.managed() as manager:  # it counts what there is
        assert await read(manager) == (400, 400, False)
        await manager.update_vmm("vm")
        machine = find_machine(manager)
        words = " ".join(machine.vmm.plan.argv)
        assert "-m 16M,slots=8,maxmem=1024M" in words
        assert words.count("-device pc-dimm") == 2
        await manager.set_memory("vm", 528)
        assert read_parts(host) == ["dimm0", "dimm1", "dimm2"]
        assert await read(manager) == (528, 528, False)
        await manager.stop("vm")
        await manager.start("vm")
        assert "-m 528M,slots=8,maxmem=1024M" in " ".join(find_machine(manager).vmm.plan.argv)
        assert (read_parts(host), await read(manager)) == ([], (528, 528, False))
        await manager.stop("vm")
        assert (await manager.set_memory("vm", 100)).record.spec.memory_mib == 100  # at its next start


async def test_what_cannot_be_is_refused_and_nothing_changes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host.managed() as manager:
        await start(manager, memory_mib=256, memory_max="2G", memory_limit="1G")
        wrong: dict[int, tuple[type[Exception], str]] = {
            128: (PlugRefusedError, "it has 256 MiB, and its guest need not let go"),
            300: (PlugRefusedError, "comes in multiples of 128 MiB"),
            960 + 64: (VmChangeError, "memory_limit is 1024 MiB"),
        }
        for memory_mib, (error, said) in wrong.items():
            with pytest.raises(error, match=said):
                await manager.set_memory("vm", memory_mib)
        host.capabilities = replace(host.capabilities, memory_total_mib=300)
        with pytest.raises(MemoryTooLargeError, match="this host has 300 MiB"):
            await manager.set_memory("vm", 512)
        host.capabilities = replace(host.capabilities, memory_total_mib=4096)
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _: FullFolder)
            with pytest.raises(MemoryFileError, match="256 MiB of guest memory do not fit"):
                await manager.set_memory("vm", 512)
        assert (read_parts(host), set(read_sizes(manager))) == ([], {0})
        assert await read(manager) == (256, 256, False)


class FullFolder:
    f_bavail, f_frsize = 0, 4096


async def test_a_vm_without_room_says_how_to_get_some(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager)
        with pytest.raises(PlugRefusedError, match="room for 16 MiB") as caught:
            await manager.set_memory("vm", 144)
        assert "memory_max=144M" in caught.value.remedy
        assert not any(file.exists() for file in find_machine(manager).place.module_files)


async def test_slots_are_bounded_and_free_again_after_a_start(host: Host) -> None:
    host.capabilities = replace(host.capabilities, memory_total_mib=1 << 20)
    most = 16 + 128 * MODULES
    async with host.managed() as manager:
        await start(manager, memory_max="2G")
        with pytest.raises(VmChangeError, match="more than memory_max 2048"):
            await manager.set_memory("vm", 2049)
        for memory_mib in range(16 + 128, most + 1, 128):
            await manager.set_memory("vm", memory_mib)
        with pytest.raises(PlugRefusedError, match="all 8 slots are taken"):
            await manager.set_memory("vm", most + 128)
        assert await read(manager) == (most, most, False)
        await manager.stop("vm")
        await manager.start("vm")
        await manager.set_memory("vm", most + 128)
        assert read_parts(host) == ["dimm0"]


async def test_a_vmm_that_takes_none_leaves_all_as_it_was(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager, memory_max="1G")
        (host.root / REFUSES_DEVICES).touch()
        with pytest.raises(QmpError):
            await manager.set_memory("vm", 144)
        assert (read_parts(host), read_parts(host, "objects"), set(read_sizes(manager))) == ([], [], {0})
        assert await read(manager) == (16, 16, False)
        (host.root / REFUSES_DEVICES).unlink()
        await manager.set_memory("vm", 144)
        assert await read(manager) == (144, 144, False)


@pytest.mark.parametrize("came", [True, False])
async def test_a_service_that_was_killed_meanwhile(host: Host, *, came: bool) -> None:
    async with host.managed() as manager:
        await start(manager, memory_max="1G")
        machine = find_machine(manager)
        file = machine.place.module_files[0]
        if came:
            await machine.vmm.add_memory(128, file, str(file))  # and nothing is written down
        else:
            memory_files.size_module_file(file, 128)
            backend = {"qom-type": "memory-backend-file", "mem-path": str(file), "size": 128 << 20}
            await machine.vmm._qmp.execute("object-add", id="dimm0-ram", **backend)
    async with host.managed() as manager:
        assert find_machine(manager).spec.memory_mib == (144 if came else 16)
        await manager.set_memory("vm", 272)
        assert await read(manager) == (272, 272, False)
        assert read_parts(host) == (["dimm0", "dimm1"] if came else ["dimm0"])


async def test_what_the_guest_says_is_told(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_actions, "ANSWER_S", 0.0)
    async with host.managed() as manager:
        await start(manager, memory_max="1G")
        (host.root / MEMORY_ANSWER).write_text("0 0")
        said = (await manager.set_memory("vm", 144)).status.memory_note
        assert "has not said that it took" in said
        assert host.events[-1].message == f"144 MiB of memory; {said}"
        monkeypatch.setattr(memory_actions, "ANSWER_S", 600.0)  # a paused one could not answer
        await manager.pause("vm")
        assert (await manager.set_memory("vm", 272)).status.memory_note == said
        await manager.resume("vm")
        (host.root / MEMORY_ANSWER).write_text("1 1")
        assert "refused" in (await manager.set_memory("vm", 272)).status.memory_note
    async with host.managed() as manager:
        assert "refused" in (await manager.get("vm")).status.memory_note
        (host.root / MEMORY_ANSWER).write_text("1 0")
        assert (await manager.set_memory("vm", 272)).status.memory_note == UNSEEN


@pytest.mark.parametrize(("offline", "said"), [("2", ""), ("2 3", "leaves 1 blocks of its memory")])
async def test_an_agent_switches_memory_on(host: Host, offline: str, said: str) -> None:
    (host.root / MEMORY_OFFLINE).write_text(offline)
    async with host.managed() as manager:
        await start(manager, memory_max="1G", guest_agent=True)
        note = (await manager.set_memory("vm", 144)).status.memory_note
        assert said in note
        assert bool(note) == bool(said)


async def test_an_agent_that_is_silent_is_told_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("duovisor.controlling.agent.client.SYNC_S", 0.2)
    (host.root / AGENT_SILENT).touch()
    async with host.managed() as manager:
        await start(manager, memory_max="1G", guest_agent=True)
        note = (await manager.set_memory("vm", 144)).status.memory_note
        assert note.startswith("its guest was not asked to switch on its memory: ")
        assert await read(manager) == (144, 144, False)
