"""The runs of all VMs, in memory for who asks and in the store for who comes after us."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.store.walking import walk
from duovisor.controlling.vms.documents import RUN_KIND, RUNS, RunDocument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.store.interface import Store


class Runs:
    """Runs by the VM's uuid; this process alone writes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: dict[str, RunDocument] = {}

    async def load(self) -> None:
        """Read what was stored. Raises ``DocumentError`` for what cannot be read."""
        async for entry in walk(self._store, RUNS):
            run = RUN_KIND.decode(entry.value, key=entry.key)
            self._runs[run.uuid] = run

    def __iter__(self) -> Iterator[RunDocument]:
        return iter(tuple(self._runs.values()))

    def __contains__(self, uuid: str) -> bool:
        return uuid in self._runs

    def of(self, uuid: str, name: str) -> RunDocument:
        """A VM's run; a blank one before its first start."""
        return self._runs.get(uuid) or RunDocument(name=name, uuid=uuid)

    async def write(self, run: RunDocument) -> None:
        """Store a run."""
        self._runs[run.uuid] = run  # first, so that a fault noted meanwhile builds on it
        await self._store.put(RUNS + run.uuid, RUN_KIND.encode(run))

    def forget(self, uuid: str) -> None:
        """The VM was deleted, in the store too."""
        self._runs.pop(uuid, None)
