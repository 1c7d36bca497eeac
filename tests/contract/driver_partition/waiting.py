"""Finds the partitions of a factory that wait for an order."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.partitions.factory import WAITING_TITLE
from duovisor.process_identity import read_children

if TYPE_CHECKING:
    from duovisor.controlling.partitions.factory import PartitionFactory

TIMEOUT_S = 60.0


def find_waiting(factory: int) -> list[int]:
    """Those of this process that have given up what they do without, and wait."""
    found = []
    for pid in read_children(factory):
        with suppress(OSError):  # it has just ended
            titled = Path(f"/proc/{pid}/cmdline").read_text().startswith(WAITING_TITLE)
            if titled and "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text():
                found.append(pid)
    return found


async def wait_waiting(factory: PartitionFactory, count: int) -> list[int]:
    """Wait until so many are there."""
    async with asyncio.timeout(TIMEOUT_S):
        while len(found := find_waiting(factory.process.pid)) != count:
            await asyncio.sleep(0.01)
    return found
