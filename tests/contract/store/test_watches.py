"""Watches: order, previous values, catching up, cancelling."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import StoreClosedError, StoreCompactedError, StoreRequestError
from duovisor.controlling.store.records import Delete, Event, EventKind, Put, Transaction

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.store.interface import Store

DEADLINE_S = 60.0


async def _take(events: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(events) for _ in range(count)]


async def test_a_watch_tells_what_happened_and_what_was_before(store: Store) -> None:
    async with store.watch("/vms/") as events:
        first = await store.put("/vms/a", b"1")
        second = await store.put("/vms/a", b"2")
        await store.delete("/vms/a")
        third = await store.put("/vms/a", b"3")
        deletion = second.mod_revision + 1
        assert await _take(events, 4) == [
            Event("/vms/a", first.mod_revision, first, None),
            Event("/vms/a", second.mod_revision, second, first),
            Event("/vms/a", deletion, None, second),
            Event("/vms/a", third.mod_revision, third, None),
        ]


async def test_a_watch_begins_with_the_next_change_and_keeps_to_its_prefix(store: Store) -> None:
    await store.put("/vms/before", b"")
    async with store.watch("/vms/") as events:
        await store.put("/vm", b"")
        await store.put("/vmsx", b"")
        await store.put("/vms/a", b"")
        (event,) = await _take(events, 1)
    assert (event.kind, event.key) == (EventKind.PUT, "/vms/a")


async def test_a_watcher_that_waits_is_woken(store: Store) -> None:
    async with store.watch("/") as events:
        waiting = asyncio.create_task(_take(events, 1))
        await asyncio.sleep(0)
        await store.put("/a", b"1")
        assert [event.key for event in await waiting] == ["/a"]


async def test_the_events_of_a_transaction_come_in_its_order(store: Store) -> None:
    await store.put("/b", b"")
    async with store.watch("/") as events:
        outcome = await store.commit(
            Transaction(then=(Put("/z", b""), Delete("/b"), Put("/a", b""), Put("/m", b"")))
        )
        found = await _take(events, 4)
    assert [event.key for event in found] == ["/z", "/b", "/a", "/m"]
    assert {event.revision for event in found} == {outcome.revision}


async def test_a_watch_from_a_revision_misses_nothing_and_repeats_nothing(store: Store) -> None:
    page = await store.range("/")
    for number in range(300):
        await store.put(f"/{number % 7}", b"%d" % number)
    async with store.watch("/", from_revision=page.revision + 1) as events:
        await store.put("/last", b"300")
        found = await _take(events, 301)
    assert [event.entry and event.entry.value for event in found] == [b"%d" % number for number in range(301)]
    assert [event.revision for event in found] == list(range(page.revision + 1, page.revision + 302))


async def test_a_page_boundary_in_a_transaction_loses_nothing(store: Store) -> None:
    start = await store.revision()
    for turn in range(4):  # 4 * 70 events: whatever the size of a page, some end inside a transaction
        await store.commit(Transaction(then=tuple(Put(f"/{turn}/{number:02d}", b"") for number in range(70))))
    async with store.watch("/", from_revision=start + 1) as events:
        found = await _take(events, 280)
    assert [event.key for event in found] == [
        f"/{turn}/{number:02d}" for turn in range(4) for number in range(70)
    ]


async def test_a_watch_may_begin_in_the_future(store: Store) -> None:
    start = await store.revision()
    async with store.watch("/", from_revision=start + 3) as events:
        for number in range(4):
            await store.put("/a", b"%d" % number)
        found = await _take(events, 2)
    assert [event.entry and event.entry.value for event in found] == [b"2", b"3"]


async def test_every_watcher_gets_every_event(store: Store) -> None:
    async with store.watch("/") as one, store.watch("/") as other:
        await store.put("/a", b"")
        await store.put("/b", b"")
        assert await _take(one, 2) == await _take(other, 2)


async def test_a_slow_watcher_is_told_that_it_missed_something_and_can_list_again(store: Store) -> None:
    async with store.watch("/") as events:
        await store.put("/a", b"1")
        last = await store.put("/a", b"2")
        await store.put("/b", b"1")
        await store.compact(last.mod_revision)
        with pytest.raises(StoreCompactedError):
            await _take(events, 1)
    page = await store.range("/")
    assert [entry.value for entry in page.entries] == [b"2", b"1"]
    async with store.watch("/", from_revision=page.revision + 1) as events:
        await store.put("/a", b"3")
        (event,) = await _take(events, 1)
    assert event.previous == last


async def test_a_watcher_with_nothing_to_tell_does_not_fall_behind(store: Store) -> None:
    async with store.watch("/quiet/") as events:
        waiting = asyncio.create_task(_take(events, 1))
        for number in range(5):
            await store.put("/loud", b"%d" % number)
        await store.compact(await store.revision())
        await store.put("/quiet/a", b"")
        assert [event.key for event in await waiting] == ["/quiet/a"]


async def test_what_was_compacted_cannot_be_watched(store: Store) -> None:
    first = await store.put("/a", b"1")
    await store.put("/a", b"2")
    await store.put("/a", b"3")
    await store.compact(first.mod_revision + 1)
    async with store.watch("/", from_revision=first.mod_revision) as events:
        with pytest.raises(StoreCompactedError):
            await _take(events, 1)
    async with store.watch("/", from_revision=first.mod_revision + 2) as events:
        assert [event.entry and event.entry.value for event in await _take(events, 1)] == [b"3"]


async def test_a_cancelled_watch_lets_the_store_go_on(store: Store) -> None:
    async with store.watch("/") as events:
        waiting = asyncio.create_task(_take(events, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.put("/a", b"")
        assert [event.key for event in await _take(events, 1)] == ["/a"]
    await store.put("/b", b"")


async def test_closing_the_store_ends_a_watch(store: Store) -> None:
    async with store.watch("/") as events:
        waiting = asyncio.create_task(_take(events, 1))
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosedError):
            await waiting


async def test_what_is_not_a_prefix_cannot_be_watched(store: Store) -> None:
    with pytest.raises(StoreRequestError):
        async with store.watch("vms"):
            pass
