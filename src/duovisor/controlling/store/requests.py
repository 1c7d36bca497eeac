"""What a request must be before it reaches a store; the limits are etcd's, or narrower.

Keys are printable ASCII without spaces, so that text order, byte order and SQLite's order are the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import (
    StoreCompactedError,
    StoreFutureRevisionError,
    StoreRequestError,
)
from duovisor.controlling.store.records import Delete, Put, Target

if TYPE_CHECKING:
    from duovisor.controlling.store.records import Compare, Operation, Transaction

KEY_MAX = 512
VALUE_MAX_BYTES = 1024 * 1024  # etcd: 1.5 MiB for a whole request
OPERATIONS_MAX = 128  # etcd's --max-txn-ops

_KEY = re.compile(r"/[!-~]*")


def check_key(key: str) -> str:
    """Return a key or prefix, or raise ``StoreRequestError`` with what is wrong with it."""
    if len(key) > KEY_MAX:
        raise StoreRequestError(f"the key {key[:40]!r}… has {len(key)} characters; {KEY_MAX} is the most")
    if not _KEY.fullmatch(key):
        raise StoreRequestError(f"{key!r} is not a key: '/', then printable ASCII without spaces")
    return key


def check_limit(limit: int) -> int:
    """Return a page's limit, or raise ``StoreRequestError``."""
    if limit < 1:
        raise StoreRequestError(f"a page of {limit} entries cannot be; ask for 1 or more")
    return limit


def check_ttl(ttl_s: float) -> float:
    """Return a lease's time in seconds, or raise ``StoreRequestError``."""
    if not 0 < ttl_s < float("inf"):
        raise StoreRequestError(f"a lease of {ttl_s} seconds cannot be")
    return ttl_s


def check_revision(revision: int, *, compacted: int, current: int) -> int:
    """Return a revision that can be read, or raise what says why it cannot."""
    if revision < compacted:
        raise StoreCompactedError(revision, compacted)
    if revision > current:
        raise StoreFutureRevisionError(f"there is no revision {revision} yet; the store is at {current}")
    return revision


def check_compaction(revision: int, *, compacted: int, current: int) -> None:
    """Raise what says why a store cannot be compacted to a revision."""
    if revision <= compacted:
        raise StoreCompactedError(revision, compacted)
    check_revision(revision, compacted=compacted, current=current)


def check_transaction(transaction: Transaction) -> Transaction:
    """Return a transaction, or raise ``StoreRequestError`` with what is wrong with it."""
    for compare in transaction.compare:
        _check_compare(compare)
    if len(transaction.compare) > OPERATIONS_MAX:
        raise StoreRequestError(f"{len(transaction.compare)} conditions; {OPERATIONS_MAX} is the most")
    _check_operations(transaction.then)
    _check_operations(transaction.otherwise)
    return transaction


def _check_compare(compare: Compare) -> None:
    check_key(compare.key)
    if isinstance(compare.operand, bytes) is not (compare.target is Target.VALUE):
        raise StoreRequestError(
            f"{compare.target} of {compare.key} cannot be compared with {compare.operand!r}"
        )


def _check_operations(operations: tuple[Operation, ...]) -> None:
    if len(operations) > OPERATIONS_MAX:
        raise StoreRequestError(
            f"{len(operations)} operations in a transaction; {OPERATIONS_MAX} is the most"
        )
    written = set()
    for operation in operations:
        check_key(operation.key)
        if isinstance(operation, Put):
            _check_value(operation)
        if isinstance(operation, Put | Delete):
            if operation.key in written:
                raise StoreRequestError(f"{operation.key} is written twice in one transaction")
            written.add(operation.key)


def _check_value(put: Put) -> None:
    size = len(put.value)
    if size > VALUE_MAX_BYTES:
        raise StoreRequestError(f"the value of {put.key} has {size} bytes; {VALUE_MAX_BYTES} is the most")


def prefix_bounds(prefix: str, after: str | None = None) -> tuple[str, str]:
    """The half-open interval of the keys with a prefix, those up to ``after`` left out."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    # A space sorts before every character that a key can have: the first key after this one.
    return (prefix if after is None else max(prefix, after + " ")), end
