"""A collection: documents of one kind under one prefix, changed only by who has seen their last change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel

from duovisor.controlling.store.errors import (
    DocumentConflictError,
    DocumentExistsError,
    DocumentNotFoundError,
)
from duovisor.controlling.store.records import Delete, Get, Put, Transaction, is_absent, is_unchanged_since

if TYPE_CHECKING:
    from duovisor.controlling.store.documents import DocumentKind
    from duovisor.controlling.store.interface import Store
    from duovisor.controlling.store.records import Entry

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Stored(Generic[M]):
    """A document with its place; ``mod_revision`` is what its next change must name (an HTTP ETag)."""

    id: str
    document: M
    create_revision: int
    mod_revision: int


@dataclass(frozen=True, slots=True)
class StoredPage(Generic[M]):
    """Documents ordered by id, as they were at ``revision``; ``more`` says that others follow."""

    items: tuple[Stored[M], ...]
    revision: int
    more: bool


class Collection(Generic[M]):
    """The documents of a kind under a prefix such as ``/vms/``; the rest of the key is the id.

    What reads raises ``DocumentError`` for a value that cannot be read, besides what the store raises.
    """

    def __init__(self, store: Store, kind: DocumentKind[M], prefix: str) -> None:
        self._store = store
        self._kind = kind
        self._prefix = prefix

    def key_of(self, id: str) -> str:
        """Where a document is, for transactions over several collections."""
        return self._prefix + id

    async def find(self, id: str) -> Stored[M] | None:
        """A document, or ``None`` when there is none."""
        entry = await self._store.get(self.key_of(id))
        return None if entry is None else self.read(entry)

    async def get(self, id: str) -> Stored[M]:
        """A document. Raises ``DocumentNotFoundError``."""
        found = await self.find(id)
        if found is None:
            raise self._not_found(id)
        return found

    async def list(
        self, *, limit: int = 100, after: str | None = None, revision: int | None = None
    ) -> StoredPage[M]:
        """A page of documents; ask for the next with the last ``id`` and this page's ``revision``."""
        page = await self._store.range(
            self._prefix, limit=limit, after=None if after is None else self.key_of(after), revision=revision
        )
        return StoredPage(tuple(map(self.read, page.entries)), page.revision, page.more)

    async def create(self, id: str, document: M) -> Stored[M]:
        """Store a new document. Raises ``DocumentExistsError``."""
        key = self.key_of(id)
        outcome = await self._store.commit(
            Transaction((is_absent(key),), then=(Put(key, self._kind.encode(document)),))
        )
        if not outcome.succeeded:
            raise DocumentExistsError(f"there is a {self._kind.name} {id} already")
        return self._stored(id, document, outcome.results[0])

    async def update(self, id: str, document: M, *, seen_revision: int) -> Stored[M]:
        """Replace a document whose last change is ``seen_revision``.

        Raises ``DocumentConflictError`` when it was changed since, ``DocumentNotFoundError`` when it is gone.
        """
        put = Put(self.key_of(id), self._kind.encode(document))
        return self._stored(id, document, await self._change(id, put, seen_revision))

    async def delete(self, id: str, *, seen_revision: int) -> None:
        """Delete a document whose last change is ``seen_revision``. Raises as ``update``."""
        await self._change(id, Delete(self.key_of(id)), seen_revision)

    def read(self, entry: Entry) -> Stored[M]:
        """The document in an entry of this collection, such as one that a watch gave."""
        document = self._kind.decode(entry.value, key=entry.key)
        return self._stored(entry.key.removeprefix(self._prefix), document, entry)

    async def _change(self, id: str, change: Put | Delete, seen_revision: int) -> Entry | None:
        key = change.key
        outcome = await self._store.commit(
            Transaction((is_unchanged_since(key, seen_revision),), then=(change,), otherwise=(Get(key),))
        )
        (entry,) = outcome.results
        if outcome.succeeded:
            return entry
        if entry is None:
            raise self._not_found(id)
        raise DocumentConflictError(
            f"the {self._kind.name} {id} was changed by somebody else (revision {entry.mod_revision}, not "
            f"{seen_revision})",
            remedy="read it again and repeat the change",
        )

    def _not_found(self, id: str) -> DocumentNotFoundError:
        return DocumentNotFoundError(f"there is no {self._kind.name} {id}")

    @staticmethod
    def _stored(id: str, document: M, entry: Entry | None) -> Stored[M]:
        assert entry is not None  # the result of a Put, or what was read
        return Stored(id, document, entry.create_revision, entry.mod_revision)
