"""Gives a running VM more processors, as many as its specification left room for.

There is no way back while the guest runs: it would have to let go of them, and few do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.plugging.errors import PlugRefusedError
from duovisor.controlling.plugging.plug import to_its_end
from duovisor.hypervisor.vmm_devices import LIVE
from duovisor.spec.vm import VmmKind

if TYPE_CHECKING:
    from duovisor.controlling.machine import Machine


def check_processors(machine: Machine, cpus: int) -> None:
    """Raises ``PlugRefusedError`` for what a running VM cannot have, ``WrongStateError``."""
    machine.vmm.lifecycle.require(LIVE, "add processors to")
    spec = machine.spec
    what = f"cannot give {spec.name} {cpus} processors while it runs"
    if machine.current.decision.kind is VmmKind.THIN:
        raise PlugRefusedError(
            f"{what}: those of the thin VMM are fixed",
            remedy=f"stop it, and duovisor vm edit {spec.name} --set vmm=qemu --set cpus_max={cpus}",
        )
    if cpus < spec.cpus:
        raise PlugRefusedError(
            f"{what}: it has {spec.cpus}, and its guest need not let go of any",
            remedy=f"duovisor vm shutdown {spec.name}",
        )
    if cpus > spec.cpus_room:
        raise PlugRefusedError(
            f"{what}: it was started with room for {spec.cpus_room}",
            remedy=f"shut it down, and duovisor vm edit {spec.name} --set cpus_max={cpus}",
        )


async def add_processors(machine: Machine, cpus: int) -> None:
    """Let a running VM have as many. Raises as ``check_processors``, ``QmpError``; it may have some then."""
    check_processors(machine, cpus)
    async with machine.moving:
        await to_its_end(_add(machine, cpus))


async def _add(machine: Machine, cpus: int) -> None:
    current = machine.current
    try:
        await current.vmm.add_processors(cpus)
    finally:
        there = await current.vmm.count_processors()
        current.spec = current.spec.model_copy(update={"cpus": there})
        machine.write()
