"""A machine that begins where a snapshot was taken: its memory is loaded while its processes start."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.snapshots.copying import copy_data, run_copies
from duovisor.controlling.snapshots.folder import MEMORY, STATE, explaining

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

    from duovisor.controlling.snapshots.copying import Follow


class SavedMachine(NamedTuple):
    """Where the state of a machine and its memory are: a snapshot's folder."""

    folder: Path


@asynccontextmanager
async def loading(saved: SavedMachine, memory_file: Path) -> AsyncIterator[Awaitable[None]]:
    """Fill the memory file, which is all holes; what is yielded has ended when it is full.

    That raises ``SnapshotFullError`` or ``SnapshotBrokenError``; on leaving early, the loading is given up.
    """
    task = asyncio.create_task(_load(saved.folder / MEMORY, memory_file))
    try:
        await asyncio.sleep(0)  # it has begun
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def open_state(saved: SavedMachine) -> int:
    """A descriptor of the saved state for the VMM to inherit. Raises ``SnapshotBrokenError``."""
    with explaining(saved.folder):
        return os.open(saved.folder / STATE, os.O_RDONLY | os.O_CLOEXEC)


async def _load(source: Path, target: Path) -> None:
    def copy(follow: Follow) -> None:
        with source.open("rb") as file, target.open("r+b") as memory:
            copy_data(file.fileno(), memory.fileno(), follow)

    with explaining(target):
        await run_copies(copy, lambda done: None)
