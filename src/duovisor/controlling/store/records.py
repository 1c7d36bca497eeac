"""What goes into a store and what comes out, in etcd's terms.

The store has one *revision*, 1 when it is empty, and one more after each transaction that changed anything.
A key remembers the revision that created it, the one that last changed it, and how often it was written
since it was created (*version*). An absent key compares as revision 0 and version 0.
Source: etcd's "KV API guarantees" and ``rpc.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

NO_LEASE = 0
FIRST_REVISION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it was from ``mod_revision`` on; ``lease`` is ``NO_LEASE`` for a key that stays."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = NO_LEASE


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a prefix, ordered by key, as it was at ``revision``; ``more`` says that keys follow."""

    entries: tuple[Entry, ...]
    revision: int
    more: bool


class EventKind(StrEnum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One key's change: ``entry`` is what it is now (``None``: deleted), ``previous`` what it was before."""

    key: str
    revision: int
    entry: Entry | None
    previous: Entry | None

    @property
    def kind(self) -> EventKind:
        return EventKind.DELETE if self.entry is None else EventKind.PUT


class Target(StrEnum):
    """What of a key a comparison looks at."""

    VERSION = "version"
    CREATE_REVISION = "create_revision"
    MOD_REVISION = "mod_revision"
    VALUE = "value"


class Operator(StrEnum):
    """How a comparison compares; bytes are ordered as etcd orders them, byte by byte."""

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition on one key; one on the value of an absent key is never true, whatever the operator."""

    key: str
    target: Target
    operand: int | bytes
    operator: Operator = Operator.EQUAL


def is_absent(key: str) -> Compare:
    """The condition that there is no such key."""
    return Compare(key, Target.CREATE_REVISION, 0)


def is_unchanged_since(key: str, mod_revision: int) -> Compare:
    """The condition that the key was last written at that revision."""
    return Compare(key, Target.MOD_REVISION, mod_revision)


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; its result is the new entry. Without a lease, an earlier one no longer holds the key."""

    key: str
    value: bytes
    lease: int = NO_LEASE


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; its result is what was deleted, ``None`` when there was nothing."""

    key: str


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key as the operations before it left it; its result is the entry or ``None``."""

    key: str


Operation = Put | Delete | Get


@dataclass(frozen=True, slots=True)
class Transaction:
    """``then`` when every condition holds, else ``otherwise``: all of it at one revision, or nothing."""

    compare: tuple[Compare, ...] = ()
    then: tuple[Operation, ...] = ()
    otherwise: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """``succeeded``: ``then`` was done; ``results`` has one item for each operation of the side done.

    ``revision`` is the store's after the transaction.
    """

    succeeded: bool
    revision: int
    results: tuple[Entry | None, ...]
