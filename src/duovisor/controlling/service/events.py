"""The host's log of changes: who did what to which object, when, and how it came out.

Events are numbered from 1 without gaps, written in the order in which they happened and kept in the store,
the newest ``kept`` of them. ``emit`` never blocks and never fails its caller: what happened has happened,
and a full disk must not make it look otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from duovisor.controlling.service.tokens import utc_now
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.records import Delete, Put, Transaction
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.store.interface import Store

PREFIX = "/events/"
BATCH = 100  # events in one transaction; the store takes 128 operations
MESSAGE_MAX = 2000

_log = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How a change came out; ``started`` says that an operation is under way."""

    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class EventDocument(BaseModel):
    """One change; ``object`` is ``vm/NAME``, ``image/NAME``, ``token/NAME`` or ``service``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=1)
    at: datetime
    actor: str
    action: str
    object: str
    outcome: Outcome
    message: str = ""
    operation: str | None = None


class EventPage(NamedTuple):
    """Events in their order; ``more`` says that others follow."""

    events: tuple[EventDocument, ...]
    more: bool


EVENT = DocumentKind("event", EventDocument)


def key_of(id: int) -> str:
    """Where an event is; the order of the keys is that of the events."""
    return f"{PREFIX}{id:016d}"


class EventLog:
    """Writes events in a task of its own, reads them from the store, tells followers of new ones."""

    def __init__(self, store: Store, *, kept: int = 10_000, now: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._kept = kept
        self._now = now
        self._oldest = 1
        self.last_emitted = 0
        self._last_written = 0
        self._waiting: list[EventDocument] = []
        self._wake = asyncio.Event()
        self._written = asyncio.Condition()
        self._closing = False
        self._writer: asyncio.Task[None] | None = None

    @property
    def oldest(self) -> int:
        """The number of the oldest event that is kept."""
        return self._oldest

    @property
    def last(self) -> int:
        """The number of the last event; 0 when there has been none."""
        return self._last_written

    async def open(self) -> None:
        """Find where the numbers stand and begin to write."""
        await self._find_ends()
        self.last_emitted = self._last_written
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits and stop."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await self._writer

    def emit(
        self,
        actor: str,
        action: str,
        object: str,
        outcome: Outcome = Outcome.DONE,
        message: str = "",
        operation: str | None = None,
    ) -> int:
        """Note what happened and return its number; ``wait_written`` tells when it is on the disk."""
        self.last_emitted += 1
        event = EventDocument(
            id=self.last_emitted,
            at=self._now(),
            actor=actor,
            action=action,
            object=object,
            outcome=outcome,
            message=message[:MESSAGE_MAX],
            operation=operation,
        )
        self._waiting.append(event)
        self._wake.set()
        return event.id

    async def wait_written(self, id: int) -> None:
        """Wait until an event is written, or was given up because the store takes none."""
        async with self._written:
            await self._written.wait_for(lambda: self._last_written >= id)

    async def read(self, *, after: int, limit: int) -> EventPage:
        """Events whose number is greater than ``after``, oldest first."""
        page = await self._store.range(PREFIX, limit=limit, after=key_of(after))
        return EventPage(tuple(EVENT.decode(entry.value, key=entry.key) for entry in page.entries), page.more)

    async def follow(self, *, after: int) -> AsyncIterator[EventDocument]:
        """Every event after a number, those to come too; a slow follower may find that some are gone."""
        while True:
            page = await self.read(after=after, limit=BATCH)
            for event in page.events:
                yield event
            after = page.events[-1].id if page.events else max(after, self._last_written)
            if not page.more:
                await self.wait_written(after + 1)

    async def _find_ends(self) -> None:
        after: str | None = None
        while True:
            page = await self._store.range(PREFIX, after=after)
            if not page.entries:
                return
            if after is None:
                self._oldest = int(page.entries[0].key.removeprefix(PREFIX))
            after = page.entries[-1].key
            self._last_written = int(after.removeprefix(PREFIX))
            if not page.more:
                return

    async def _write(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                await self._store.commit(
                    Transaction(then=tuple(Put(key_of(event.id), EVENT.encode(event)) for event in batch))
                )
                await self._trim(batch[-1].id)
            except DuovisorError as error:
                _log.error("%d events are lost: %s", len(batch), error)
            async with self._written:
                self._last_written = batch[-1].id
                self._written.notify_all()

    async def _trim(self, last: int) -> None:
        """Delete the oldest when a tenth more than ``kept`` has gathered."""
        if last - self._oldest < self._kept + self._kept // 10:
            return
        first_kept = last - self._kept + 1
        while self._oldest < first_kept:
            end = min(self._oldest + BATCH, first_kept)
            await self._store.commit(
                Transaction(then=tuple(Delete(key_of(id)) for id in range(self._oldest, end)))
            )
            self._oldest = end
