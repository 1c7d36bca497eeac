"""Starting the VMs that start with the host: once in each boot, in their order, though killed meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.vms.documents import AUTOSTART_KEY, AUTOSTART_KIND, AutostartDocument
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.vms.records import VmRecord


async def is_complete(store: Store, boot_id: str) -> bool:
    """Whether this boot's autostart was done."""
    entry = await store.get(AUTOSTART_KEY)
    return entry is not None and AUTOSTART_KIND.decode(entry.value, key=AUTOSTART_KEY).boot_id == boot_id


async def run_autostart(
    store: Store,
    boot_id: str,
    records: AsyncIterator[VmRecord],
    start: Callable[[VmRecord], Awaitable[None]],
) -> None:
    """Start each VM that wants it, unless this boot's autostart was done.

    Those of the same order start together, and all are rested for before the next order begins. One that
    fails does not keep the others; ``start`` has reported it.
    """
    if await is_complete(store, boot_id):
        return
    wanted = [record async for record in records if record.autostart.enabled]
    for order in sorted({record.autostart.order for record in wanted}):
        together = [record for record in wanted if record.autostart.order == order]
        async with asyncio.TaskGroup() as group:
            for record in together:
                group.create_task(_start_and_rest(record, start))
    await store.put(AUTOSTART_KEY, AUTOSTART_KIND.encode(AutostartDocument(boot_id=boot_id)))


async def _start_and_rest(record: VmRecord, start: Callable[[VmRecord], Awaitable[None]]) -> None:
    try:
        await start(record)
    except (DuovisorError, OSError):
        return
    await asyncio.sleep(record.autostart.delay_s)
