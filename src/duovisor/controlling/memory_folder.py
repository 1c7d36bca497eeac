"""Where guest memory lives: a tmpfs of our own, mounted while a VM needs it.

Root gets a mount at ``<runtime>/memory``, as /dev/shm may be small (64 MiB in containers) and is open to
everybody. Where mounting is not allowed, and for other users, it is a private folder in /dev/shm.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import HostLacksError
from duovisor.hypervisor.memory import find_vm

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")


class MemoryFolder:
    """The folder for memory files, in use: it stays mounted until this is closed.

    As a context manager it gives the path and is closed at the end.
    """

    def __init__(self, path: Path, runtime: Path) -> None:
        self.path = path
        self._runtime = runtime
        self._guard = _open_folder(path)
        fcntl.flock(self._guard, fcntl.LOCK_SH)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the use; folder and mount are dropped if no VM's memory is there."""
        self.release()
        with _locked(self._runtime):
            _drop_unused(self.path)

    def release(self) -> None:
        """End the use and leave everything as it is."""
        os.close(self._guard)


def open_memory_folder(runtime: Path) -> MemoryFolder:
    """Use the folder for memory files, mounted if need be.

    Raises ``HostLacksError`` where there is no tmpfs to be had.
    """
    runtime.mkdir(parents=True, exist_ok=True, mode=0o711)
    with _locked(runtime):
        return MemoryFolder(_mount(runtime / "memory") or _shared_folder(runtime), runtime)


def remove_orphaned_memory(runtime: Path, vms: Path) -> list[Path]:
    """Remove memory files of VMs without a run folder, and the mount when nothing is left in it."""
    removed = []
    for folder in (runtime / "memory", _shared_path(runtime)):
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            if not (vms / find_vm(path)).exists():  # looked at second: a start makes the run folder first
                path.unlink(missing_ok=True)
                removed.append(path)
        with _locked(runtime):
            _drop_unused(folder)
    return removed


def _mount(folder: Path) -> Path | None:
    if os.geteuid() != 0:
        return None
    folder.mkdir(exist_ok=True, mode=0o711)
    if os.path.ismount(folder):
        return folder
    # not the program mount: its start is a good part of a VM's
    flags = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # MS_…, which have the same values
    if ctypes.CDLL(None).mount(b"duovisor", bytes(folder), b"tmpfs", flags, b"size=100%,mode=0711"):
        folder.rmdir()  # a container without CAP_SYS_ADMIN
        return None
    return folder


def _shared_folder(runtime: Path) -> Path:
    if not os.path.ismount(SHARED_MEMORY):
        raise HostLacksError(
            f"guest memory needs a tmpfs: {SHARED_MEMORY} is none and another cannot be mounted",
            remedy="mount -t tmpfs tmpfs /dev/shm",
        )
    folder = _shared_path(runtime)
    folder.mkdir(exist_ok=True, mode=0o711)
    if folder.stat(follow_symlinks=False).st_uid != os.geteuid():
        raise HostLacksError(f"{folder} belongs to somebody else", remedy=f"rm -r {folder}")
    return folder


def _shared_path(runtime: Path) -> Path:
    """A name for each runtime folder: names of VMs are unique only within one."""
    return SHARED_MEMORY / f"duovisor-{os.geteuid()}-{zlib.crc32(bytes(runtime)):08x}"


def _drop_unused(folder: Path) -> None:
    # a sandbox sees its VM's memory through a mount of its own, which does not keep this one busy
    if not folder.is_dir() or any(folder.iterdir()) or _is_used(folder):
        return
    if os.path.ismount(folder):
        process.run(["umount", str(folder)], timeout_s=10)
    folder.rmdir()


def _is_used(folder: Path) -> bool:
    """Whether somebody who is about to put memory there holds the folder."""
    descriptor = _open_folder(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@contextmanager
def _locked(runtime: Path) -> Iterator[None]:
    descriptor = _open_folder(runtime)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
