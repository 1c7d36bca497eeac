"""The next service's manager, which takes over the one VM of a host."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.unit.vms.killed_manager import NAME

from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.vms.manager import VmManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.directories import Directories


@asynccontextmanager
async def adopting(directories: Directories) -> AsyncIterator[VmManager]:
    """A manager that has adopted the VM ``NAME``, and found nothing wrong."""
    async with open_sqlite_store(directories.state / "store.sqlite") as store:
        manager = VmManager(store, directories, lambda event: None)
        await manager.open()
        report = await manager.recover()
        assert (report.adopted, report.problems) == ((NAME,), ())
        try:
            yield manager
        finally:
            await manager.close()
