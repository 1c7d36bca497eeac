"""A store in memory: for tests, and for a service that is to leave nothing behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from duovisor.controlling.store.embedded import EmbeddedStore
from duovisor.controlling.store.engine import (
    DEFAULT_KEPT_REVISIONS,
    EVENTS_MAX,
    Changed,
    Events,
    find_due_compaction,
)
from duovisor.controlling.store.errors import LeaseNotFoundError, StoreCompactedError
from duovisor.controlling.store.planning import Plan, plan_deletion, plan_transaction
from duovisor.controlling.store.records import FIRST_REVISION, Event, Page
from duovisor.controlling.store.requests import check_compaction, check_revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.store.engine import Writer
    from duovisor.controlling.store.records import Entry, Outcome, Transaction
    from duovisor.controlling.store.timers import Timers

T = TypeVar("T")


class MemoryEngine:
    """Every change that is kept, in order; both a ``Reader`` and a ``Writer``."""

    def __init__(self, kept_revisions: int) -> None:
        self._kept_revisions = kept_revisions
        self._revision = FIRST_REVISION
        self._compacted = 0
        self._history: dict[str, list[Event]] = {}
        self._log: list[Event] = []
        self._leases: dict[int, float] = {}
        self._granted = 0
        self._changed: list[str] = []

    def read_revision(self) -> int:
        return self._revision

    def read_entry(self, key: str, revision: int | None) -> Entry | None:
        return self._find(key, self._check(revision))

    def read_page(self, start: str, end: str, limit: int, revision: int | None) -> Page:
        revision = self._check(revision)
        found = (self._find(key, revision) for key in sorted(self._history) if start <= key < end)
        entries = tuple(entry for entry in found if entry is not None)
        return Page(entries[:limit], revision, len(entries) > limit)

    def read_events(self, start: str, end: str, from_revision: int) -> Events:
        if from_revision <= self._compacted:
            raise StoreCompactedError(from_revision, self._compacted)
        events = [
            event for event in self._log if event.revision >= from_revision and start <= event.key < end
        ]
        last = events[EVENTS_MAX - 1].revision if len(events) > EVENTS_MAX else self._revision
        found = tuple(event for event in events if event.revision <= last)
        return Events(found, last + 1, len(found) < len(events))

    def read_leases(self) -> dict[int, float]:
        return dict(self._leases)

    def apply(self, transaction: Transaction) -> Outcome:
        return self._keep(
            plan_transaction(
                transaction,
                revision=self._revision,
                find_entry=self._find,
                has_lease=self._leases.__contains__,
            )
        )

    def grant(self, ttl_s: float) -> int:
        self._granted += 1
        self._leases[self._granted] = ttl_s
        return self._granted

    def revoke(self, lease: int) -> None:
        if lease not in self._leases:
            raise LeaseNotFoundError(f"there is no lease {lease}")
        del self._leases[lease]
        entries = [self._find(key) for key in sorted(self._history)]
        keys = [entry.key for entry in entries if entry is not None and entry.lease == lease]
        self._keep(plan_deletion(keys, revision=self._revision, find_entry=self._find))

    def compact(self, revision: int) -> None:
        check_compaction(revision, compacted=self._compacted, current=self._revision)
        self._compacted = revision
        self._log = [event for event in self._log if event.revision > revision]
        for key, events in list(self._history.items()):
            past = [event for event in events if event.revision <= revision]
            self._history[key] = [event for event in past[-1:] if event.entry] + events[len(past) :]
            if not self._history[key]:
                del self._history[key]

    def take_changed(self) -> Changed:
        """The keys changed since this was last called."""
        keys, self._changed = tuple(self._changed), []
        return Changed(self._revision, keys)

    def _check(self, revision: int | None) -> int:
        if revision is None:
            return self._revision
        return check_revision(revision, compacted=self._compacted, current=self._revision)

    def _find(self, key: str, revision: int | None = None) -> Entry | None:
        for event in reversed(self._history.get(key, ())):
            if revision is None or event.revision <= revision:
                return event.entry
        return None

    def _keep(self, plan: Plan) -> Outcome:
        self._revision = plan.outcome.revision
        for event in plan.changes:
            self._history.setdefault(event.key, []).append(event)
            self._log.append(event)
            self._changed.append(event.key)
        due = find_due_compaction(
            revision=self._revision, compacted=self._compacted, kept_revisions=self._kept_revisions
        )
        if due is not None:
            self.compact(due)
        return plan.outcome


class MemoryStore(EmbeddedStore):
    """A ``Store`` that forgets everything when it is closed."""

    def __init__(self, *, timers: Timers | None = None, kept_revisions: int = DEFAULT_KEPT_REVISIONS) -> None:
        self._engine = MemoryEngine(kept_revisions)
        super().__init__(self._engine, timers)

    async def _write(self, action: Callable[[Writer], T]) -> T:
        result = action(self._engine)
        self._watchers.announce(self._engine.take_changed())
        return result

    async def _close_engine(self) -> None:
        pass


@contextlib.asynccontextmanager
async def open_memory_store(
    *, timers: Timers | None = None, kept_revisions: int = DEFAULT_KEPT_REVISIONS
) -> AsyncIterator[MemoryStore]:
    """An empty store in memory, closed at the end; ``timers`` runs its leases, by default the event loop."""
    store = MemoryStore(timers=timers, kept_revisions=kept_revisions)
    try:
        yield store
    finally:
        await store.close()
