"""The interface of every store: the part of etcd's that the service needs.

Whoever is cancelled while waiting for a write does not know whether it was done; a read tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from duovisor.controlling.store.records import NO_LEASE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from duovisor.controlling.store.records import Entry, Event, Outcome, Page, Transaction

PAGE_LIMIT = 1000


class Store(Protocol):
    """Keys with revisions; each method may raise ``StoreClosedError`` besides what it names.

    A write may raise ``StoreFullError``, ``StoreReadOnlyError`` or ``StoreIoError``, and anything
    ``StoreCorruptError`` when the file is damaged.
    """

    async def revision(self) -> int:
        """The revision of the last change."""
        ...

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        """A key as it is, or as it was at a revision.

        Raises ``StoreCompactedError`` and ``StoreFutureRevisionError`` for a revision that cannot be read.
        """
        ...

    async def range(
        self, prefix: str, *, limit: int = PAGE_LIMIT, after: str | None = None, revision: int | None = None
    ) -> Page:
        """Up to ``limit`` entries whose key begins with ``prefix``, in the order of their keys.

        The next page is asked for with ``after`` the last key and ``revision`` the page's, so that all pages
        show the same moment. Raises as ``get`` does.
        """
        ...

    async def put(self, key: str, value: bytes, *, lease: int = NO_LEASE) -> Entry:
        """Write a key. Raises ``LeaseNotFoundError`` and ``StoreRequestError``."""
        ...

    async def delete(self, key: str) -> Entry | None:
        """Delete a key and return what was there."""
        ...

    async def commit(self, transaction: Transaction) -> Outcome:
        """Do a transaction, all of it or nothing.

        Raises ``LeaseNotFoundError``, and ``StoreRequestError`` for one that writes a key twice.
        """
        ...

    def watch(
        self, prefix: str, *, from_revision: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Every change under ``prefix`` since ``from_revision`` (inclusive; default: from now on), in order.

        The iterator raises ``StoreCompactedError`` to a watcher that fell behind what is kept: it has missed
        events and must list again. Leaving the context cancels the watch.
        """
        ...

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease, which expires unless it is kept alive within every ``ttl_s`` seconds.

        When a store is opened again, each lease begins anew with its whole time.
        """
        ...

    async def keep_lease_alive(self, lease: int) -> float:
        """Begin a lease's time anew and return that time in seconds. Raises ``LeaseNotFoundError``."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """End a lease and delete its keys, at one revision. Raises ``LeaseNotFoundError``."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget the history before ``revision``; what is there now stays.

        Raises ``StoreCompactedError`` when that is done already and ``StoreFutureRevisionError``.
        """
        ...

    async def close(self) -> None:
        """Finish the writes under way and let go of the store; closing twice is fine."""
        ...
