"""A storage over folders of its own; what is left half made in its pool fails the test."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import VolumeRef
from duovisor.controlling.storage.storage import Storage
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.storage.views import get_volume
from duovisor.controlling.store.memory import open_memory_store
from duovisor.directories import Directories

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.storage.records import VolumeView
    from duovisor.controlling.store.interface import Store

MIB = 1 << 20


class Host:
    """A storage, its store and its folders."""

    def __init__(self, root: Path, store: Store) -> None:
        self.store = store
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.directories.state.mkdir(exist_ok=True)
        self.storage = Storage(store, self.directories)

    @property
    def folder(self) -> Path:
        """That of the pool ``default``."""
        return self.directories.state / "volumes"

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    async def view(self, name: str) -> VolumeView:
        return await get_volume(self.storage, ref(name))

    async def upload(self, name: str, content: bytes, upload: Upload | None = None) -> None:
        """Upload bytes as a request would, in pieces."""
        inbox = Inbox(len(content))
        async with feeding(inbox, content):
            await self.storage.receive(ref(name), upload or Upload(), inbox)


@asynccontextmanager
async def feeding(inbox: Inbox, content: bytes) -> AsyncIterator[None]:
    """Put bytes into an inbox, in pieces, beside what takes them."""

    async def feed() -> None:
        for start in range(0, len(content), 64 << 10):
            if not await inbox.put(content[start : start + (64 << 10)]):
                return
        await inbox.put(None)

    task = asyncio.create_task(feed())
    try:
        yield
    finally:
        inbox.abandon()
        await task


def ref(name: str) -> VolumeRef:
    """A volume of the pool ``default``, or ``POOL/NAME``."""
    return VolumeRef.parse(name if "/" in name else f"default/{name}")


async def refuse_online(volume: str, _: object) -> None:
    """No VM runs here."""
    raise AssertionError(f"{volume} is not open anywhere")


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with open_memory_store() as store:
        host = Host(tmp_path, store)
        yield host
        assert [file for file in host.files if file.startswith(".")] == []


@pytest.fixture
def storage(host: Host) -> Storage:
    return host.storage
