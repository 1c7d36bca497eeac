"""SQLite's result codes, told as the store's errors."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import (
    StoreCorruptError,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreInUseError,
    StoreIoError,
    StoreReadOnlyError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RESTORE = "keep the file, and restore a backup or start with an empty store"
FREE_SPACE = "free some space and try again; nothing was changed"
MAKE_WRITABLE = "make the folder and the file writable for the user who runs the service"

_PRIMARY_CODE = 0xFF  # an extended result code holds the primary one in its low byte, sqlite.org/rescode.html
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def as_store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """The store's error for one of SQLite's."""
    match getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE:
        case sqlite3.SQLITE_FULL:
            return StoreFullError(f"there is no room for the store {path}", remedy=FREE_SPACE)
        case sqlite3.SQLITE_CORRUPT:
            return StoreCorruptError(f"the store {path} is damaged: {error}", remedy=RESTORE)
        case sqlite3.SQLITE_NOTADB:
            return StoreFormatError(f"{path} is not a duovisor store: {error}", remedy=RESTORE)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreReadOnlyError(f"the store {path} is read-only: {error}", remedy=MAKE_WRITABLE)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreInUseError(f"another program works on the store {path}: {error}")
        case _:
            return StoreIoError(f"the store {path} cannot be used: {error}")


def as_store_error_of_os(error: OSError, path: Path) -> StoreError:
    """The store's error for one that the operating system gave on a path."""
    message = f"cannot open {path}: {error.strerror}"
    if error.errno in _NO_SPACE:
        return StoreFullError(message, remedy=FREE_SPACE)
    if error.errno in _READ_ONLY:
        return StoreReadOnlyError(message, remedy=MAKE_WRITABLE)
    return StoreIoError(message)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise the store's errors instead of SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        raise as_store_error(error, path) from error
