"""The lock that keeps a second process away from a store.

``flock`` on a file of its own: the kernel drops it when the process ends, however it ends. The store's own
file must not be opened beside SQLite, because closing it would drop SQLite's POSIX locks. Source:
sqlite.org/howtocorrupt.html, 2.2.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from duovisor.controlling.store.errors import StoreInUseError
from duovisor.controlling.store.sqlite_errors import as_store_error_of_os

if TYPE_CHECKING:
    from pathlib import Path


DEAD_HOLDER_PATIENCE_S = 2.0


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
    if not _wait_for_lock(fd):
        holder = _read_holder(fd)
        os.close(fd)
        raise StoreInUseError(
            f"the store {store} is in use by process {holder or 'unknown'}",
            remedy="stop that service, or give this one another state folder",
        )
    with contextlib.suppress(OSError):  # the process id is a courtesy; a full disk does not weaken the lock
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _wait_for_lock(fd: int) -> bool:
    """Take the lock; a dead holder's is waited for.

    A process that was killed between fork and exec of a child has left that child a copy of its descriptors,
    and so the lock, until the child execs.
    """
    deadline = time.monotonic() + DEAD_HOLDER_PATIENCE_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read_holder(fd)
            if not holder or os.path.exists(f"/proc/{holder}") or time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True


def _read_holder(fd: int) -> str:
    return os.pread(fd, 32, 0).decode(errors="replace").strip()
