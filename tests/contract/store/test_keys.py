"""Single keys: revisions, versions, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import StoreFutureRevisionError, StoreRequestError
from duovisor.controlling.store.records import Entry
from duovisor.controlling.store.requests import KEY_MAX, VALUE_MAX_BYTES

if TYPE_CHECKING:
    from duovisor.controlling.store.interface import Store


async def test_an_absent_key_is_none(store: Store) -> None:
    assert await store.get("/vms/a") is None


async def test_a_key_remembers_its_first_and_last_revision_and_counts_its_writes(store: Store) -> None:
    start = await store.revision()
    assert await store.put("/a", b"1") == Entry("/a", b"1", start + 1, start + 1, 1)
    await store.put("/b", b"")
    assert await store.put("/a", b"2") == Entry("/a", b"2", start + 1, start + 3, 2)
    assert await store.get("/a") == Entry("/a", b"2", start + 1, start + 3, 2)
    assert await store.revision() == start + 3


async def test_writing_the_same_value_is_a_change(store: Store) -> None:
    first = await store.put("/a", b"1")
    again = await store.put("/a", b"1")
    assert (again.mod_revision, again.version) == (first.mod_revision + 1, 2)


async def test_a_deleted_key_begins_anew(store: Store) -> None:
    first = await store.put("/a", b"1")
    assert await store.delete("/a") == first
    assert await store.get("/a") is None
    again = await store.put("/a", b"2")
    assert (again.create_revision, again.version) == (first.create_revision + 2, 1)


async def test_deleting_nothing_changes_nothing(store: Store) -> None:
    start = await store.revision()
    assert await store.delete("/a") is None
    assert await store.revision() == start


async def test_a_key_can_be_read_as_it_was(store: Store) -> None:
    first = await store.put("/a", b"1")
    await store.put("/a", b"2")
    await store.delete("/a")
    at = first.mod_revision
    values = [await store.get("/a", revision=revision) for revision in range(at - 1, at + 3)]
    assert [entry and entry.value for entry in values] == [None, b"1", b"2", None]


async def test_the_future_cannot_be_read(store: Store) -> None:
    with pytest.raises(StoreFutureRevisionError):
        await store.get("/a", revision=await store.revision() + 1)


@pytest.mark.parametrize("key", ["", "a", "vms/a", "/a b", "/é", "/a\x00", "/a\n", "/" + "a" * KEY_MAX])
async def test_what_is_not_a_key_is_refused(store: Store, key: str) -> None:
    start = await store.revision()
    with pytest.raises(StoreRequestError):
        await store.put(key, b"")
    with pytest.raises(StoreRequestError):
        await store.get(key)
    assert await store.revision() == start


async def test_values_are_any_bytes_up_to_the_limit(store: Store) -> None:
    for value in (b"", b"\x00\xff", b"x" * VALUE_MAX_BYTES):
        await store.put("/a", value)
        entry = await store.get("/a")
        assert entry is not None
        assert entry.value == value
    with pytest.raises(StoreRequestError):
        await store.put("/a", b"x" * (VALUE_MAX_BYTES + 1))
