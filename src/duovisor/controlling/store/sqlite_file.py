"""Opening a store's SQLite file: lock, format, durability, damage check.

Table ``history`` has a row for each change that is kept, a deletion being a row of version 0; the newest row
of a key is what it is now. ``meta`` has the store's revision and the one it was compacted to.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.store.errors import (
    StoreCorruptError,
    StoreFormatError,
    StoreIoError,
    StoreReadOnlyError,
)
from duovisor.controlling.store.records import FIRST_REVISION
from duovisor.controlling.store.sqlite_errors import (
    MAKE_WRITABLE,
    RESTORE,
    as_store_error_of_os,
    translated,
)
from duovisor.controlling.store.sqlite_lock import acquire_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT_VERSION = 1
APPLICATION_ID = 0x64757673  # "duvs", in the file's header: sqlite.org/pragma.html#pragma_application_id
DEFAULT_QUOTA_MIB = 2048  # etcd's default

_SCHEMA = f"""
    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        mod_revision INTEGER NOT NULL,
        create_revision INTEGER NOT NULL,
        version INTEGER NOT NULL,
        lease INTEGER NOT NULL,
        value BLOB NOT NULL
    );
    CREATE UNIQUE INDEX history_by_key ON history (key, mod_revision);
    CREATE INDEX history_by_revision ON history (mod_revision);
    CREATE INDEX history_by_lease ON history (lease) WHERE lease != 0;
    CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_s REAL NOT NULL);
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('revision', {FIRST_REVISION}), ('compacted', 0);
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {FORMAT_VERSION};
"""


class StoreFile(NamedTuple):
    """An open file: one connection for the thread that writes, one for the thread that reads."""

    path: Path
    writer: sqlite3.Connection
    reader: sqlite3.Connection
    lock_fd: int

    def close(self) -> None:
        """Let go of the file; the last step is the lock."""
        self.reader.close()
        self.writer.close()
        os.close(self.lock_fd)


def open_store_file(path: Path, *, quota_mib: int = DEFAULT_QUOTA_MIB) -> StoreFile:
    """Open a store's file, or make one. The folder gets mode 0700 and the file 0600 when they are made.

    Raises ``StoreInUseError``, ``StoreFormatError``, ``StoreCorruptError``, ``StoreReadOnlyError``,
    ``StoreFullError`` or ``StoreIoError``; what is not a store, or is a newer one, is left as it is.
    """
    _create_folder(path)
    with contextlib.ExitStack() as undo:
        lock_fd = acquire_lock(path)
        undo.callback(os.close, lock_fd)
        _create_file(path)  # under the lock: to close this file drops SQLite's own locks in this process
        with translated(path):
            writer = undo.enter_context(contextlib.closing(_connect(path)))
            _prepare(writer, path)
            _limit_size(writer, quota_mib)
            _check_damage(writer, path)
            reader = undo.enter_context(contextlib.closing(_connect(path)))
            reader.execute("PRAGMA query_only = ON")
        undo.pop_all()
        return StoreFile(path, writer, reader, lock_fd)


@contextlib.contextmanager
def savepoint(connection: sqlite3.Connection) -> Iterator[None]:
    """Do all that follows or nothing of it; within a transaction or as one."""
    connection.execute("SAVEPOINT part")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # a full disk makes SQLite roll everything back by itself
            connection.execute("ROLLBACK TO part")
            connection.execute("RELEASE part")
        raise
    connection.execute("RELEASE part")


def _create_folder(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise as_store_error_of_os(error, path.parent) from error


def _create_file(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise as_store_error_of_os(error, path) from error
    if not os.access(path, os.W_OK):  # SQLite would open it for reading only, and say so at the first write
        raise StoreReadOnlyError(f"the store {path} is read-only", remedy=MAKE_WRITABLE)


def _connect(path: Path) -> sqlite3.Connection:
    # No implicit transactions; used by one thread at a time, though not the one that opened it.
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make an empty file a store, or check that it is one; then choose durability."""
    is_new = _is_empty(connection)
    if not is_new:
        _check_format(connection, path)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreIoError(
            f"the file system of {path} has no shared memory", remedy="put the state folder on a local disk"
        )
    connection.execute("PRAGMA synchronous = FULL")  # a commit returns when it is on the disk
    if is_new:
        with savepoint(connection):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)


def _is_empty(connection: sqlite3.Connection) -> bool:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    return not tables and _pragma(connection, "application_id") == _pragma(connection, "user_version") == 0


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreFormatError(f"{path} is a database of another program", remedy=RESTORE)
    version = _pragma(connection, "user_version")
    if version > FORMAT_VERSION:
        raise StoreFormatError(
            f"the store {path} has format {version}; this duovisor knows up to {FORMAT_VERSION}",
            remedy="run the newer duovisor that wrote it",
        )


def _limit_size(connection: sqlite3.Connection, quota_mib: int) -> None:
    pages = quota_mib * 1024 * 1024 // _pragma(connection, "page_size")
    connection.execute(f"PRAGMA max_page_count = {pages}")


def _check_damage(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StoreCorruptError(f"the store {path} is damaged: {found}", remedy=RESTORE)


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
