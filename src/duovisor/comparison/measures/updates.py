"""What an update does to a guest at work: its storage driver is replaced, its design is switched.

To replace the driver of a monolithic VM is to replace its VMM, for the driver is a part of it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from duovisor.comparison.errors import SkippedError
from duovisor.comparison.load import begin_load, finish_load
from duovisor.comparison.measures.context import Context, Figures
from duovisor.comparison.measures.faults import DISK
from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.controlling.moving.move import move
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from duovisor.comparison.guest import Guest


async def measure_driver(context: Context, design: Design) -> Figures:
    """The storage driver's code is replaced by what is installed now."""

    async def replace(guest: Guest) -> float:
        if design is Design.MICROKERNELIZED:
            return (await guest.machine.devices[DISK].replace(latest=True)).pause_ms
        return await _move(context, guest, Design.MONOLITHIC)

    return await _update(context, design, replace)


async def measure_design(context: Context, design: Design) -> Figures:
    """The VM changes to the other design; afterwards, unmeasured, back to its own."""
    (other,) = {*Design} - {design}

    async def switch(guest: Guest) -> float:
        return await _move(context, guest, other)

    figures = await _update(context, design, switch)
    await _move(context, await context.rig.guest(design), design)
    return figures


async def _update(context: Context, design: Design, change: Callable[[Guest], Awaitable[float]]) -> Figures:
    guest = await context.rig.guest(design)
    await begin_load(guest, context.scale.load_s)
    await asyncio.sleep(context.scale.load_s / 3)
    began = time.monotonic()
    try:
        pause_ms = await change(guest)
    finally:
        took_s = time.monotonic() - began
        verdict = await finish_load(guest)
    return Figures(
        {
            "survived": 1.0,
            "pause_ms": pause_ms,
            "took_s": took_s,
            "longest_wait_ms": verdict.longest_ms,
            "errors": float(bool(verdict.complaint)),
        },
        {"complaint": verdict.complaint},
    )


async def _move(context: Context, guest: Guest, design: Design) -> float:
    try:
        return (await move(guest.machine, design, context.rig.capabilities)).pause_ms
    except MoveRefusedError as error:
        raise SkippedError(error.message, remedy=error.remedy) from error
