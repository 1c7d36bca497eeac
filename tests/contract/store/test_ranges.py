"""Prefixes, pages, and pages of one moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import StoreFutureRevisionError, StoreRequestError

if TYPE_CHECKING:
    from duovisor.controlling.store.interface import Store


async def _fill(store: Store, *keys: str) -> None:
    for key in keys:
        await store.put(key, key.encode())


async def _keys(store: Store, prefix: str, *, limit: int = 100, after: str | None = None) -> list[str]:
    return [entry.key for entry in (await store.range(prefix, limit=limit, after=after)).entries]


async def test_a_prefix_is_not_a_folder(store: Store) -> None:
    await _fill(store, "/vm", "/vms", "/vms/a", "/vms/b", "/vmx", "/vn", "/vm~")
    assert await _keys(store, "/vms/") == ["/vms/a", "/vms/b"]
    assert await _keys(store, "/vms") == ["/vms", "/vms/a", "/vms/b"]
    assert await _keys(store, "/vm~") == ["/vm~"]
    assert await _keys(store, "/nothing") == []


async def test_keys_come_in_the_order_of_their_bytes(store: Store) -> None:
    await _fill(store, "/b", "/a/b", "/a", "/B", "/a-b", "/~", "/0", "/a!")
    everything = await _keys(store, "/")
    assert everything == sorted(everything)
    assert len(everything) == 8


async def test_pages_join_into_the_whole(store: Store) -> None:
    names = [f"/vms/{number:03d}" for number in range(25)]
    await _fill(store, *reversed(names))
    found: list[str] = []
    after, more = None, True
    while more:
        page = await store.range("/vms/", limit=10, after=after)
        found += [entry.key for entry in page.entries]
        after, more = found[-1], page.more
    assert found == names


async def test_a_page_that_is_just_full_has_no_more(store: Store) -> None:
    await _fill(store, "/a", "/b")
    assert not (await store.range("/", limit=2)).more
    assert (await store.range("/", limit=1)).more


async def test_after_leaves_out_that_key_and_keeps_the_longer_ones(store: Store) -> None:
    await _fill(store, "/a", "/a!", "/a/b", "/b")
    assert await _keys(store, "/", after="/a") == ["/a!", "/a/b", "/b"]
    assert await _keys(store, "/b", after="/a") == ["/b"]
    assert await _keys(store, "/a", after="/b") == []


async def test_later_pages_show_the_moment_of_the_first(store: Store) -> None:
    await _fill(store, "/a", "/b", "/c", "/d")
    first = await store.range("/", limit=2)
    await store.delete("/c")
    await store.put("/d", b"new")
    await store.put("/e", b"")
    second = await store.range("/", limit=2, after="/b", revision=first.revision)
    assert [(entry.key, entry.value) for entry in second.entries] == [("/c", b"/c"), ("/d", b"/d")]
    assert second.revision == first.revision
    assert not second.more


async def test_deleted_keys_do_not_shorten_a_page(store: Store) -> None:
    await _fill(store, *(f"/{number:02d}" for number in range(20)))
    for number in range(0, 20, 2):
        await store.delete(f"/{number:02d}")
    assert await _keys(store, "/", limit=5) == ["/01", "/03", "/05", "/07", "/09"]


async def test_an_empty_page_or_the_future_cannot_be_asked_for(store: Store) -> None:
    with pytest.raises(StoreRequestError):
        await store.range("/", limit=0)
    with pytest.raises(StoreRequestError):
        await store.range("vms")
    with pytest.raises(StoreFutureRevisionError):
        await store.range("/", revision=await store.revision() + 1)
