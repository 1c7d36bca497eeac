"""What an embedded store must be able to do, without waiting and without checking requests.

Reading and writing are two Protocols because SQLite does them on two connections in two threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from duovisor.controlling.store.records import Entry, Event, Outcome, Page, Transaction

DEFAULT_KEPT_REVISIONS = 10_000
EVENTS_MAX = 100  # events that a watcher reads at once, and the rest of the last transaction


@dataclass(frozen=True, slots=True)
class Events:
    """A stretch of history; the next begins at ``next_revision``, ``more`` says that it is there already."""

    events: tuple[Event, ...]
    next_revision: int
    more: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """Which keys were changed by what was just written, and the revision after it."""

    revision: int
    keys: tuple[str, ...]


class Reader(Protocol):
    """Reads; each call sees one moment. ``start`` and ``end`` bound keys as a half-open interval."""

    def read_revision(self) -> int:
        """The revision of the last change."""
        ...

    def read_entry(self, key: str, revision: int | None) -> Entry | None:
        """A key now or at a revision. Raises ``StoreCompactedError``, ``StoreFutureRevisionError``."""
        ...

    def read_page(self, start: str, end: str, limit: int, revision: int | None) -> Page:
        """Entries now or at a revision. Raises as ``read_entry``."""
        ...

    def read_events(self, start: str, end: str, from_revision: int) -> Events:
        """Changes from a revision on, whole transactions only. Raises ``StoreCompactedError``."""
        ...

    def read_leases(self) -> dict[int, float]:
        """Each lease with its whole time in seconds."""
        ...


class Writer(Protocol):
    """Writes; whoever calls makes sure that what was done together is kept or undone together."""

    def apply(self, transaction: Transaction) -> Outcome:
        """Do a transaction that was checked. Raises ``LeaseNotFoundError``."""
        ...

    def grant(self, ttl_s: float) -> int:
        """Add a lease and return its number, above 0."""
        ...

    def revoke(self, lease: int) -> None:
        """Remove a lease and its keys. Raises ``LeaseNotFoundError``."""
        ...

    def compact(self, revision: int) -> None:
        """Forget history. Raises ``StoreCompactedError``, ``StoreFutureRevisionError``."""
        ...


def find_due_compaction(*, revision: int, compacted: int, kept_revisions: int) -> int | None:
    """The revision to compact to, once a tenth more history than wanted has gathered; else ``None``."""
    due = revision - compacted > kept_revisions + kept_revisions // 10
    return revision - kept_revisions if due else None
