"""What a VM costs while its guest does nothing: memory of each process, and processor time."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.processes import read_processor_by_role, read_pss_kib

if TYPE_CHECKING:
    from duovisor.spec.vm import Design

SETTLE_S = 0.5
KIB_PER_MIB = 1024


async def measure_idle(context: Context, design: Design) -> Figures:
    """``idle_cpu_ms_per_s`` of all processes and of each role; ``pss_mib`` without guest memory, likewise."""
    guest = await context.rig.guest(design)
    await guest.output("killall udhcpc 2>/dev/null; sync")
    await asyncio.sleep(SETTLE_S)
    processes = guest.list_processes()
    before, began = read_processor_by_role(processes), time.monotonic()
    await asyncio.sleep(context.scale.idle_s)
    after, took_s = read_processor_by_role(processes), time.monotonic() - began
    busy = {role: (after[role] - before[role]) / 1e6 / took_s for role in after}
    inode = os.stat(guest.machine.description.memory_file).st_ino
    own: dict[str, float] = {}
    guest_kib = 0
    for each in processes:
        total_kib, kib = read_pss_kib(each.pid, inode)
        own[each.role] = own.get(each.role, 0.0) + (total_kib - kib) / KIB_PER_MIB
        guest_kib += kib
    return Figures({
        "idle_cpu_ms_per_s": sum(busy.values()),
        "pss_mib": sum(own.values()),
        "guest_memory_mib": guest_kib / KIB_PER_MIB,
        **{f"idle_cpu_ms_per_s:{role}": value for role, value in busy.items()},
        **{f"pss_mib:{role}": value for role, value in own.items()},
    })  # fmt: skip
