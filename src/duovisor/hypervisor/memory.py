"""A guest's memory on the host: one file on a tmpfs, mapped by whoever serves the guest.

Where the specification leaves room for more there is a file for each memory module that may come, empty
until then: a sandbox shows its VMM the files that were there when it began, and no others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import HypervisorError

if TYPE_CHECKING:
    from pathlib import Path


MODULES = 8
MODULE_STEP_MIB = 128  # Linux, x86: what comes and goes at once (arch/x86/include/asm/sparsemem.h)
MARK = "+"  # in no VM's name


class MemoryFileError(HypervisorError):
    """The file that holds the guest's memory cannot be made."""

    code = "memory-file"


def create_memory_file(path: Path, memory_mib: int, owner: int | None) -> None:
    """Create the file with its full size (MiB), sparse, readable by ``owner`` alone.

    Raises ``MemoryFileError``, also when the file system has not that much room: a page that cannot be had
    later would kill the VMM with SIGBUS.
    """
    check_free(path.parent, memory_mib)
    _create(path, memory_mib, owner)


def check_free(folder: Path, memory_mib: int) -> None:
    """Raises ``MemoryFileError`` when the file system has not that much room (MiB)."""
    found = os.statvfs(folder)
    free_mib = found.f_bavail * found.f_frsize >> 20
    if memory_mib > free_mib:
        raise MemoryFileError(
            f"{memory_mib} MiB of guest memory do not fit: {folder} has {free_mib} MiB free",
            remedy="give the VM less memory, or stop another one",
        )


def list_module_files(path: Path) -> tuple[Path, ...]:
    """The files of the memory modules that may come, of the VM whose memory is in ``path``."""
    return tuple(path.with_name(f"{path.name}{MARK}{number}") for number in range(MODULES))


def find_vm(path: Path) -> str:
    """The name of the VM that a file in the folder of guests' memory belongs to."""
    return path.name.partition(MARK)[0]


def create_module_files(path: Path, owner: int | None) -> None:
    """Create the modules' files, empty. Raises ``MemoryFileError``."""
    for file in list_module_files(path):
        _create(file, 0, owner)


def size_module_file(path: Path, memory_mib: int) -> None:
    """Give a module's file its size (MiB), nothing but zeros. Raises ``MemoryFileError``."""
    try:
        os.truncate(path, 0)
        os.truncate(path, memory_mib << 20)
    except OSError as error:
        raise MemoryFileError(f"{path} cannot have {memory_mib} MiB: {error.strerror}") from error


def remove_memory_files(path: Path) -> None:
    """Remove a guest's memory, whatever of it there is."""
    for file in (*list_module_files(path), path):
        file.unlink(missing_ok=True)


def _create(path: Path, memory_mib: int, owner: int | None) -> None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, memory_mib << 20)
            if owner is not None:
                os.fchown(descriptor, owner, owner)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MemoryFileError(f"cannot make {path}: {error.strerror}") from error
