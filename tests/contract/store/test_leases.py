"""Leases: keys that go when nobody keeps them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.store.errors import LeaseNotFoundError, StoreRequestError
from duovisor.controlling.store.records import EventKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.store.records import Event

DEADLINE_S = 60.0


async def _take(events: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(DEADLINE_S):
        return [await anext(events) for _ in range(count)]


async def test_a_key_remembers_its_lease(store: Store) -> None:
    lease = await store.grant_lease(2)
    assert (await store.put("/a", b"", lease=lease)).lease == lease


async def test_an_expired_lease_takes_its_keys_at_one_revision(
    store: Store, advance: Callable[[float], None]
) -> None:
    lease = await store.grant_lease(2)
    await store.put("/b", b"", lease=lease)
    await store.put("/a", b"", lease=lease)
    await store.put("/stays", b"")
    async with store.watch("/") as events:
        advance(2.5)
        found = await _take(events, 2)
    assert [(event.kind, event.key) for event in found] == [
        (EventKind.DELETE, "/a"),
        (EventKind.DELETE, "/b"),
    ]
    assert len({event.revision for event in found}) == 1
    assert [entry.key for entry in (await store.range("/")).entries] == ["/stays"]
    with pytest.raises(LeaseNotFoundError):
        await store.put("/a", b"", lease=lease)


async def test_a_lease_lives_while_it_is_kept_alive(store: Store, advance: Callable[[float], None]) -> None:
    kept, forgotten = await store.grant_lease(2), await store.grant_lease(2)
    await store.put("/kept", b"", lease=kept)
    await store.put("/forgotten", b"", lease=forgotten)
    async with store.watch("/") as events:
        advance(1.5)
        assert await store.keep_lease_alive(kept) == 2
        advance(1)
        assert [event.key for event in await _take(events, 1)] == ["/forgotten"]
    assert await store.get("/kept") is not None


async def test_an_expired_lease_cannot_be_kept_alive(store: Store, advance: Callable[[float], None]) -> None:
    lease = await store.grant_lease(1)
    await store.put("/a", b"", lease=lease)
    async with store.watch("/") as events:
        advance(1.5)
        await _take(events, 1)
    with pytest.raises(LeaseNotFoundError):
        await store.keep_lease_alive(lease)


async def test_a_revoked_lease_takes_its_keys(store: Store) -> None:
    lease = await store.grant_lease(60)
    await store.put("/a", b"", lease=lease)
    start = await store.revision()
    await store.revoke_lease(lease)
    assert await store.get("/a") is None
    assert await store.revision() == start + 1
    for use in (store.revoke_lease, store.keep_lease_alive):
        with pytest.raises(LeaseNotFoundError):
            await use(lease)


async def test_a_lease_without_keys_ends_without_a_change(store: Store) -> None:
    start = await store.revision()
    await store.revoke_lease(await store.grant_lease(60))
    assert await store.revision() == start


async def test_a_key_written_without_its_lease_stays(store: Store) -> None:
    old, new = await store.grant_lease(60), await store.grant_lease(60)
    await store.put("/free", b"", lease=old)
    await store.put("/free", b"")
    await store.put("/moved", b"", lease=old)
    await store.put("/moved", b"", lease=new)
    await store.revoke_lease(old)
    assert [entry.key for entry in (await store.range("/")).entries] == ["/free", "/moved"]
    await store.revoke_lease(new)
    assert [entry.key for entry in (await store.range("/")).entries] == ["/free"]


async def test_a_key_created_again_is_not_of_the_lease_it_had(store: Store) -> None:
    lease = await store.grant_lease(60)
    await store.put("/a", b"", lease=lease)
    await store.delete("/a")
    await store.put("/a", b"")
    await store.revoke_lease(lease)
    assert await store.get("/a") is not None


@pytest.mark.parametrize("ttl_s", [0, -1, float("inf"), float("nan")])
async def test_a_lease_needs_a_time(store: Store, ttl_s: float) -> None:
    with pytest.raises(StoreRequestError):
        await store.grant_lease(ttl_s)
