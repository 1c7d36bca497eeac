"""A disk on an image: what can be done at once is, the rest goes to threads.

What may wait for a medium (O_DIRECT, a read that misses the page cache, flush, discard) or is large enough
for another processor to help goes to the worker pool and completes in any order.
"""

from __future__ import annotations

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import BlockProtocol, Disk
from duovisor.controlling.drivers.workers import Job, WorkerPool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.image import Image

LARGE_BYTES = 128 * 1024
HELPER_JOBS = 2  # large reads for the thread that copies beside the loop: one is done, one is next


class ImageDevice(BlockProtocol):
    """A disk whose content is ``image``; up to ``threads`` threads help."""

    def __init__(self, image: Image, disk: Disk, *, threads: int = 4) -> None:
        super().__init__(disk, image.size)
        self.image = image
        self._limit = -1  # up to how many bytes a request is done in the loop
        self._pool = WorkerPool(threads)
        self.completion_descriptor = self._pool.descriptor

    def update_write_through(self) -> None:
        """The image does it."""
        super().update_write_through()
        self.image.write_through = self.write_through

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Answer what can be answered at once, hand the rest to the pool."""
        self._limit = self._find_limit(queue)
        super().handle(queue, chains)

    def _find_limit(self, queue: Virtqueue) -> int:
        """Up to how many bytes a request is done in the loop.

        A lone request is, up to what the image says (a thread would only add a switch); of several, those
        that threads speed up are not.
        """
        if queue.in_flight <= 1 and not self._pool.outstanding:
            return self.image.inline_bytes
        return -1 if self.image.direct else LARGE_BYTES

    def begin_read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """In the loop if that needs no waiting, else in the pool."""
        if length <= self._limit:
            self._try_read(chain, status, buffers, offset, length)
        elif self.image.direct:
            self._submit(chain, status, length + 1, self.image.read, buffers, offset)
        else:
            self._share(chain, status, buffers, offset, length)

    def _try_read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        if self.image.try_read(buffers, offset, length):
            self.finish(chain, status, layout.STATUS_OK, length + 1)
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
        self._try_read(chain, status, buffers, offset, length)
        chain.queue.publish()
        if pool.done:
            self.reap()

    def begin_write(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """In the loop unless it must reach the medium, else in the pool."""
        image = self.image
        if length <= self._limit and not image.write_through:
            try:
                image.write(buffers, offset)
            except OSError as error:
                if self.may_wait(error.errno or 0):
                    self.park(Job(chain, status, 1, image.write, (buffers, offset)))
                else:
                    self.finish(chain, status, layout.STATUS_IO_ERROR)
            else:
                self.finish(chain, status, layout.STATUS_OK)
        else:
            self._submit(chain, status, 1, image.write, buffers, offset)

    def begin_flush(self, chain: Chain, status: memoryview) -> None:
        """In the pool."""
        self._submit(chain, status, 1, self.image.flush)

    def begin_discard(self, chain: Chain, status: memoryview, offset: int, length: int) -> None:
        """In the pool."""
        self._submit(chain, status, 1, self.image.discard, offset, length)

    def begin_write_zeroes(
        self, chain: Chain, status: memoryview, offset: int, length: int, *, unmap: bool
    ) -> None:
        """In the pool."""
        self._submit(chain, status, 1, self._zero, offset, length, unmap)

    def _zero(self, offset: int, length: int, unmap: bool) -> None:
        self.image.write_zeroes(offset, length, unmap=unmap)

    # Completion

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
            # a flush that met it has lost what it was to make safe: to repeat it would be to lie
            if self.may_wait(job.error) and job.call != self.image.flush:
                self.park(job)
                continue
            queue = job.chain.queue
            job.status[0] = layout.STATUS_IO_ERROR if job.error else layout.STATUS_OK
            queue.complete(job.chain, 1 if job.error else job.written)
            if queue not in queues:
                queues.append(queue)
        for queue in queues:
            queue.publish()

    def do_again(self, job: Job) -> None:
        """In the pool."""
        self._pool.submit(job)

    def drain(self) -> None:
        """Wait for the pool, completing as it goes; what waits for room is for whoever starts the queue."""
        while self._pool.outstanding:
            self._pool.wait()
            self.reap()
        self.parked.clear()

    def abandon(self) -> None:
        """Wait for the pool and drop what it has done: only the successor may answer it."""
        while self._pool.outstanding:
            self._pool.wait()
            self._pool.outstanding -= len(self._pool.done)
            self._pool.done.clear()
        self.parked.clear()

    def close(self) -> None:
        """End the threads; the image's descriptor is the caller's."""
        self._pool.close()
