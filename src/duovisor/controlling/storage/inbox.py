"""What is being uploaded, on its way from a request to the operation that takes it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

from duovisor.controlling.storage.errors import VolumeContentError
from duovisor.controlling.storage.steps import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

WAITING = 8  # chunks of a request, of which each has 64 KiB at most
BLOCK_BYTES = 1 << 20


class Inbox:
    """Chunks in their order; whoever puts waits for whoever takes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(WAITING)
        self._abandoned = False

    async def put(self, chunk: bytes | None) -> bool:
        """Put a chunk, None at the end; False when nobody wants more."""
        if not self._abandoned:
            await self._queue.put(chunk)
        return not self._abandoned

    def abandon(self) -> None:
        """Nobody takes any more; who waits to put goes on."""
        self._abandoned = True
        while not self._queue.empty():
            self._queue.get_nowait()

    async def take(self) -> AsyncIterator[bytes]:
        """All of it, in large blocks. Raises ``VolumeContentError`` when it breaks off."""
        block, taken = bytearray(), 0
        while (chunk := await self._queue.get()) is not None:
            block += chunk
            taken += len(chunk)
            if len(block) >= BLOCK_BYTES:
                yield bytes(block)
                block.clear()
        if taken != self.size_bytes:
            raise VolumeContentError(f"the upload broke off after {taken} of {self.size_bytes} bytes")
        if block:
            yield bytes(block)


async def save(inbox: Inbox, path: Path, progress: Callable[[int], None]) -> str:
    """Write an upload to a file or device of zeros, leaving holes where it is zero; returns its SHA-256.

    ``progress`` is told of bytes. Raises ``VolumeContentError`` or ``OSError``.
    """
    digest, written = hashlib.sha256(), 0
    descriptor = await in_thread(os.open, path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        async for block in inbox.take():
            await in_thread(_write, descriptor, block, written, digest.update)
            written += len(block)
            progress(written)
        if await asyncio.to_thread(path.is_file):  # not a device, which is as large as it is
            await in_thread(os.ftruncate, descriptor, written)
    finally:
        os.close(descriptor)
    return digest.hexdigest()


def _write(descriptor: int, block: bytes, offset: int, digest: Callable[[bytes], None]) -> None:
    digest(block)
    if block.count(0) == len(block):
        return
    view = memoryview(block)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
