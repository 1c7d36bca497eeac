"""What is written to a store's SQLite file; runs in the one thread that writes."""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING

from duovisor.controlling.store.engine import Changed, find_due_compaction
from duovisor.controlling.store.errors import LeaseNotFoundError, StoreError
from duovisor.controlling.store.planning import Plan, plan_deletion, plan_transaction
from duovisor.controlling.store.requests import check_compaction
from duovisor.controlling.store.sqlite_errors import translated
from duovisor.controlling.store.sqlite_file import savepoint
from duovisor.controlling.store.sqlite_reading import find_entry, read_revisions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from duovisor.controlling.store.engine import Writer
    from duovisor.controlling.store.records import Event, Outcome, Transaction

_INSERT = """
    INSERT INTO history (key, mod_revision, create_revision, version, lease, value) VALUES (?, ?, ?, ?, ?, ?)
"""

_KEYS_OF_LEASE = """
    SELECT key FROM history AS h WHERE lease = ? AND lease != 0 AND mod_revision = (
        SELECT max(mod_revision) FROM history WHERE key = h.key
    ) ORDER BY key
"""

# Both look only at the changes between the last compaction and this one: what each has superseded, and
# deletions. A change supersedes the one before it, which has superseded those before that.
_FORGET_SUPERSEDED = """
    DELETE FROM history WHERE id IN (
        SELECT (
            SELECT id FROM history WHERE key = newer.key AND mod_revision < newer.mod_revision
            ORDER BY mod_revision DESC LIMIT 1
        ) FROM history AS newer WHERE newer.mod_revision > ? AND newer.mod_revision <= ?
    )
"""
_FORGET_DELETIONS = "DELETE FROM history WHERE version = 0 AND mod_revision > ? AND mod_revision <= ?"


class SqliteWriter:
    """The engine's writes. Those done by one ``commit`` are one SQLite transaction, one wait for the disk."""

    def __init__(self, connection: sqlite3.Connection, path: Path, kept_revisions: int) -> None:
        self._connection = connection
        self._path = path
        self._kept_revisions = kept_revisions
        self._revision, self._compacted = read_revisions(connection)
        self._changed: list[str] = []

    def commit(self, actions: Sequence[Callable[[Writer], object]]) -> tuple[list[object], Changed]:
        """Do actions and keep them for good; an action that failed has its error for a result.

        One action that does not fit on the disk does not take the others with it.
        """
        self._changed.clear()
        try:
            results = self._commit_together(actions)
        except StoreError as error:
            self._recall()
            if len(actions) == 1:
                return [error], Changed(self._revision, ())
            return self._commit_one_by_one(actions)
        return results, Changed(self._revision, tuple(self._changed))

    def apply(self, transaction: Transaction) -> Outcome:
        return self._keep(
            plan_transaction(
                transaction,
                revision=self._revision,
                find_entry=functools.partial(find_entry, self._connection),
                has_lease=self._has_lease,
            )
        )

    def grant(self, ttl_s: float) -> int:
        lease = self._connection.execute("INSERT INTO leases (ttl_s) VALUES (?)", (ttl_s,)).lastrowid
        assert lease is not None  # it is None only before the first INSERT
        return lease

    def revoke(self, lease: int) -> None:
        if not self._has_lease(lease):
            raise LeaseNotFoundError(f"there is no lease {lease}")
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        keys = [key for (key,) in self._connection.execute(_KEYS_OF_LEASE, (lease,))]
        self._keep(
            plan_deletion(
                keys, revision=self._revision, find_entry=functools.partial(find_entry, self._connection)
            )
        )

    def compact(self, revision: int) -> None:
        check_compaction(revision, compacted=self._compacted, current=self._revision)
        self._connection.execute(_FORGET_SUPERSEDED, (self._compacted, revision))
        self._connection.execute(_FORGET_DELETIONS, (self._compacted, revision))
        self._remember("compacted", revision)
        self._compacted = revision

    def _commit_together(self, actions: Sequence[Callable[[Writer], object]]) -> list[object]:
        with translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                results = [self._attempt(action) for action in actions]
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        return results

    def _commit_one_by_one(
        self, actions: Sequence[Callable[[Writer], object]]
    ) -> tuple[list[object], Changed]:
        results: list[object] = []
        keys: list[str] = []
        for action in actions:
            (result,), changed = self.commit([action])
            results.append(result)
            keys.extend(changed.keys)
        return results, Changed(self._revision, tuple(keys))

    def _attempt(self, action: Callable[[Writer], object]) -> object:
        """An action's result or error; one that failed leaves nothing behind in the transaction."""
        changed = len(self._changed)
        try:
            with savepoint(self._connection):
                return action(self)
        except sqlite3.Error:
            raise  # not this action's fault: the transaction is over
        except Exception as error:
            self._recall()
            del self._changed[changed:]
            return error

    def _has_lease(self, lease: int) -> bool:
        return self._connection.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone() is not None

    def _keep(self, plan: Plan) -> Outcome:
        if not plan.changes:
            return plan.outcome
        self._connection.executemany(_INSERT, map(_as_row, plan.changes))
        self._remember("revision", plan.outcome.revision)
        self._revision = plan.outcome.revision
        self._changed.extend(event.key for event in plan.changes)
        due = find_due_compaction(
            revision=self._revision, compacted=self._compacted, kept_revisions=self._kept_revisions
        )
        if due is not None:
            self.compact(due)
        return plan.outcome

    def _remember(self, name: str, value: int) -> None:
        self._connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def _recall(self) -> None:
        """Forget revisions that were given out and then undone."""
        with translated(self._path):
            self._revision, self._compacted = read_revisions(self._connection)


def _as_row(event: Event) -> tuple[str, int, int, int, int, bytes]:
    entry = event.entry
    if entry is None:
        return event.key, event.revision, 0, 0, 0, b""
    return event.key, event.revision, entry.create_revision, entry.version, entry.lease, entry.value
