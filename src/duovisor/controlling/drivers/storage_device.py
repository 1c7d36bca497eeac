"""A disk of one's own: a class that says how its content is read and written.

What ``read``, ``write`` and the others raise as ``OSError`` is an error for the guest; anything else ends the
driver, and its successor gets the request. docs/write-a-driver.md has an example.
"""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import BlockProtocol, Disk
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import Image, copy_pieces, cut_pieces
from duovisor.controlling.drivers.workers import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain

PIECE_BYTES = 1 << 20  # ``read`` and ``write`` are asked for at most so much at once


class StorageDevice(BlockProtocol):
    """A disk; without ``size_bytes`` it is as large as its image. Offsets and lengths are multiples of 512.

    With ``discards`` the guest may call ``discard`` and ``write_zeroes``.
    """

    discards = False

    def __init__(self, disk: Disk, *, size_bytes: int = 0) -> None:
        self.image = disk.image
        if not size_bytes and disk.image is None:
            raise DriverError("a disk without an image needs size_bytes")
        super().__init__(disk, size_bytes or self._require_image().size)

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes from ``offset``."""
        content = bytearray(length)
        self._require_image().read([memoryview(content)], offset)
        return bytes(content)

    def write(self, offset: int, data: bytes) -> None:
        """Write ``data`` at ``offset``; it need not be safe before the next ``flush``."""
        self._require_image().write([memoryview(data)], offset)

    def flush(self) -> None:
        """Return when all that was written is safe."""
        if self.image is not None:
            self.image.flush()

    def discard(self, offset: int, length: int) -> None:
        """The content of a range is of no use any more."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros; ``unmap``: its space may be given back."""
        for position in range(offset, offset + length, PIECE_BYTES):
            self.write(position, bytes(min(PIECE_BYTES, offset + length - position)))

    def _require_image(self) -> Image:
        if self.image is None:
            raise DriverError(f"{type(self).__name__} has no image: override read and write, or name a path")
        return self.image

    # Each request in one go: nothing of a driver of one's own runs in two threads at once

    def begin_read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Fill the guest's buffers through ``read``."""
        self._do(chain, status, length + 1, self._fill, buffers, offset)

    def begin_write(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Hand a copy of the guest's buffers to ``write``."""
        self._do(chain, status, 1, self._store, buffers, offset)

    def begin_flush(self, chain: Chain, status: memoryview) -> None:
        """``flush``."""
        self._do(chain, status, 1, self.flush)

    def begin_discard(self, chain: Chain, status: memoryview, offset: int, length: int) -> None:
        """``discard``."""
        self._do(chain, status, 1, self.discard, offset, length)

    def begin_write_zeroes(
        self, chain: Chain, status: memoryview, offset: int, length: int, *, unmap: bool
    ) -> None:
        """``write_zeroes``."""
        self._do(chain, status, 1, self._zero, offset, length, unmap)

    def _do(
        self, chain: Chain, status: memoryview, written: int, call: Callable[..., None], *arguments: object
    ) -> None:
        try:
            call(*arguments)
        except OSError as error:
            # a flush that met it has lost what it was to make safe: to repeat it would be to lie
            if self.may_wait(error.errno or 0) and call != self.flush:
                self.park(Job(chain, status, written, call, arguments))
            else:
                self.finish(chain, status, layout.STATUS_IO_ERROR)
        else:
            self.finish(chain, status, layout.STATUS_OK, written)

    def do_again(self, job: Job) -> None:
        """At once."""
        self._do(job.chain, job.status, job.written, job.call, *job.arguments)
        job.chain.queue.publish()

    def drain(self) -> None:
        """Nothing is under way; what waits for room is for whoever starts the queue."""
        self.parked.clear()

    def abandon(self) -> None:
        """As ``drain``."""
        self.parked.clear()

    def _fill(self, buffers: list[memoryview], offset: int) -> None:
        for pieces, size in cut_pieces(buffers, PIECE_BYTES):
            content = memoryview(self.read(offset, size))
            if len(content) != size:
                raise DriverError(f"read returned {len(content)} bytes instead of {size}")
            copy_pieces(pieces, content, into=False)
            offset += size

    def _store(self, buffers: list[memoryview], offset: int) -> None:
        for pieces, size in cut_pieces(buffers, PIECE_BYTES):
            self.write(offset, b"".join(pieces))
            offset += size
        self._settle()

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        self.write_zeroes(offset, length, unmap=unmap)
        self._settle()

    def _settle(self) -> None:
        """A guest without a write cache finds what it wrote on the medium."""
        if self.write_through:
            self.flush()
