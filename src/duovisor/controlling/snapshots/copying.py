"""Copies of files that keep their holes, and share blocks where the file system can. These may block."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Follow = Callable[[int], None]

T = TypeVar("T")

FICLONE = 0x40049409  # linux/fs.h: btrfs and XFS have it, ext4 and tmpfs have not
PART_BYTES = 16 << 20
# A guest's memory may be thousands of pieces of some pages: each would be a search, and a call of its own.
GRAIN_BYTES = 128 << 10
BLOCK_BYTES = 512  # stat(2): st_blocks


class CopyStoppedError(Exception):
    """Nobody waits for the copy any more; never leaves ``run_copies``."""


async def run_copies(work: Callable[[Follow], T], tell: Callable[[int], None]) -> T:
    """Do ``work`` in a thread; it calls what it is given with each number of bytes that it has copied.

    ``tell`` gets their sum, here. A cancellation is raised when the work has stopped, at the next part.
    """
    loop = asyncio.get_running_loop()
    stopped, done = threading.Event(), 0

    def follow(count: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise CopyStoppedError
        done += count
        loop.call_soon_threadsafe(tell, done)

    task = asyncio.create_task(asyncio.to_thread(work, follow))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stopped.set()
        await asyncio.wait({task})
        task.exception()
        raise


def copy_content(source: int, target: int, follow: Follow) -> int:
    """Give an empty file the content of another; how many bytes had to be written. Raises ``OSError``."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError:  # another file system, or one that cannot
        pass
    else:
        follow(os.fstat(source).st_size)
        return 0
    return copy_data(source, target, follow)


def copy_data(source: int, target: int, follow: Follow) -> int:
    """The same without sharing blocks: what is no hole is written."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    written = 0
    for start, end in find_data(source, size):
        os.lseek(target, start, os.SEEK_SET)
        while start < end:
            count = os.sendfile(target, source, start, min(PART_BYTES, end - start))
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += count
            written += count
            follow(count)
    return written


def find_data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Stretches of whole grains, no longer than a part, outside of which all is holes: first byte, end."""
    start = _find_grain(descriptor, 0, size)
    while start < size:
        end = following = start
        while following == end and end < size and end - start < PART_BYTES:
            end = min(end + GRAIN_BYTES, size)
            following = _find_grain(descriptor, end, size)
        yield start, end
        start = following


def _find_grain(descriptor: int, start: int, size: int) -> int:
    """Where the first grain with data begins, from there on; the size when there is none."""
    if start >= size:
        return size
    try:
        found = os.lseek(descriptor, start, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # a hole up to the end
        raise
    return max(start, found - found % GRAIN_BYTES)


def count_allocated(descriptor: int) -> int:
    """Bytes that a file takes."""
    return os.fstat(descriptor).st_blocks * BLOCK_BYTES
