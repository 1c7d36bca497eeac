"""Walks all keys under a prefix, a page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.store.records import Entry


async def walk(store: Store, prefix: str) -> AsyncIterator[Entry]:
    """Every entry under ``prefix`` in the order of keys; each page is as the store is when it is read."""
    after: str | None = None
    while True:
        page = await store.range(prefix, after=after)
        for entry in page.entries:
            yield entry
        if not page.more:
            return
        after = page.entries[-1].key
