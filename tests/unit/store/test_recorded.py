"""The store that version 1 wrote, kept for ever, opens and means the same.

``docs/store.md`` says what is in it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.errors import StoreCompactedError
from duovisor.controlling.store.records import Entry
from duovisor.controlling.store.sqlite import open_sqlite_store
from duovisor.controlling.store.timers import ManualTimers

RECORDED = Path(__file__).parents[2] / "recorded" / "store-v1.sqlite"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return Path(shutil.copy(RECORDED, tmp_path / "store.sqlite"))


class Example(BaseModel):
    """What a version 2 of the recorded kind would be: sizes got a unit, and ``note`` came."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    memory_bytes: int
    note: str = ""


def _name_the_unit(body: dict[str, Any]) -> dict[str, Any]:
    return {"name": body["name"], "memory_bytes": body["memory_mib"] * 1024 * 1024}


async def test_keys_revisions_and_history_are_as_they_were(path: Path) -> None:
    async with open_sqlite_store(path, timers=ManualTimers()) as store:
        assert await store.revision() == 10
        page = await store.range("/")
        assert [(e.key, e.create_revision, e.mod_revision, e.version, e.lease) for e in page.entries] == [
            ("/examples/a", 2, 4, 2, 0),
            ("/examples/b", 3, 3, 1, 0),
            ("/locks/host", 9, 9, 1, 1),
            ("/names/a", 10, 10, 1, 0),
            ("/raw", 8, 8, 1, 0),
        ]
        assert await store.get("/raw") == Entry("/raw", bytes(range(256)), 8, 8, 1)
        gone = await store.get("/gone", revision=6)
        assert gone == Entry("/gone", b"gone", 5, 6, 2)
        with pytest.raises(StoreCompactedError):
            await store.get("/gone", revision=4)
        assert await store.keep_lease_alive(1) == 30


async def test_its_documents_are_brought_to_a_later_version(path: Path) -> None:
    kind = DocumentKind("example", Example, version=2, upgraders={1: _name_the_unit})
    async with open_sqlite_store(path, timers=ManualTimers()) as store:
        examples = Collection(store, kind, "/examples/")
        first, second = (await examples.list()).items
        assert first.document == Example(name="a", memory_bytes=512 * 1024 * 1024)
        assert second.document == Example(name="b", memory_bytes=1024 * 1024 * 1024)
        await examples.update("a", first.document, seen_revision=first.mod_revision)
        entry = await store.get("/examples/a")
        assert entry is not None
        assert json.loads(entry.value)["version"] == 2


async def test_it_can_be_written(path: Path) -> None:
    async with open_sqlite_store(path, timers=ManualTimers()) as store:
        assert (await store.put("/raw", b"new")).mod_revision == 11
        await store.revoke_lease(1)
        assert await store.get("/locks/host") is None
        assert await store.grant_lease(5) == 2
