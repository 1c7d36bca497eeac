"""The store's interface over an engine inside this process: checks, watches, leases."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from duovisor.controlling.store.errors import LeaseNotFoundError, StoreClosedError, StoreError
from duovisor.controlling.store.interface import PAGE_LIMIT
from duovisor.controlling.store.leases import LeaseTimes
from duovisor.controlling.store.records import NO_LEASE, Delete, Put, Transaction
from duovisor.controlling.store.requests import (
    check_key,
    check_limit,
    check_transaction,
    check_ttl,
    prefix_bounds,
)
from duovisor.controlling.store.watching import Watcher, Watchers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.store.engine import Reader, Writer
    from duovisor.controlling.store.records import Entry, Event, Outcome, Page
    from duovisor.controlling.store.timers import Timers

EXPIRY_RETRY_S = 1.0

T = TypeVar("T")


class EmbeddedStore(ABC):
    """A ``Store`` over an engine; a subclass says how writes get done. Belongs to one event loop."""

    def __init__(self, reader: Reader, timers: Timers | None) -> None:
        self._reader = reader
        self._timers = timers or asyncio.get_running_loop()
        self._watchers = Watchers()
        self._expiries: set[asyncio.Task[None]] = set()
        self._leases = LeaseTimes(self._timers, self._start_expiry)
        self._closed = False
        for lease, ttl_s in reader.read_leases().items():
            self._leases.begin(lease, ttl_s)

    @abstractmethod
    async def _write(self, action: Callable[[Writer], T]) -> T:
        """Have an action done and kept for good, its changes announced, and return its result."""

    @abstractmethod
    async def _close_engine(self) -> None:
        """Finish the writes under way and let go of everything."""

    async def revision(self) -> int:
        self._check_open()
        return self._reader.read_revision()

    async def get(self, key: str, *, revision: int | None = None) -> Entry | None:
        self._check_open()
        return self._reader.read_entry(check_key(key), revision)

    async def range(
        self, prefix: str, *, limit: int = PAGE_LIMIT, after: str | None = None, revision: int | None = None
    ) -> Page:
        self._check_open()
        start, end = prefix_bounds(check_key(prefix), after if after is None else check_key(after))
        return self._reader.read_page(start, end, check_limit(limit), revision)

    async def put(self, key: str, value: bytes, *, lease: int = NO_LEASE) -> Entry:
        outcome = await self.commit(Transaction(then=(Put(key, value, lease),)))
        (entry,) = outcome.results
        assert entry is not None  # the result of a Put is the new entry
        return entry

    async def delete(self, key: str) -> Entry | None:
        outcome = await self.commit(Transaction(then=(Delete(key),)))
        return outcome.results[0]

    async def commit(self, transaction: Transaction) -> Outcome:
        self._check_open()
        check_transaction(transaction)
        return await self._write(lambda writer: writer.apply(transaction))

    @contextlib.asynccontextmanager
    async def watch(
        self, prefix: str, *, from_revision: int | None = None
    ) -> AsyncIterator[AsyncIterator[Event]]:
        self._check_open()
        start, end = prefix_bounds(check_key(prefix))
        next_revision = self._reader.read_revision() + 1
        first = next_revision if from_revision is None else from_revision
        watcher = Watcher(
            prefix,
            first,
            lambda revision: self._reader.read_events(start, end, revision),
            behind=first < next_revision,
        )
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    async def grant_lease(self, ttl_s: float) -> int:
        self._check_open()
        check_ttl(ttl_s)
        lease = await self._write(lambda writer: writer.grant(ttl_s))
        self._leases.begin(lease, ttl_s)
        return lease

    async def keep_lease_alive(self, lease: int) -> float:
        self._check_open()
        return self._leases.keep_alive(lease)

    async def revoke_lease(self, lease: int) -> None:
        self._check_open()
        await self._write(lambda writer: writer.revoke(lease))
        self._leases.end(lease)

    async def compact(self, revision: int) -> None:
        self._check_open()
        await self._write(lambda writer: writer.compact(revision))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._leases.end_all()
        self._watchers.close()
        for task in self._expiries:
            task.cancel()
        await self._close_engine()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed")

    def _start_expiry(self, lease: int) -> None:
        if not self._closed:
            task = asyncio.get_running_loop().create_task(self._expire(lease))
            self._expiries.add(task)
            task.add_done_callback(self._expiries.discard)

    async def _expire(self, lease: int) -> None:
        try:
            await self._write(lambda writer: writer.revoke(lease))
        except LeaseNotFoundError:
            return  # revoked while its time ran out
        except StoreError:  # a full disk, for example: the keys must still go, so go on trying
            self._timers.call_later(EXPIRY_RETRY_S, lambda: self._start_expiry(lease))
