"""The lock that keeps a second process away from a store.

``flock`` on a file of its own: the kernel drops it when the process ends, however it ends. The store's own
file must not be opened beside SQLite, because closing it would drop SQLite's POSIX locks. Source:
sqlite.org/howtocorrupt.html, 2.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import StoreInUseError
from duovisor.controlling.store.sqlite_errors import as_store_error_of_os

if TYPE_CHECKING:
    from pathlib import Path


def lock_path_of(store: Path) -> Path:
    """Where a store's lock is."""
    return store.with_name(store.name + ".lock")


def acquire_lock(store: Path) -> int:
    """Lock a store; the lock lasts until the returned descriptor is closed.

    Raises ``StoreInUseError`` with the holder's process id, or what keeps the file from being opened.
    """
    path = lock_path_of(store)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise as_store_error_of_os(error, path) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
        os.close(fd)
        raise StoreInUseError(
            f"the store {store} is in use by process {holder or 'unknown'}",
            remedy="stop that service, or give this one another state folder",
        ) from error
    with contextlib.suppress(OSError):  # the process id is a courtesy; a full disk does not weaken the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd
