"""What a transaction will do, worked out without doing it: a pure function for every embedded store."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import LeaseNotFoundError
from duovisor.controlling.store.records import (
    NO_LEASE,
    Delete,
    Entry,
    Event,
    Get,
    Operation,
    Operator,
    Outcome,
    Put,
    Target,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.store.records import Compare, Transaction

_OPERATORS: dict[Operator, Callable[[int | bytes, int | bytes], bool]] = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.GREATER: operator.gt,
    Operator.LESS: operator.lt,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer to a transaction, and the changes to store before it may be given."""

    outcome: Outcome
    changes: tuple[Event, ...]


def holds(compare: Compare, entry: Entry | None) -> bool:
    """Whether a condition is true of a key's entry, ``None`` for an absent key."""
    if entry is not None:
        actual: int | bytes = getattr(entry, compare.target)
    elif compare.target is Target.VALUE:
        return False
    else:
        actual = 0
    return _OPERATORS[compare.operator](actual, compare.operand)


def plan_transaction(
    transaction: Transaction,
    *,
    revision: int,
    find_entry: Callable[[str], Entry | None],
    has_lease: Callable[[int], bool],
) -> Plan:
    """Work out a transaction on a store at ``revision``. Raises ``LeaseNotFoundError``."""
    succeeded = all(holds(compare, find_entry(compare.key)) for compare in transaction.compare)
    changes: dict[str, Event] = {}
    results = tuple(
        _plan_operation(operation, revision + 1, find_entry, has_lease, changes)
        for operation in (transaction.then if succeeded else transaction.otherwise)
    )
    return Plan(Outcome(succeeded, revision + bool(changes), results), tuple(changes.values()))


def plan_deletion(keys: list[str], *, revision: int, find_entry: Callable[[str], Entry | None]) -> Plan:
    """Work out the deletion of any number of keys at one revision, as the end of a lease needs it."""
    changes = tuple(Event(key, revision + 1, None, find_entry(key)) for key in keys)
    return Plan(Outcome(True, revision + bool(changes), ()), changes)


def _plan_operation(
    operation: Operation,
    revision: int,
    find_entry: Callable[[str], Entry | None],
    has_lease: Callable[[int], bool],
    changes: dict[str, Event],
) -> Entry | None:
    """The operation's result; what it changes is added to ``changes``."""
    key = operation.key
    before = changes[key].entry if key in changes else find_entry(key)
    match operation:
        case Get():
            return before
        case Delete():
            if before is not None:
                changes[key] = Event(key, revision, None, before)
            return before
        case Put(value=value, lease=lease):
            if lease != NO_LEASE and not has_lease(lease):
                raise LeaseNotFoundError(f"there is no lease {lease} for {key}", remedy="grant a new one")
            created, version = (before.create_revision, before.version) if before else (revision, 0)
            entry = Entry(key, value, created, revision, version + 1, lease)
            changes[key] = Event(key, revision, entry, before)
            return entry
