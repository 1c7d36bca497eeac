"""Processes that are ready beforehand: those that driver partitions are forked from, and a thin VMM."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.partitions.factory import Modules, PartitionFactory, read_code_digest
from duovisor.hypervisor.thin_spare import Spare, SpareKind, find_kind

if TYPE_CHECKING:
    from duovisor.hypervisor.plan import LaunchPlan
    from duovisor.sandbox import SandboxTools

WAITING, WAITING_AFTER_S = 4, 3.0  # disk, console, card and one more; the spares of a start come before
_NUMBERS = itertools.count()


def remove_orphaned_logs(runtime: Path) -> list[Path]:
    """Remove the logs of factories whose owner was killed while it started them; returns them."""
    orphaned = [path for path in runtime.glob("factory.*.log") if not _owner_lives(path)]
    for path in orphaned:
        path.unlink(missing_ok=True)
    return orphaned


def _owner_lives(log: Path) -> bool:
    return Path("/proc", log.name.split(".")[1]).exists()


class Factories:
    """Started when first needed, again when one ended, and anew when the code on disk is wanted.

    ``end_with_owner``: partitions end when this process does. A factory that was replaced stays until
    ``close``, for it alone is told how its partitions end.
    """

    def __init__(self, runtime: Path, *, end_with_owner: bool) -> None:
        self._runtime = runtime
        self._end_with_owner = end_with_owner
        self._current: dict[Modules, PartitionFactory] = {}
        self._replaced: dict[tuple[Modules, str], PartitionFactory] = {}
        self._lock = asyncio.Lock()
        self._vmm: Spare | None = None
        self._vmm_kind: SpareKind | None = None
        self._later: asyncio.TimerHandle | None = None
        self._keeping: asyncio.TimerHandle | None = None

    async def get(self, modules: Modules = Modules.USUAL) -> PartitionFactory:
        """The factory of drivers that need these modules. Raises ``PartitionError``."""
        async with self._lock:
            current = self._current.get(modules)
            if current is None or current.has_ended:
                current = self._current[modules] = await self._start(modules)
            return current

    async def get_latest(self, modules: Modules = Modules.USUAL) -> PartitionFactory:
        """A factory of the code that is on disk now. Raises ``PartitionError``."""
        async with self._lock:
            code = await asyncio.to_thread(read_code_digest)
            current = self._current.get(modules)
            if current is None or current.has_ended:
                current = self._current[modules] = await self._start(modules)
            elif current.code != code:
                fresh = await self._start(modules)
                self._replaced[modules, current.code] = current
                current.keep(0)
                current = self._current[modules] = fresh
            return current

    def take_vmm(self, plan: LaunchPlan, tools: SandboxTools) -> Spare:
        """A thin VMM's process for this plan: the one that waits if it fits, or a new one.

        Raises ``ProgramNotFoundError``.
        """
        self._vmm_kind = find_kind(plan, tools)
        waiting, self._vmm = self._vmm, None
        if waiting is not None and waiting.kind == self._vmm_kind and not waiting.has_ended:
            return waiting
        if waiting is not None:
            waiting.discard()
        return Spare(self._vmm_kind, self._name_log("vmm"))

    def prepare_vmm(self, after_s: float = 0.0) -> None:
        """Have a process wait for the next machine on the thin VMM, where there was one before.

        It is started at once, or so many seconds from now. Raises ``ProgramNotFoundError``.
        """
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if after_s:
            self._later = asyncio.get_running_loop().call_later(after_s, self.prepare_vmm)
        elif self._vmm is None and self._vmm_kind is not None:
            self._vmm = Spare(self._vmm_kind, self._name_log("vmm"))

    def prepare_partitions(self, after_s: float) -> None:
        """So many seconds from now, have partitions wait for the next VM, where there were any before."""
        if self._keeping is not None:
            self._keeping.cancel()

        def keep() -> None:
            current = self._current.get(Modules.USUAL)
            if current is not None:
                current.keep(WAITING)

        self._keeping = asyncio.get_running_loop().call_later(after_s, keep)

    async def close(self) -> None:
        """End the factories; their partitions live on unless they end with their owner."""
        for timer in (self._later, self._keeping):
            if timer is not None:
                timer.cancel()
        if self._vmm is not None:
            self._vmm.discard()
            self._vmm = None
        for factory in (*self._replaced.values(), *self._current.values()):
            await factory.close()
        self._replaced.clear()
        self._current.clear()

    async def _start(self, modules: Modules) -> PartitionFactory:
        log = self._name_log("partitions")
        try:
            return await PartitionFactory.start(log=log, end_with_owner=self._end_with_owner, modules=modules)
        finally:
            log.unlink(missing_ok=True)  # of use only for why it did not start

    def _name_log(self, what: str) -> Path:
        self._runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self._runtime / f"factory.{os.getpid()}.{what}-{next(_NUMBERS)}.log"
