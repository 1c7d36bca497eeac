"""Gives a running VM more memory, as much as its specification left room for, one module each time.

There is no way back while the guest runs: it would have to clear a module of all that it keeps there. At its
next start the VM has all of its memory in one piece, and its slots are free again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.plugging.plug import to_its_end
from duovisor.controlling.preflight import check_memory
from duovisor.hypervisor.build import show_module
from duovisor.hypervisor.lifecycle import State
from duovisor.hypervisor.memory import MODULE_STEP_MIB, MODULES, check_free
from duovisor.hypervisor.memory_modules import Answer
from duovisor.hypervisor.vmm_devices import LIVE
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine

UNSEEN = "its guest knows of what came; whether it uses it, only a guest agent can tell"
NOTES = {
    Answer.TAKEN: "",
    Answer.REFUSED: "its guest refused some of its memory; it has all of it after a restart",
    Answer.NONE: "its guest has not said that it took all of its memory; set-memory asks again",
}


def check_growth(machine: Machine, memory_mib: int, host_memory_mib: int) -> None:
    """Raises ``PlugRefusedError`` for what a running VM cannot have, ``WrongStateError``.

    Also ``MemoryTooLargeError`` and ``MemoryFileError`` for what its host has not.
    """
    machine.vmm.lifecycle.require(LIVE, "add memory to")
    spec = machine.spec
    what = f"cannot give {spec.name} {memory_mib} MiB of memory while it runs"
    if machine.current.decision.kind is VmmKind.THIN:
        raise PlugRefusedError(
            f"{what}: that of the thin VMM is fixed",
            remedy=f"stop it, and duovisor vm edit {spec.name} --set vmm=qemu --set memory_max={memory_mib}M",
        )
    if memory_mib < spec.memory_mib:
        raise PlugRefusedError(
            f"{what}: it has {spec.memory_mib} MiB, and its guest need not let go of any",
            remedy=f"duovisor vm shutdown {spec.name}",
        )
    if memory_mib > spec.memory_room_mib:
        raise PlugRefusedError(
            f"{what}: it was started with room for {spec.memory_room_mib} MiB",
            remedy=f"shut it down, and duovisor vm edit {spec.name} --set memory_max={memory_mib}M",
        )
    if rest := (memory_mib - spec.memory_mib) % MODULE_STEP_MIB:
        wider = memory_mib + MODULE_STEP_MIB - rest
        fits = [str(each) for each in (memory_mib - rest, wider) if each <= spec.memory_room_mib]
        raise PlugRefusedError(
            f"{what}: it has {spec.memory_mib} MiB, and more comes in multiples of {MODULE_STEP_MIB} MiB",
            remedy=f"{' or '.join(fits)} MiB would do",
        )
    if memory_mib == spec.memory_mib:
        return
    if len(machine.vmm.plan.modules_mib) >= MODULES:
        raise PlugRefusedError(
            f"{what}: all {MODULES} slots are taken, one for each time that it got more",
            remedy="they are free again after its next start, which gives it what it has in one piece",
        )
    check_memory(spec.model_copy(update={"memory_mib": memory_mib}), host_memory_mib)
    check_free(machine.place.memory_file.parent, memory_mib - spec.memory_mib)


async def add_memory(machine: Machine, memory_mib: int) -> None:
    """Let a running VM have as much, after ``check_growth``. Raises ``HypervisorError``; it is as it was."""
    async with machine.moving:
        if memory_mib > machine.spec.memory_mib:
            await to_its_end(_add(machine, memory_mib - machine.spec.memory_mib))


async def look_at_memory(machine: Machine, timeout_s: float = 0.0) -> str:
    """What there is to say of memory that came to a VM.

    Nothing, when its guest said that it took it, and has an agent, which can be asked whether it uses it.
    """
    if not machine.vmm.plan.modules_mib or machine.vmm.state not in LIVE:
        return ""
    runs = machine.vmm.state is State.RUNNING
    answer = await machine.vmm.wait_memory_taken(timeout_s if runs else 0.0)
    return UNSEEN if answer is Answer.TAKEN and not machine.spec.guest_agent else NOTES[answer]


async def _add(machine: Machine, mib: int) -> None:
    current, number = machine.current, len(machine.vmm.plan.modules_mib)
    file = machine.place.module_files[number]
    booted_mib = current.spec.memory_mib - sum(current.vmm.plan.modules_mib)
    try:
        await current.vmm.add_memory(mib, file, show_module(current.spec.design, number, file))
    finally:
        memory_mib = booted_mib + await current.vmm.count_modules()
        current.spec = current.spec.model_copy(update={"memory_mib": memory_mib})
        machine.write()
