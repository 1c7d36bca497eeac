"""Watches all pools: tells once when one gets low or cannot be used, and once when that is over."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from duovisor.controlling.storage.backends import open_backend
from duovisor.errors import DuovisorError
from duovisor.spec.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.storage.backend import Space
    from duovisor.controlling.storage.pools import Pools

    Tell = Callable[[str, str, str], None]

LOOK_S = 30.0
# low is less than both; enough again with half as much more, so that it does not go to and fro
LOW_SHARE, LOW_BYTES = 0.1, 10 << 30
MARGIN = 1.5
LOW, ROOM = "pool.low", "pool.room"
AWAY, BACK = "pool.unavailable", "pool.available"


class SpaceWatch:
    """``tell`` takes an action (``pool.low`` …), a pool and a message."""

    def __init__(self, pools: Pools, tell: Tell) -> None:
        self._pools = pools
        self._tell = tell
        self._low: set[str] = set()
        self._away: set[str] = set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Look at all pools once."""
        found = {pool.id: pool.document for pool in await self._pools.list()}
        self._low.intersection_update(found)
        self._away.intersection_update(found)
        for name, document in found.items():
            try:
                space = await self._pools.read_space(open_backend(name, document))
            except DuovisorError as error:
                if name not in self._away:
                    self._away.add(name)
                    self._tell(AWAY, name, error.message)
                continue
            if name in self._away:
                self._away.discard(name)
                self._tell(BACK, name, document.path)
            free = f"{format_bytes(space.free_bytes)} of {format_bytes(space.capacity_bytes)} are free"
            if space.spare_metadata < 1:
                free += f", and {space.spare_metadata:.0%} of the metadata"
            if name not in self._low and is_low(space):
                self._low.add(name)
                self._tell(LOW, name, f"{free}; a VM that finds no room stands still until there is some")
            elif name in self._low and not is_low(space, MARGIN):
                self._low.discard(name)
                self._tell(ROOM, name, free)


def is_low(space: Space, margin: float = 1.0) -> bool:
    """Whether a pool has too little free space; pure."""
    if space.spare_metadata < margin * LOW_SHARE:
        return True
    return space.free_bytes < margin * min(LOW_BYTES, space.capacity_bytes * LOW_SHARE)
