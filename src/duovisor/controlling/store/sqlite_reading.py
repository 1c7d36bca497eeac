"""What is read from a store's SQLite file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from duovisor.controlling.store.engine import EVENTS_MAX, Events
from duovisor.controlling.store.errors import StoreCompactedError
from duovisor.controlling.store.records import Entry, Event, Page
from duovisor.controlling.store.requests import check_revision
from duovisor.controlling.store.sqlite_errors import translated

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from pathlib import Path

_LATEST = 2**63 - 1
_COLUMNS = "key, value, create_revision, mod_revision, version, lease"

_FIND = f"""
    SELECT {_COLUMNS} FROM history WHERE key = ? AND mod_revision <= ? ORDER BY mod_revision DESC LIMIT 1
"""

# Hops from key to key along the index, so that the work depends on the entries asked for, not on how much
# history they have; SQLite evaluates the recursion only as far as LIMIT needs it.
_PAGE = """
    WITH RECURSIVE keys (key) AS (
        SELECT min(key) FROM history WHERE key >= :start AND key < :end
        UNION ALL
        SELECT (SELECT min(key) FROM history WHERE key > keys.key AND key < :end)
        FROM keys WHERE keys.key IS NOT NULL
    )
    SELECT h.key, h.value, h.create_revision, h.mod_revision, h.version, h.lease
    FROM keys CROSS JOIN history AS h ON h.key = keys.key AND h.mod_revision = (
        SELECT max(mod_revision) FROM history WHERE key = keys.key AND mod_revision <= :revision
    )
    WHERE h.version > 0 LIMIT :limit
"""

_NTH_CHANGE = """
    SELECT mod_revision FROM history INDEXED BY history_by_revision
    WHERE mod_revision >= ? AND key >= ? AND key < ? ORDER BY mod_revision, id LIMIT 1 OFFSET ?
"""

_CHANGES = f"""
    SELECT {_COLUMNS} FROM history INDEXED BY history_by_revision
    WHERE mod_revision BETWEEN ? AND ? AND key >= ? AND key < ? ORDER BY mod_revision, id
"""


def read_revisions(connection: sqlite3.Connection) -> tuple[int, int]:
    """The store's revision, and the one it was compacted to."""
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    return meta["revision"], meta["compacted"]


def find_entry(connection: sqlite3.Connection, key: str, revision: int = _LATEST) -> Entry | None:
    """A key as it was at a revision, by default as it is."""
    row = connection.execute(_FIND, (key, revision)).fetchone()
    return None if row is None else _as_entry(row)


def _as_entry(row: tuple[Any, ...]) -> Entry | None:
    entry = Entry(*row)
    return entry if entry.version else None


def _as_event(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Event:
    key, _, _, revision, _, _ = row
    return Event(key, revision, _as_entry(row), find_entry(connection, key, revision - 1))


class SqliteReader:
    """The engine's reads, on a connection of their own."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def read_revision(self) -> int:
        with translated(self._path):
            return read_revisions(self._connection)[0]

    def read_entry(self, key: str, revision: int | None) -> Entry | None:
        if revision is None:
            with translated(self._path):
                return find_entry(self._connection, key)
        with self._moment() as (current, compacted):
            return find_entry(
                self._connection, key, check_revision(revision, compacted=compacted, current=current)
            )

    def read_page(self, start: str, end: str, limit: int, revision: int | None) -> Page:
        with self._moment() as (current, compacted):
            revision = current if revision is None else revision
            check_revision(revision, compacted=compacted, current=current)
            bounds = {"start": start, "end": end, "revision": revision, "limit": limit + 1}
            entries = tuple(Entry(*row) for row in self._connection.execute(_PAGE, bounds))
        return Page(entries[:limit], revision, len(entries) > limit)

    def read_events(self, start: str, end: str, from_revision: int) -> Events:
        with self._moment() as (current, compacted):
            if from_revision <= compacted:
                raise StoreCompactedError(from_revision, compacted)
            # The last change to take, and its whole transaction; without one there are fewer: take all.
            nth = self._connection.execute(
                _NTH_CHANGE, (from_revision, start, end, EVENTS_MAX - 1)
            ).fetchone()
            last = current if nth is None else nth[0]
            rows = self._connection.execute(_CHANGES, (from_revision, last, start, end)).fetchall()
            events = tuple(_as_event(self._connection, row) for row in rows)
        return Events(events, last + 1, last < current)

    def read_leases(self) -> dict[int, float]:
        with translated(self._path):
            return dict(self._connection.execute("SELECT id, ttl_s FROM leases"))

    @contextlib.contextmanager
    def _moment(self) -> Iterator[tuple[int, int]]:
        """Everything read inside is of one moment; yields its revision and the compacted one."""
        with translated(self._path):
            self._connection.execute("BEGIN")
            try:
                yield read_revisions(self._connection)
            finally:
                if self._connection.in_transaction:  # SQLite ends it by itself when the file is damaged
                    self._connection.execute("ROLLBACK")
