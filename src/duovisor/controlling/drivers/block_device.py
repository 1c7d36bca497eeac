"""virtio-blk on an image: requests in, status bytes out.

What is in the page cache is answered at once, in the loop: a copy takes less time than handing it to a
thread. What may wait for a medium (O_DIRECT, a read that misses the cache, flush, discard) or is large
enough for another processor to help goes to the worker pool and completes in any order.
"""

from __future__ import annotations

import errno
import os

from duovisor.channel.chain import IN, OUT
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
HELPER_JOBS = 2  # large reads for the thread that copies beside the loop: one is done, one is next


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
        """Answer what can be answered at once, hand the rest to the pool.

        Reads and writes of one buffer are done here, in as few steps as can be; the rest is ``_serve``'s.
        """
        image = self.image
        descriptor, size, nowait = image.descriptor, image.size, self._nowait
        limit = self._inline_limit(queue, chains)
        write_limit = -1 if image.read_only or image.write_through else limit
        unpack, preadv, pwritev = layout.REQUEST.unpack_from, os.preadv, os.pwritev
        done: list[Chain] = []
        for chain in chains:
            frame = chain.frame
            if frame is not None and frame.first_bytes == HEADER_BYTES and frame.last_bytes == 1:
                view, length = frame.view, frame.middle_bytes
                kind, sector = unpack(view, frame.first)
                offset = sector << layout.SECTOR_SHIFT
                moved = -1
                if offset + length <= size and not length & 511:
                    try:
                        if kind == layout.REQUEST_IN and frame.form == IN and length <= limit:
                            moved = preadv(descriptor, frame.buffers, offset, nowait)
                            chain.written = length + 1
                        elif kind == layout.REQUEST_OUT and frame.form == OUT and length <= write_limit:
                            moved = pwritev(descriptor, frame.buffers, offset)
                            chain.written = 1
                    except OSError as error:
                        if frame.form == IN:
                            self._read_refused(error)
                if moved == length:
                    view[frame.last] = 0
                    done.append(chain)
                    continue
            if done:
                queue.complete_all(done)
                done = []
            self._serve(chain, limit)
        if done:
            queue.complete_all(done)

    def _serve(self, chain: Chain, limit: int) -> None:
        """Answer a request of any form, or one that was tried in vain."""
        image = self.image
        readable, writable = chain.readable, chain.writable
        if not readable or not writable or len(readable[0]) != HEADER_BYTES or len(writable[-1]) != 1:
            reframe(chain)
            readable, writable = chain.readable, chain.writable
        kind, _, sector = layout.REQUEST_HEADER.unpack_from(readable[0])
        status = writable.pop()
        offset = sector << layout.SECTOR_SHIFT
        if kind == layout.REQUEST_IN or kind == layout.REQUEST_OUT:
            buffers = writable if kind == layout.REQUEST_IN else readable[1:]
            length = sum(map(len, buffers))
            if (
                length & 511
                or length > MAX_TRANSFER_BYTES
                or offset + length > image.size
                or (kind == layout.REQUEST_OUT and image.read_only)
            ):
                self._finish(chain, status, layout.STATUS_IO_ERROR)
            elif kind == layout.REQUEST_OUT:
                self._write(chain, status, buffers, offset, length <= limit)
            elif length <= limit:
                self._read(chain, status, buffers, offset, length)
            elif image.direct:
                self._submit(chain, status, length + 1, image.read, buffers, offset)
            else:
                self._share(chain, status, buffers, offset, length)
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

    def _read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Read in the loop if that needs no waiting, else in the pool."""
        moved = -1
        try:
            moved = os.preadv(self.image.descriptor, buffers, offset, self._nowait)
        except OSError as error:
            if self._read_refused(error):
                self._read(chain, status, buffers, offset, length)
                return
        if moved == length:
            status[0] = layout.STATUS_OK
            chain.queue.complete(chain, length + 1)
        else:
            self._submit(chain, status, length + 1, self.image.read, buffers, offset)

    def _share(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Copy out of the page cache with two threads: a helper and the loop, each doing what it can.

        More threads would do no more than fight for the interpreter; a loop that only hands over would wake
        and sleep for each request.
        """
        pool = self._pool
        if pool.outstanding < HELPER_JOBS:
            pool.submit(Job(chain, status, length + 1, self.image.read, (buffers, offset)), 1)
            return
        self._read(chain, status, buffers, offset, length)
        chain.queue.publish()
        if pool.done:
            self.reap()

    def _write(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, at_once: bool
    ) -> None:
        image = self.image
        if at_once and not image.write_through:
            try:
                image.write(buffers, offset)
            except OSError:
                self._finish(chain, status, layout.STATUS_IO_ERROR)
            else:
                self._finish(chain, status, layout.STATUS_OK)
        else:
            self._submit(chain, status, 1, image.write, buffers, offset)

    def _read_refused(self, error: OSError) -> bool:
        """A file system without NOWAIT is not asked again: True. A read that would wait is the pool's."""
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and self._nowait and not self.image.direct:
            self._nowait = 0
            return True
        return False

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
    chain.set_buffers(
        [memoryview(header), *rest], [*writable[:-1], *([last[:-1]] if len(last) > 1 else []), last[-1:]]
    )
