"""The run folder of a VM: ``<runtime>/vms/NAME`` with its sockets, logs and what other commands may know.

The owner holds a lock (flock) on the folder for as long as it lives. A folder without an owner was left by
a killed process: what it describes is either adopted or undone, and only then may another VM use the name.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from typing import TYPE_CHECKING

from duovisor.controlling.errors import ControllingError, NameInUseError

if TYPE_CHECKING:
    from pathlib import Path


class RunFolder:
    """A run folder that this process owns.

    As a context manager it gives the path and is removed at the end.
    """

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder with all it holds; nobody owns the name any more."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def release(self) -> None:
        """Let go of the folder, which stays for its next owner."""
        os.close(self._lock)


def open_run_folder(vms: Path, name: str) -> RunFolder:
    """Make the run folder of ``name`` if it is not there, and own it.

    Raises ``NameInUseError`` when another process owns it.
    """
    folder = vms / name
    return RunFolder(folder, _own(folder))


def remove_folder(path: Path) -> None:
    """Remove a folder with all it holds, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def list_run_folders(vms: Path) -> list[str]:
    """The names of all run folders, with an owner or without, sorted."""
    try:
        return sorted(folder.name for folder in vms.iterdir() if folder.is_dir())
    except FileNotFoundError:
        return []


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
