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
    """Where the file is no hole: first and last byte + 1 of each stretch."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            raise
        end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield start, end


def count_data(descriptor: int) -> int:
    """Bytes that are no hole."""
    return sum(end - start for start, end in find_data(descriptor, os.fstat(descriptor).st_size))
