"""Memory modules that come to a QEMU that runs, over QMP, and what its guest said of them.

A guest's ACPI tells whether its system took a module (``_OST``, ACPI 6.5, 6.3.5); Linux says so when the
module is part of its memory, which it uses at once or when somebody switches it on.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import StrEnum
from typing import TYPE_CHECKING

from duovisor.hypervisor import plugging
from duovisor.hypervisor.errors import HypervisorError, QmpError
from duovisor.hypervisor.memory import size_module_file
from duovisor.hypervisor.qemu.memory import build_module_plug, module_backend

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.hypervisor.qmp import Qmp

POLL_S = 0.05
MIB = 1 << 20
IN_PROGRESS = 0x80
TOLD = "ACPI_DEVICE_OST"  # QEMU's event when a guest says something


class Answer(StrEnum):
    """What a guest's system said of its memory modules."""

    TAKEN = "taken"
    REFUSED = "refused"
    NONE = "none"


async def list_modules(qmp: Qmp) -> tuple[int, ...]:
    """The sizes (MiB) of the modules that the guest has, in the order of their slots. Raises ``QmpError``."""
    found = [each["data"] for each in await qmp.execute("query-memory-devices") if each["type"] == "dimm"]
    return tuple(int(each["size"]) // MIB for each in sorted(found, key=lambda each: int(each["slot"])))


async def add_module(qmp: Qmp, number: int, mib: int, file: Path, shown: str) -> None:
    """Let the guest have a module in the slot ``number``; the VMM sees its ``file`` as ``shown``.

    What a killed predecessor left of one there goes. Raises ``HypervisorError`` with nothing left behind.
    """
    back_end, front_end = build_module_plug(number, mib, shown)
    await discard(qmp, number, file)
    try:
        size_module_file(file, mib)
        await plugging.run(qmp, (back_end, front_end))
    except BaseException:
        with contextlib.suppress(HypervisorError):  # the first error is the one to tell
            if number >= len(await list_modules(qmp)):
                await discard(qmp, number, file)
        raise


async def discard(qmp: Qmp, number: int, file: Path) -> None:
    """Remove what there is of a module that never came. Raises ``HypervisorError``."""
    with contextlib.suppress(QmpError):  # there is none
        await qmp.execute("object-del", id=module_backend(number))
    size_module_file(file, 0)


async def wait_taken(qmp: Qmp, count: int, timeout_s: float) -> Answer:
    """What the guest says of its ``count`` modules, once it has said something of each."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        told = [each for each in await qmp.execute("query-acpi-ospm-status") if each["slot-type"] == "DIMM"]
        told = [each for each in told if int(each["slot"]) < count]
        if any(each["status"] not in (0, IN_PROGRESS) for each in told):
            return Answer.REFUSED
        if all(each["source"] and not each["status"] for each in told):
            return Answer.TAKEN
        if asyncio.get_running_loop().time() > deadline:
            return Answer.NONE
        await asyncio.sleep(POLL_S)
