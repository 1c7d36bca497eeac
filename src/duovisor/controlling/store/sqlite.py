"""The embedded store: SQLite in WAL mode, every acknowledged write on the disk."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from duovisor.controlling.store.embedded import EmbeddedStore
from duovisor.controlling.store.engine import DEFAULT_KEPT_REVISIONS
from duovisor.controlling.store.group_commit import GroupCommit
from duovisor.controlling.store.sqlite_file import DEFAULT_QUOTA_MIB, open_store_file
from duovisor.controlling.store.sqlite_reading import SqliteReader
from duovisor.controlling.store.sqlite_writing import SqliteWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from duovisor.controlling.store.engine import Writer
    from duovisor.controlling.store.sqlite_file import StoreFile
    from duovisor.controlling.store.timers import Timers

T = TypeVar("T")


class SqliteStore(EmbeddedStore):
    """A ``Store`` in a file. Reads are done where they are asked for, writes in a thread of their own."""

    def __init__(
        self, file: StoreFile, *, timers: Timers | None = None, kept_revisions: int = DEFAULT_KEPT_REVISIONS
    ) -> None:
        super().__init__(SqliteReader(file.reader, file.path), timers)
        self._file = file
        writer = SqliteWriter(file.writer, file.path, kept_revisions)
        self._commits = GroupCommit(writer.commit, self._watchers.announce)

    async def _write(self, action: Callable[[Writer], T]) -> T:
        return await self._commits.submit(action)

    async def _close_engine(self) -> None:
        await self._commits.close()
        self._file.close()


@contextlib.asynccontextmanager
async def open_sqlite_store(
    path: Path,
    *,
    timers: Timers | None = None,
    kept_revisions: int = DEFAULT_KEPT_REVISIONS,
    quota_mib: int = DEFAULT_QUOTA_MIB,
) -> AsyncIterator[SqliteStore]:
    """Open a store's file, or make one, for this process alone.

    ``kept_revisions`` is how much history watchers can go back; ``timers`` runs the leases, by default the
    event loop. Raises what ``open_store_file`` raises.
    """
    file = open_store_file(path, quota_mib=quota_mib)
    try:
        store = SqliteStore(file, timers=timers, kept_revisions=kept_revisions)
    except BaseException:
        file.close()
        raise
    try:
        yield store
    finally:
        await store.close()
