"""A disk on a plain image, the fast path: one system call between the image and the guest's memory."""

from __future__ import annotations

import os

from duovisor.channel.chain import IN, OUT
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import HEADER_BYTES, Disk
from duovisor.controlling.drivers.image_device import ImageDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.image import Image


class BlockDevice(ImageDevice):
    """A disk; ``block_bytes`` is the logical block size that the guest is told."""

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
        disk = Disk(image, serial=serial, queues=queues, queue_size=queue_size, block_bytes=block_bytes)
        super().__init__(image, disk, threads=threads)

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Answer what can be answered at once, hand the rest to the pool.

        Reads and writes of one buffer are done here, in as few steps as can be; the rest is ``serve``'s.
        """
        image = self.image
        descriptor, size, nowait = image.descriptor, image.size, image.nowait
        limit = self._limit = self._find_limit(queue)
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
                            image.note_refusal(error)
                if moved == length:
                    view[frame.last] = 0
                    done.append(chain)
                    continue
            if done:
                queue.complete_all(done)
                done = []
            self.serve(chain)
        if done:
            queue.complete_all(done)
