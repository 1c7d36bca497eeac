"""Where guest memory lives: a tmpfs of our own, mounted while a VM needs it.

Root gets a mount at ``<runtime>/memory``, as /dev/shm may be small (64 MiB in containers) and is open to
everybody. Where mounting is not allowed, and for other users, it is a private folder in /dev/shm.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.errors import HostLacksError

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def open_memory_folder(runtime: Path) -> Iterator[Path]:
    """The folder for memory files; on leaving, the mount is dropped if no other VM needs it.

    Raises ``HostLacksError`` where there is no tmpfs to be had.
    """
    runtime.mkdir(parents=True, exist_ok=True, mode=0o711)
    with _locked(runtime):
        folder = _mount(runtime / "memory") or _shared_folder()
        guard = _use(folder)
    try:
        yield folder
    finally:
        os.close(guard)
        if folder.is_relative_to(runtime):
            with _locked(runtime):
                _unmount_unused(folder)


def _mount(folder: Path) -> Path | None:
    if os.geteuid() != 0:
        return None
    folder.mkdir(exist_ok=True, mode=0o711)
    if os.path.ismount(folder):
        return folder
    options = "size=100%,mode=0711,nosuid,nodev,noexec"
    try:
        process.run(["mount", "-t", "tmpfs", "-o", options, "duovisor", str(folder)], timeout_s=10)
    except process.ProcessError:  # a container without CAP_SYS_ADMIN
        folder.rmdir()
        return None
    return folder


def _shared_folder() -> Path:
    if not os.path.ismount(SHARED_MEMORY):
        raise HostLacksError(
            f"guest memory needs a tmpfs: {SHARED_MEMORY} is none and another cannot be mounted",
            remedy="mount -t tmpfs tmpfs /dev/shm",
        )
    folder = SHARED_MEMORY / f"duovisor-{os.geteuid()}"
    folder.mkdir(exist_ok=True, mode=0o711)
    if folder.stat(follow_symlinks=False).st_uid != os.geteuid():
        raise HostLacksError(f"{folder} belongs to somebody else", remedy=f"rm -r {folder}")
    return folder


def _use(folder: Path) -> int:
    """Hold the folder open: an open descriptor keeps umount away for as long as this process lives."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    assert stat.S_ISDIR(os.fstat(descriptor).st_mode)
    return descriptor


def _unmount_unused(folder: Path) -> None:
    try:
        process.run(["umount", str(folder)], timeout_s=10)
    except process.ProgramFailedError:
        return  # busy: another VM's memory is there
    folder.rmdir()


@contextmanager
def _locked(runtime: Path) -> Iterator[None]:
    descriptor = os.open(runtime, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
