"""The run folder of a VM: ``<runtime>/vms/NAME`` with its sockets, logs and what other commands may know.

The owner holds a lock (flock) on the folder for as long as it lives. A folder without an owner was left by
a killed process and is taken over.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from duovisor.controlling.errors import ControllingError, NameInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def open_run_folder(vms: Path, name: str) -> Iterator[Path]:
    """Make and own the run folder of ``name``; removed with all it holds on leaving.

    Raises ``NameInUseError`` when another process owns it.
    """
    folder = vms / name
    lock = _own(folder)
    try:
        _empty(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _own(folder: Path) -> int:
    """Make the folder and lock it; return the descriptor that holds the lock."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o711)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if _may_retry(folder, error):
                continue  # its last owner removes it just now
            raise ControllingError(
                f"cannot make the run folder {folder}: {error.strerror}", remedy="set DUOVISOR_RUNTIME_DIR"
            ) from error
        if not _try_lock(lock):
            os.close(lock)
            raise NameInUseError(
                f"a VM named {folder.name!r} runs already", remedy="choose another --name, or stop that one"
            )
        if _is_still(folder, lock):
            return lock
        os.close(lock)  # its last owner removed it between our mkdir and our lock


def _may_retry(folder: Path, error: OSError) -> bool:
    """Whether the folder came or went between two of our steps, rather than something being in its place."""
    if not isinstance(error, FileNotFoundError | FileExistsError):
        return False
    try:
        return stat.S_ISDIR(folder.lstat().st_mode)
    except FileNotFoundError:
        return folder.parent.is_dir()
    except OSError:
        return False


def _is_still(folder: Path, lock: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False


def has_owner(folder: Path) -> bool:
    """Whether a living process owns this run folder."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _try_lock(lock: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
