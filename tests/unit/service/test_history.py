"""Events and operations: order, trimming, a store that takes nothing, ends that were seen."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.service.errors import StoppingError, TooManyOperationsError
from duovisor.controlling.service.events import EventLog
from duovisor.controlling.service.operations import (
    MAX_UNDER_WAY,
    Operations,
    OperationState,
)
from duovisor.controlling.store.errors import StoreFullError
from duovisor.controlling.store.memory import open_memory_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.service.operations import Work
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.store.records import Outcome, Transaction
    from duovisor.controlling.vms.records import Progress


@contextlib.asynccontextmanager
async def open_log(store: Store, kept: int = 1000) -> AsyncIterator[EventLog]:
    log = EventLog(store, kept=kept)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def test_events_are_numbered_on_across_runs() -> None:
    async with open_memory_store() as store:
        for first in (1, 4):
            async with open_log(store) as log:
                assert [log.emit("me", "a", "vm/x") for _ in range(3)] == [first, first + 1, first + 2]
                await log.wait_written(first + 2)
        async with open_log(store) as log:
            page = await log.read(after=2, limit=3)
            assert [event.id for event in page.events] == [3, 4, 5]
            assert page.more


async def test_only_the_newest_are_kept_and_it_is_known_which() -> None:
    async with open_memory_store() as store:
        async with open_log(store, kept=50) as log:
            for _ in range(500):
                last = log.emit("me", "a", "vm/x")
            await log.wait_written(last)
            kept = (await log.read(after=0, limit=1000)).events
            assert 50 <= len(kept) <= 155  # a batch of 100 may come at once
            assert (kept[0].id, kept[-1].id) == (log.oldest, 500)
        async with open_log(store, kept=50) as again:
            assert (again.oldest, again.last) == (kept[0].id, 500)


async def test_a_follower_sees_what_was_and_what_comes() -> None:
    async with open_memory_store() as store, open_log(store) as log:
        log.emit("me", "before", "vm/x")
        followed = log.follow(after=0)
        assert (await anext(followed)).action == "before"
        coming = asyncio.ensure_future(anext(followed))
        await asyncio.sleep(0)
        assert not coming.done()
        log.emit("me", "after", "vm/x")
        assert (await coming).action == "after"
        await followed.aclose()  # type: ignore[attr-defined]  # a generator behind its Protocol


class FullStore:
    """A store that is read as usual and takes no transaction."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.range = store.range

    async def commit(self, transaction: Transaction) -> Outcome:
        raise StoreFullError("there is no room")


async def test_a_full_disk_loses_events_but_holds_nobody_up() -> None:
    async with open_memory_store() as store, open_log(FullStore(store)) as log:  # type: ignore[arg-type]
        await asyncio.wait_for(log.wait_written(log.emit("me", "a", "vm/x")), 5)
        assert (await log.read(after=0, limit=10)).events == ()


def work_that(wait: asyncio.Event) -> Work:
    async def work(progress: Progress) -> None:
        progress(50, "half")
        progress(20, "never backwards")
        await wait.wait()

    return work


async def test_an_end_that_was_seen_is_on_the_disk() -> None:
    async with open_memory_store() as store, open_log(store) as log:
        operations = Operations(store, log)
        done = asyncio.Event()
        operation = await operations.start("a", "vm/x", "me", work_that(done))
        await asyncio.sleep(0.01)
        assert operations.get(operation.id).progress == 50
        done.set()
        assert (await operations.wait(operation.id)).state is OperationState.DONE
        after_a_kill = Operations(store, log)
        assert await after_a_kill.open() == 0
        assert after_a_kill.list() == operations.list()


async def test_what_was_under_way_at_a_kill_is_interrupted() -> None:
    async with open_memory_store() as store, open_log(store) as log:
        operations = Operations(store, log)
        operation = await operations.start("a", "vm/x", "me", work_that(asyncio.Event()))
        await asyncio.sleep(0.01)
        after_a_kill = Operations(store, log)
        assert await after_a_kill.open() == 1
        assert after_a_kill.get(operation.id).state is OperationState.INTERRUPTED
        newer = await after_a_kill.start("a", "vm/x", "me", work_that(asyncio.Event()))
        assert newer.id > operation.id
        for each in (operations, after_a_kill):
            await each.close(grace_s=0.01)


async def test_a_stopping_service_takes_nothing_new() -> None:
    async with open_memory_store() as store, open_log(store) as log:
        operations = Operations(store, log)
        await operations.close(grace_s=0.01)
        with pytest.raises(StoppingError):
            await operations.start("a", "vm/x", "me", work_that(asyncio.Event()))


async def test_there_is_a_limit_to_what_is_under_way() -> None:
    async with open_memory_store() as store, open_log(store) as log:
        operations = Operations(store, log)
        for index in range(MAX_UNDER_WAY):
            await operations.start("a", f"vm/{index}", "me", work_that(asyncio.Event()))
        with pytest.raises(TooManyOperationsError):
            await operations.start("a", "vm/one-more", "me", work_that(asyncio.Event()))
        await operations.close(grace_s=0.01)
        assert operations.count_by_state()[OperationState.INTERRUPTED] == MAX_UNDER_WAY
