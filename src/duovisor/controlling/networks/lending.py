"""What networks do for VMs that start and end: a place for each card, and no rules without one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.vms.records import EventKind
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from duovisor.controlling.networks.networks import Networks
    from duovisor.controlling.vms.records import VmEvent
    from duovisor.controlling.vms.volumes import Lend
    from duovisor.spec.vm import VirtualMachineSpec

    Place = Callable[[VirtualMachineSpec], Awaitable[VirtualMachineSpec]]

ENDED = frozenset({EventKind.STOPPED, EventKind.CRASHED, EventKind.START_FAILED, EventKind.DEVICE_DETACHED})

_log = logging.getLogger("duovisord")


def lend_all(lend: Lend, place: Place) -> Lend:
    """Lend volumes and find networks, for one who starts a VM."""

    @asynccontextmanager
    async def lend_both(spec: VirtualMachineSpec) -> AsyncIterator[VirtualMachineSpec]:
        async with lend(spec) as found:
            yield await place(found)

    return lend_both


class Sweeper:
    """Removes the rules of cards when VMs or cards have gone; one sweep for all that end meanwhile."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._task: asyncio.Task[None] | None = None
        self._again = False

    def notice(self, event: VmEvent) -> None:
        """Something happened to a VM."""
        if event.kind not in ENDED:
            return
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.create_task(self._sweep(), name="sweep of rules")

    async def close(self) -> None:
        """Let the sweep that is under way come to its end."""
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _sweep(self) -> None:
        self._again = True
        while self._again:
            self._again = False
            try:
                await self._networks.sweep()
            except DuovisorError as error:
                _log.warning("rules of cards that are gone stay: %s", error)
