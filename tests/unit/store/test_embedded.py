"""What embedded stores do beyond the contract: keep little history, keep leases, keep at it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import pytest

from duovisor.controlling.store.embedded import EXPIRY_RETRY_S
from duovisor.controlling.store.errors import LeaseNotFoundError, StoreCompactedError, StoreFullError
from duovisor.controlling.store.memory import MemoryStore, open_memory_store
from duovisor.controlling.store.records import Put, Transaction
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.store.sqlite_file import open_store_file
from duovisor.controlling.store.sqlite_writing import SqliteWriter
from duovisor.controlling.store.timers import ManualTimers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duovisor.controlling.store.engine import Writer
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.store.records import Outcome

DEADLINE_S = 5.0

T = TypeVar("T")


async def _check_kept_history(store: Store) -> None:
    for number in range(300):
        await store.put(f"/{number % 3}", b"%d" % number)
    current = await store.revision()
    assert await store.get("/0", revision=current - 100) is not None
    with pytest.raises(StoreCompactedError) as raised:
        await store.get("/0", revision=current - 111)
    assert raised.value.compacted_revision <= current - 100
    assert [entry.value for entry in (await store.range("/")).entries] == [b"297", b"298", b"299"]


async def test_history_is_forgotten_as_it_grows(tmp_path: Path) -> None:
    async with open_memory_store(kept_revisions=100) as store:
        await _check_kept_history(store)
    async with open_sqlite_store(tmp_path / "store.sqlite", kept_revisions=100) as store:
        await _check_kept_history(store)
    file = open_store_file(tmp_path / "store.sqlite")
    (rows,) = file.reader.execute("SELECT count(*) FROM history").fetchone()
    file.close()
    assert rows <= 3 + 111


async def test_a_lease_begins_anew_when_the_store_is_opened_again(tmp_path: Path) -> None:
    path, timers = tmp_path / "store.sqlite", ManualTimers()
    async with open_sqlite_store(path, timers=timers) as store:
        lease = await store.grant_lease(10)
        await store.put("/a", b"", lease=lease)
        timers.advance(9)
    timers.advance(100)
    async with open_sqlite_store(path, timers=timers) as store, store.watch("/") as events:
        timers.advance(9)
        assert await store.keep_lease_alive(lease) == 10
        timers.advance(10)
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(events)).key == "/a"


async def test_a_lease_runs_by_the_event_loop_unless_told_otherwise(tmp_path: Path) -> None:
    async with open_sqlite_store(tmp_path / "store.sqlite") as store, store.watch("/") as events:
        await store.put("/a", b"", lease=await store.grant_lease(0.02))
        async with asyncio.timeout(DEADLINE_S):
            found = [await anext(events), await anext(events)]
    assert [event.entry is None for event in found] == [False, True]


class FullOnceStore(MemoryStore):
    """Has no room for the first write after ``is_full`` was set."""

    is_full = False

    async def _write(self, action: Callable[[Writer], T]) -> T:
        if self.is_full:
            self.is_full = False
            raise StoreFullError("there is no room")
        return await super()._write(action)


async def test_an_expiry_for_which_there_is_no_room_is_tried_again() -> None:
    timers = ManualTimers()
    store = FullOnceStore(timers=timers)
    await store.put("/a", b"", lease=await store.grant_lease(10))
    async with store.watch("/") as events:
        store.is_full = True
        timers.advance(10)
        await asyncio.sleep(0)  # the expiry's task
        assert await store.get("/a") is not None
        assert not store.is_full
        timers.advance(EXPIRY_RETRY_S)
        async with asyncio.timeout(DEADLINE_S):
            assert (await anext(events)).entry is None
    await store.close()


def _put(key: str, *, lease: int = 0) -> Transaction:
    return Transaction(then=(Put(key, b"", lease),))


def test_a_bug_in_one_action_undoes_that_action_alone(tmp_path: Path) -> None:
    file = open_store_file(tmp_path / "store.sqlite")
    writer = SqliteWriter(file.writer, file.path, 100)

    def buggy(writer: Writer) -> Outcome:
        writer.apply(_put("/half"))
        raise ZeroDivisionError

    results, changed = writer.commit(
        [
            lambda w: w.apply(_put("/a")),
            buggy,
            lambda w: w.apply(_put("/no", lease=9)),
            lambda w: w.apply(_put("/b")),
        ]
    )
    assert [type(result).__name__ for result in results] == [
        "Outcome", "ZeroDivisionError", LeaseNotFoundError.__name__, "Outcome",
    ]  # fmt: skip
    assert (changed.revision, changed.keys) == (3, ("/a", "/b"))
    assert file.reader.execute("SELECT key, mod_revision FROM history").fetchall() == [("/a", 2), ("/b", 3)]
    file.close()
