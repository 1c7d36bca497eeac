"""A guest's memory on the host: one file on a tmpfs, mapped by whoever serves the guest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from duovisor.hypervisor.errors import HypervisorError

if TYPE_CHECKING:
    from pathlib import Path


class MemoryFileError(HypervisorError):
    """The file that holds the guest's memory cannot be made."""

    code = "memory-file"


def create_memory_file(path: Path, memory_mib: int, owner: int | None) -> None:
    """Create the file with its full size (MiB), sparse, readable by ``owner`` alone.

    Raises ``MemoryFileError``, also when the file system has not that much room: a page that cannot be had
    later would kill the VMM with SIGBUS.
    """
    folder = os.statvfs(path.parent)
    free_mib = folder.f_bavail * folder.f_frsize >> 20
    if memory_mib > free_mib:
        raise MemoryFileError(
            f"{memory_mib} MiB of guest memory do not fit: {path.parent} has {free_mib} MiB free",
            remedy="give the VM less memory, or stop another one",
        )
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
