"""Every implementation of ``Store``; one more line in ``IMPLEMENTATIONS`` runs another through the contract.

The tests compare revisions with the one they began at, and wait for what a clock causes, so that they hold
for a store in another process (etcd) whose clock is the real one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import pytest

from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.store.timers import ManualTimers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from duovisor.controlling.store.interface import Store


class Tried(NamedTuple):
    """A store under test, and how to let its time pass."""

    store: Store
    advance: Callable[[float], None]


@contextlib.asynccontextmanager
async def _try_memory(folder: Path) -> AsyncIterator[Tried]:
    timers = ManualTimers()
    async with open_memory_store(timers=timers) as store:
        yield Tried(store, timers.advance)


@contextlib.asynccontextmanager
async def _try_sqlite(folder: Path) -> AsyncIterator[Tried]:
    timers = ManualTimers()
    async with open_sqlite_store(folder / "store.sqlite", timers=timers) as store:
        yield Tried(store, timers.advance)


IMPLEMENTATIONS: dict[str, Callable[[Path], AbstractAsyncContextManager[Tried]]] = {
    "memory": _try_memory,
    "sqlite": _try_sqlite,
}


@pytest.fixture(params=IMPLEMENTATIONS)
async def tried(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Tried]:
    async with IMPLEMENTATIONS[request.param](tmp_path) as opened:
        yield opened


@pytest.fixture
def store(tried: Tried) -> Store:
    return tried.store


@pytest.fixture
def advance(tried: Tried) -> Callable[[float], None]:
    return tried.advance
