"""virtio-blk on an image: requests in, status bytes out.

What is in the page cache is answered at once, in the loop: a copy takes less time than handing it to a
thread. What may wait for a medium (O_DIRECT, a read that misses the cache, flush, discard) or is large
enough for another processor to help goes to the worker pool and completes in any order.
"""

from __future__ import annotations

import errno
import os

from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import ProtocolError, QueueError
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.workers import Job, WorkerPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.image import Image

LARGE_BYTES = 128 * 1024
MAX_TRANSFER_BYTES = 1 << 30  # one segment of QEMU's is smaller; the length of a used element has 32 bits
HEADER_BYTES = layout.REQUEST_HEADER.size


class BlockDevice(VirtioDevice):
    """A disk; ``block_bytes`` is the logical block size that the guest is told."""

    device_id = layout.DEVICE_ID

    def __init__(
        self,
        image: Image,
        *,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 128,
        threads: int = 4,
        block_bytes: int = layout.SECTOR_BYTES,
    ) -> None:
        self.image = image
        self.queues = queues
        self.features = layout.offered_features(queues=queues, read_only=image.read_only)
        self.write_cache = True
        self._serial = serial.encode()[: layout.SERIAL_BYTES]
        self._queue_size = queue_size
        self._block_bytes = block_bytes
        self._guest_features = self.features
        self._pool = WorkerPool(threads)
        self.completion_descriptor = self._pool.descriptor
        self._nowait = os.RWF_NOWAIT
        self._other: dict[int, Callable[[Chain, memoryview, int], None]] = {
            layout.REQUEST_FLUSH: self._flush,
            layout.REQUEST_GET_ID: self._get_id,
            layout.REQUEST_DISCARD: self._discard,
            layout.REQUEST_WRITE_ZEROES: self._write_zeroes,
        }

    # Configuration

    def read_config(self) -> bytes:
        """The configuration space, with the write cache as it is now."""
        return layout.build_block_config(
            sectors=self.image.size >> layout.SECTOR_SHIFT,
            queue_size=self._queue_size,
            queues=self.queues,
            block_bytes=self._block_bytes,
            write_cache=self.write_cache,
        )

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        """The guest may switch the write cache; of what a migration writes, only that byte counts."""
        position = layout.WCE_OFFSET - offset
        if not migrating and (offset != layout.WCE_OFFSET or len(data) != 1):
            raise ProtocolError(f"the guest writes {len(data)} bytes at {offset} of the configuration space")
        if 0 <= position < len(data):
            self.write_cache = bool(data[position])
            self._update_write_through()

    def set_features(self, features: int) -> None:
        """A guest that can neither flush nor switch the cache must find its writes on the medium."""
        self._guest_features = features
        self._update_write_through()

    def save_state(self) -> bytes:
        """Whether the write cache is on: QEMU does not tell a successor."""
        return bytes([self.write_cache])

    def load_state(self, state: bytes) -> None:
        """Take over the predecessor's write cache setting."""
        if len(state) == 1:
            self.write_cache = bool(state[0])
            self._update_write_through()

    def reset(self) -> None:
        """A fresh device has its write cache on."""
        self.write_cache = True
        self._update_write_through()

    def _update_write_through(self) -> None:
        """The rule of virtio 1.2, 5.2.6.2, as QEMU applies it."""
        features = self._guest_features
        cached = self.write_cache if features & layout.FEATURE_CONFIG_WCE else features & layout.FEATURE_FLUSH
        self.image.write_through = not cached

    # Requests

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Answer what can be answered at once, hand the rest to the pool."""
        unpack, complete = layout.REQUEST_HEADER.unpack_from, queue.complete
        image = self.image
        descriptor, size, nowait = image.descriptor, image.size, self._nowait
        limit = self._inline_limit(queue, chains)
        for chain in chains:
            readable, writable = chain.readable, chain.writable
            if not readable or not writable or len(readable[0]) != HEADER_BYTES or len(writable[-1]) != 1:
                reframe(chain)
                readable, writable = chain.readable, chain.writable
            kind, _, sector = unpack(readable[0])
            status = writable.pop()
            offset = sector << layout.SECTOR_SHIFT
            if kind == layout.REQUEST_IN:
                length = len(writable[0]) if len(writable) == 1 else sum(map(len, writable))
                if length & 511 or offset + length > size:
                    status[0] = layout.STATUS_IO_ERROR
                    complete(chain, 1)
                elif length > limit:
                    self._transfer(chain, status, length, length + 1, image.read, writable, offset)
                else:
                    try:
                        done = os.preadv(descriptor, writable, offset, nowait)
                    except OSError as error:
                        self._read_refused(error)
                        done = -1
                    if done == length:
                        status[0] = 0
                        complete(chain, length + 1)
                    else:
                        self._submit(chain, status, length + 1, image.read, writable, offset)
            elif kind == layout.REQUEST_OUT:
                del readable[0]
                length = len(readable[0]) if len(readable) == 1 else sum(map(len, readable))
                if length & 511 or offset + length > size or image.read_only:
                    status[0] = layout.STATUS_IO_ERROR
                    complete(chain, 1)
                elif length > limit or image.write_through:
                    self._transfer(chain, status, length, 1, image.write, readable, offset)
                else:
                    self._write_now(chain, status, readable, offset, length)
            else:
                other = self._other.get(kind)
                if other is None:
                    self._finish(chain, status, layout.STATUS_UNSUPPORTED)
                else:
                    other(chain, status, offset)

    def _inline_limit(self, queue: Virtqueue, chains: list[Chain]) -> int:
        """Up to how many bytes a request is done in the loop.

        A lone request always is (a thread would only add a switch); of several, those that threads speed up
        are not.
        """
        if queue.in_flight <= 1 and not self._pool.outstanding:
            return MAX_TRANSFER_BYTES
        return -1 if self.image.direct else LARGE_BYTES

    def _write_now(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        try:
            if os.pwritev(self.image.descriptor, buffers, offset) != length:
                self._submit(chain, status, 1, self.image.write, buffers, offset)
                return
            status[0] = 0
        except OSError:
            if self.image.direct:  # possibly misaligned; the pool knows what to do
                self._submit(chain, status, 1, self.image.write, buffers, offset)
                return
            status[0] = layout.STATUS_IO_ERROR
        chain.queue.complete(chain, 1)

    def _read_refused(self, error: OSError) -> None:
        """A read that would wait goes to the pool; a file system without NOWAIT is not asked again."""
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and self._nowait and not self.image.direct:
            self._nowait = 0

    def _flush(self, chain: Chain, status: memoryview, _: int) -> None:
        self._submit(chain, status, 1, self.image.flush)

    def _get_id(self, chain: Chain, status: memoryview, _: int) -> None:
        serial, position = self._serial.ljust(layout.SERIAL_BYTES, b"\0"), 0
        for piece in chain.writable:
            part = serial[position : position + len(piece)]
            piece[: len(part)] = part
            position += len(part)
        status[0] = layout.STATUS_OK
        chain.queue.complete(chain, position + 1)

    def _discard(self, chain: Chain, status: memoryview, _: int) -> None:
        found = self._parse_range(chain, status)
        if found is not None:
            offset, length, flags = found
            if flags:  # "unmap" has a meaning only for write zeroes
                self._finish(chain, status, layout.STATUS_UNSUPPORTED)
            else:
                self._submit(chain, status, 1, self.image.discard, offset, length)

    def _write_zeroes(self, chain: Chain, status: memoryview, _: int) -> None:
        found = self._parse_range(chain, status)
        if found is not None:
            offset, length, flags = found
            self._submit(chain, status, 1, self._zero, offset, length, bool(flags & layout.UNMAP))

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        self.image.write_zeroes(offset, length, unmap=unmap)

    def _parse_range(self, chain: Chain, status: memoryview) -> tuple[int, int, int] | None:
        """Offset and length in bytes, and flags, of the one range of a request; answers a bad one itself."""
        data = b"".join(chain.readable[1:])
        if len(data) != layout.RANGE.size:
            self._finish(chain, status, layout.STATUS_UNSUPPORTED)
            return None
        sector, count, flags = layout.RANGE.unpack(data)
        if flags & ~layout.UNMAP:
            self._finish(chain, status, layout.STATUS_UNSUPPORTED)
            return None
        offset, length = sector << layout.SECTOR_SHIFT, count << layout.SECTOR_SHIFT
        if (
            not 0 < count <= layout.MAX_RANGE_SECTORS
            or offset + length > self.image.size
            or self.image.read_only
        ):
            self._finish(chain, status, layout.STATUS_IO_ERROR)
            return None
        return offset, length, flags

    # Completion

    def _finish(self, chain: Chain, status: memoryview, code: int) -> None:
        status[0] = code
        chain.queue.complete(chain, 1)

    def _transfer(
        self,
        chain: Chain,
        status: memoryview,
        length: int,
        written: int,
        call: Callable[..., None],
        buffers: list[memoryview],
        offset: int,
    ) -> None:
        if length > MAX_TRANSFER_BYTES:
            self._finish(chain, status, layout.STATUS_IO_ERROR)
        else:
            self._submit(chain, status, written, call, buffers, offset)

    def _submit(
        self, chain: Chain, status: memoryview, written: int, call: Callable[..., None], *arguments: object
    ) -> None:
        self._pool.submit(Job(chain, status, written, call, arguments))

    def reap(self) -> None:
        """Complete what the pool has done."""
        pool = self._pool
        queues: list[Virtqueue] = []
        while pool.done:
            job = pool.done.popleft()
            pool.outstanding -= 1
            queue = job.chain.queue
            job.status[0] = layout.STATUS_IO_ERROR if job.failed else layout.STATUS_OK
            queue.complete(job.chain, 1 if job.failed else job.written)
            if queue not in queues:
                queues.append(queue)
        for queue in queues:
            queue.publish()

    def drain(self) -> None:
        """Wait for the pool, completing as it goes."""
        while self._pool.outstanding:
            self._pool.wait()
            self.reap()

    def abandon(self) -> None:
        """Wait for the pool and drop what it has done: only the successor may answer it."""
        while self._pool.outstanding:
            self._pool.wait()
            self._pool.outstanding -= len(self._pool.done)
            self._pool.done.clear()

    def close(self) -> None:
        """End the threads; the image's descriptor is the caller's."""
        self._pool.close()


def reframe(chain: Chain) -> None:
    """Cut a chain at the borders of header and status, wherever the guest put them (virtio 1.2, 2.7.4).

    Raises ``QueueError`` for a chain without room for both.
    """
    readable, writable = chain.readable, chain.writable
    if sum(map(len, readable)) < HEADER_BYTES or not writable:
        raise QueueError(f"queue {chain.queue.index} has a request without room for its header and status")
    header, rest = b"", list(readable)
    while len(header) < HEADER_BYTES:
        piece = rest.pop(0)
        cut = HEADER_BYTES - len(header)
        header += piece[:cut]
        if len(piece) > cut:
            rest.insert(0, piece[cut:])
    last = writable[-1]
    chain.readable = [memoryview(header), *rest]
    chain.writable = [*writable[:-1], *([last[:-1]] if len(last) > 1 else []), last[-1:]]
