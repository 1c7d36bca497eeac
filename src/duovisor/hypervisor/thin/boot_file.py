"""Reading boot files straight into guest memory, and what both ways to boot tell the guest of it."""

from __future__ import annotations

import os
from typing import NamedTuple

from duovisor.hypervisor.thin.errors import BootImageError

RAM, RESERVED = 1, 2  # E820 types: ACPI 6.4, 15.1


class MemoryRange(NamedTuple):
    """An entry of the map that the guest is given; ``kind`` is an E820 type."""

    start: int
    size: int
    kind: int


def read_into(descriptor: int, target: memoryview, offset: int) -> None:
    """Fill ``target`` from a file. Raises ``BootImageError`` when the file is shorter, or ``OSError``."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], offset + done)
        if not count:
            raise BootImageError("a boot file is cut off")
        done += count


def find_room(low: memoryview, start: int, size: int, what: str) -> memoryview:
    """The guest memory in which ``what`` is to lie. Raises ``BootImageError`` when there is too little."""
    if size < 0 or start < 0 or start + size > len(low):
        raise BootImageError(
            f"{what} needs {(start + size) >> 20} MiB of memory, there are {len(low) >> 20} MiB",
            remedy="give the VM more memory",
        )
    return low[start : start + size]
