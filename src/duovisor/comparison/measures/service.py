"""The management service is killed with -9 while its guests work, and started again at once."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from duovisor.comparison.load import begin_load, finish_load
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.rig import build_compared_spec

if TYPE_CHECKING:
    from duovisor.spec.vm import Design


async def measure_service(context: Context, design: Design) -> Figures:
    """What the guest felt, and how long until the new service tells of the VM as running."""
    service, rig = context.service, context.rig
    await rig.drop(design)  # its scratch disk is this VM's now
    spec = build_compared_spec(design, rig.image, rig.find_scratch(design), nics=[])
    guest = await service.guest(spec)
    before = await service.wait_running(spec.name)
    await begin_load(guest, context.scale.load_s)
    await asyncio.sleep(context.scale.load_s / 3)
    began = time.monotonic()
    service.kill()
    await service.start()
    after = await service.wait_running(spec.name)
    back_s = time.monotonic() - began
    verdict = await finish_load(guest)
    values = {
        "survived": float(before == after),
        "longest_wait_ms": verdict.longest_ms,
        "until_normal_s": back_s,
        "errors": float(bool(verdict.complaint)),
        "flushed_writes_lost": 0.0 if not verdict.complaint else 1.0,
    }
    return Figures(values, {"hurt": "SIGKILL to duovisord", "complaint": verdict.complaint})
