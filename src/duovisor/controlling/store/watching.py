"""Watches over a store that keeps history: a watcher is a place in that history, not a queue.

So a slow watcher costs no memory. It reads on from its place whenever it likes, and learns that it fell
behind when the history at its place was compacted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import StoreClosedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.store.engine import Changed, Events
    from duovisor.controlling.store.records import Event


class Watcher:
    """An endless iterator over the changes of one prefix; ``read`` gives the history from a revision on.

    ``behind`` says that there may be something to read already.
    """

    def __init__(
        self, prefix: str, from_revision: int, read: Callable[[int], Events], *, behind: bool
    ) -> None:
        self._prefix = prefix
        self._next_revision = from_revision
        self._read = read
        self._unread = asyncio.Event()
        if behind:
            self._unread.set()
        self._buffer: deque[Event] = deque()
        self._closed = False

    def __aiter__(self) -> Watcher:
        return self

    async def __anext__(self) -> Event:
        while not self._buffer:
            await self._unread.wait()
            if self._closed:
                raise StoreClosedError("the store was closed under a watch")
            self._fill()
            await asyncio.sleep(0)  # a long way to catch up must not hold up everybody else
        return self._buffer.popleft()

    def _fill(self) -> None:
        found = self._read(self._next_revision)
        self._buffer.extend(found.events)
        self._next_revision = max(self._next_revision, found.next_revision)
        if not found.more:
            self._unread.clear()

    def announce(self, changed: Changed) -> None:
        """Something was written; a watcher whom it does not concern moves on with the store."""
        if any(key.startswith(self._prefix) for key in changed.keys):
            self._unread.set()
        elif not self._unread.is_set():
            self._next_revision = max(self._next_revision, changed.revision + 1)

    def close(self) -> None:
        """Raise ``StoreClosedError`` where somebody waits or will wait."""
        self._closed = True
        self._unread.set()


class Watchers:
    """All watchers of one store."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()

    def add(self, watcher: Watcher) -> None:
        self._watchers.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Cancel a watch."""
        self._watchers.discard(watcher)
        watcher.close()

    def announce(self, changed: Changed) -> None:
        """Wake those whose prefix was changed."""
        if changed.keys:
            for watcher in self._watchers:
                watcher.announce(changed)

    def close(self) -> None:
        """End every watch."""
        for watcher in self._watchers:
            watcher.close()
