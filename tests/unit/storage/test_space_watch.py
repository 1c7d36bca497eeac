"""A pool that gets full is told of once, and once when there is room again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.storage.backend import Space
from duovisor.controlling.storage.folder import Folder
from duovisor.controlling.storage.pools import Pools
from duovisor.controlling.storage.space_watch import LOW_BYTES, SpaceWatch, is_low
from duovisor.controlling.store.memory import open_memory_store

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


@pytest.mark.parametrize(
    ("capacity", "free", "low"),
    [
        (100, 9, True), (100, 10, False), (100, 0, True), (10000 * GIB, LOW_BYTES, False),
        (10000 * GIB, LOW_BYTES - 1, True),
    ],
)  # fmt: skip
def test_what_is_low(capacity: int, free: int, low: bool) -> None:
    assert is_low(Space(capacity, free)) is low


async def test_it_tells_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [50]
    monkeypatch.setattr(Folder, "read_space", lambda _: Space(100, free[0]))
    told: list[tuple[str, str]] = []
    async with open_memory_store() as store:
        pools = Pools(store, tmp_path / "default")
        watch = SpaceWatch(pools, lambda action, pool, _: told.append((action, pool)))
        await watch.look()
        await pools.get_for_new("default")
        for free[0] in (50, 9, 8, 14, 9, 15, 15, 3):
            await watch.look()
        assert told == [("pool.low", "default"), ("pool.room", "default"), ("pool.low", "default")]
        await pools.delete("default")
        await watch.look()
        await pools.get_for_new("default")
        await watch.look()
        assert len(told) == 4  # it is another one
