"""Locks on disk files, compatible with QEMU's: neither duovisor, QEMU nor qemu-img writes behind the other.

QEMU (block/file-posix.c) takes open-file-description locks on single bytes of the image: byte 100 + n says
"I use permission n", byte 200 + n says "I do not share permission n". All are read locks; a conflict is seen
by asking whether a write lock could be had (F_OFD_GETLK) on the opposite byte. The lock lives as long as a
descriptor of this open file description: the controlling layer takes it and hands the descriptor to the
driver, so it goes when both are gone, ``kill -9`` included.
"""

from __future__ import annotations

import fcntl
import struct

from duovisor.controlling.errors import DiskFileError, DiskLockedError

PERMISSION_BASE = 100  # RAW_LOCK_PERM_BASE
SHARED_BASE = 200  # RAW_LOCK_SHARED_BASE
CONSISTENT_READ, WRITE, RESIZE = 0, 1, 3  # bit numbers of BLK_PERM_*, include/block/block-common.h

_FLOCK = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, len, pid


def lock_disk(descriptor: int, path: str, *, read_only: bool) -> None:
    """Lock an open disk file for one VM: many readers, or one writer.

    Raises ``DiskLockedError`` when another VM or tool uses it in a way that excludes ours, ``DiskFileError``
    on a file system without locks.
    """
    used = (CONSISTENT_READ,) if read_only else (CONSISTENT_READ, WRITE)
    unshared = (WRITE, RESIZE)
    wanted = [PERMISSION_BASE + bit for bit in used] + [SHARED_BASE + bit for bit in unshared]
    opposite = [SHARED_BASE + bit for bit in used] + [PERMISSION_BASE + bit for bit in unshared]
    try:
        for byte in wanted:
            _take(descriptor, byte)
        free = not any(_is_taken_by_other(descriptor, byte) for byte in opposite)
    except (BlockingIOError, PermissionError):  # a tool that locks the whole file, not as QEMU does
        free = False
    except OSError as error:
        raise DiskFileError(f"cannot lock {path}: its file system says {error.strerror}") from error
    if not free:
        raise DiskLockedError(
            f"{path} is in use by another VM or disk tool",
            remedy="stop the other user; `fuser -v FILE` names it; read_only disks can be shared",
        )


def unlock_disk(descriptor: int) -> None:
    """Let go of all locks that this open file holds; whoever opens the disk next takes its own."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, 0, 0, 0))


def _take(descriptor: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def _is_taken_by_other(descriptor: int, byte: int) -> bool:
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
