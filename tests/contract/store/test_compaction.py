"""Forgetting history, and the end of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import (
    StoreClosedError,
    StoreCompactedError,
    StoreFutureRevisionError,
)

if TYPE_CHECKING:
    from duovisor.controlling.store.interface import Store


async def test_compaction_forgets_what_was_and_keeps_what_is(store: Store) -> None:
    old = await store.put("/a", b"1")
    await store.put("/gone", b"")
    await store.delete("/gone")
    new = await store.put("/a", b"2")
    before = await store.range("/")
    await store.compact(new.mod_revision)
    assert await store.range("/") == before
    assert await store.get("/a", revision=new.mod_revision) == new
    for revision in (old.mod_revision, new.mod_revision - 1):
        with pytest.raises(StoreCompactedError):
            await store.get("/a", revision=revision)
        with pytest.raises(StoreCompactedError):
            await store.range("/", revision=revision)


async def test_what_came_after_is_kept(store: Store) -> None:
    first = await store.put("/a", b"1")
    await store.put("/a", b"2")
    await store.delete("/a")
    await store.put("/a", b"3")
    await store.compact(first.mod_revision + 1)
    found = [
        await store.get("/a", revision=revision)
        for revision in range(first.mod_revision + 1, first.mod_revision + 4)
    ]
    assert [entry and entry.value for entry in found] == [b"2", None, b"3"]


async def test_compaction_is_no_change(store: Store) -> None:
    await store.put("/a", b"1")
    start = await store.revision()
    await store.compact(start)
    assert await store.revision() == start
    entry = await store.put("/a", b"2")
    assert (entry.mod_revision, entry.version) == (start + 1, 2)


async def test_a_store_emptied_and_compacted_goes_on_counting(store: Store) -> None:
    await store.put("/a", b"1")
    await store.delete("/a")
    start = await store.revision()
    await store.compact(start)
    entry = await store.put("/a", b"1")
    assert (entry.create_revision, entry.version) == (start + 1, 1)


async def test_compaction_again_or_of_the_future_is_refused(store: Store) -> None:
    last = (await store.put("/a", b"1")).mod_revision
    await store.compact(last)
    with pytest.raises(StoreCompactedError):
        await store.compact(last)
    with pytest.raises(StoreFutureRevisionError):
        await store.compact(last + 1)


async def test_a_closed_store_says_so(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreClosedError):
        await store.get("/a")
    with pytest.raises(StoreClosedError):
        await store.put("/a", b"")
    with pytest.raises(StoreClosedError):
        async with store.watch("/"):
            pass
