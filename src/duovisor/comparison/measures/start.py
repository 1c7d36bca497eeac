"""How long a VM takes: from specification to running VMM, and to the guest's word that it is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.measures.context import Context, Figures

if TYPE_CHECKING:
    from duovisor.spec.vm import Design


async def measure_boot(context: Context, design: Design) -> Figures:
    """Boot afresh. Images and programs are in the host's page cache, but for the first time of all."""
    rig = context.rig
    if design not in rig.booted:  # the first boot of a run reads everything from the disk: not counted
        rig.booted.add(design)
        await rig.boot(design)
    guest = await rig.boot(design)
    return Figures({"vmm_start_s": guest.start_s, "boot_s": guest.boot_s})
