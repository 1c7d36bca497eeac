"""Collections: create once, change only what one has seen."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from duovisor.controlling.store.collection import Collection
from duovisor.controlling.store.documents import DocumentKind
from duovisor.controlling.store.errors import (
    DocumentConflictError,
    DocumentError,
    DocumentExistsError,
    DocumentNotFoundError,
)
from duovisor.controlling.store.memory import open_memory_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from duovisor.controlling.store.interface import Store


class Pet(BaseModel):
    name: str


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_memory_store() as opened:
        yield opened


@pytest.fixture
def pets(store: Store) -> Collection[Pet]:
    return Collection(store, DocumentKind("pet", Pet), "/pets/")


async def test_what_was_created_can_be_got(pets: Collection[Pet]) -> None:
    created = await pets.create("1", Pet(name="a"))
    assert created == await pets.get("1") == await pets.find("1")
    assert (created.id, created.document, created.create_revision) == (
        "1",
        Pet(name="a"),
        created.mod_revision,
    )


async def test_creating_again_is_refused(pets: Collection[Pet]) -> None:
    await pets.create("1", Pet(name="a"))
    with pytest.raises(DocumentExistsError, match="there is a pet 1 already"):
        await pets.create("1", Pet(name="b"))
    assert (await pets.get("1")).document.name == "a"


async def test_a_change_needs_the_last_revision(pets: Collection[Pet]) -> None:
    first = await pets.create("1", Pet(name="a"))
    second = await pets.update("1", Pet(name="b"), seen_revision=first.mod_revision)
    for change in (
        pets.update("1", Pet(name="c"), seen_revision=first.mod_revision),
        pets.delete("1", seen_revision=first.mod_revision),
    ):
        with pytest.raises(DocumentConflictError, match="the pet 1 was changed by somebody else"):
            await change
    assert await pets.get("1") == second
    await pets.delete("1", seen_revision=second.mod_revision)
    assert await pets.find("1") is None


async def test_what_is_not_there_cannot_be_got_or_changed(pets: Collection[Pet]) -> None:
    for use in (
        pets.get("1"),
        pets.update("1", Pet(name="a"), seen_revision=1),
        pets.delete("1", seen_revision=1),
    ):
        with pytest.raises(DocumentNotFoundError, match="there is no pet 1"):
            await use
    assert await pets.find("1") is None


async def test_of_two_clients_one_wins(pets: Collection[Pet]) -> None:
    seen = (await pets.create("1", Pet(name="a"))).mod_revision
    results = await asyncio.gather(
        *(pets.update("1", Pet(name=name), seen_revision=seen) for name in "bc"), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["DocumentConflictError", "Stored"]


async def test_pages_are_of_one_moment(pets: Collection[Pet]) -> None:
    for number in range(5):
        await pets.create(str(number), Pet(name="old"))
    first = await pets.list(limit=3)
    last = await pets.get("4")
    await pets.update("4", Pet(name="new"), seen_revision=last.mod_revision)
    second = await pets.list(limit=3, after=first.items[-1].id, revision=first.revision)
    assert [item.id for item in first.items + second.items] == ["0", "1", "2", "3", "4"]
    assert (first.more, second.more) == (True, False)
    assert second.items[-1].document.name == "old"


async def test_an_unreadable_document_is_named(pets: Collection[Pet], store: Store) -> None:
    await store.put("/pets/1", b"{")
    for use in (pets.get("1"), pets.list()):
        with pytest.raises(DocumentError, match="/pets/1 does not hold JSON"):
            await use
