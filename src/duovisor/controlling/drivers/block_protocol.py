"""The virtio-blk protocol of a disk, whatever it consists of (virtio 1.2, section 5.2).

Requests are taken apart and checked here; a class derived from ``BlockProtocol`` does them and answers each
with ``finish``, at once or later.
"""

from __future__ import annotations

import errno

from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import ProtocolError, QueueError
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.image import Image
    from duovisor.controlling.drivers.workers import Job

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
MAX_TRANSFER_BYTES = 1 << 30  # one segment of QEMU's is smaller; the length of a used element has 32 bits
HEADER_BYTES = layout.REQUEST_HEADER.size


class Disk:
    """What a VM's owner says of a disk; ``image`` is its file, if it has one."""

    __slots__ = ("block_bytes", "image", "queue_size", "queues", "read_only", "serial")

    def __init__(
        self,
        image: Image | None = None,
        *,
        read_only: bool = False,
        serial: str = "",
        queues: int = 1,
        queue_size: int = 128,
        block_bytes: int = layout.SECTOR_BYTES,
    ) -> None:
        self.image = image
        self.read_only = image.read_only if image is not None else read_only
        self.serial = serial
        self.queues = queues
        self.queue_size = queue_size
        self.block_bytes = block_bytes


def say_nothing() -> None:
    """What ``on_full`` is where nobody waits for room: the guest is told of an error."""


class BlockProtocol(VirtioDevice):
    """A disk of ``size_bytes``. Offsets and lengths of requests are bytes, whole sectors of 512.

    Requests that find no room on the host are ``parked``: the guest is not told of them until they are done.

    ``discards``: whether the guest may discard and write zeroes. ``write_through``: a change must be safe
    before it is answered.
    """

    device_id = layout.DEVICE_ID
    discards = True
    on_full: Callable[[], None] = staticmethod(say_nothing)
    """Called when requests begin to wait for room where the image is."""

    def __init__(self, disk: Disk, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % layout.SECTOR_BYTES:
            raise DriverError(
                f"a disk of {size_bytes} bytes is no positive multiple of {layout.SECTOR_BYTES}"
            )
        self.size_bytes = size_bytes
        self.read_only = disk.read_only
        self.queues = disk.queues
        self.features = layout.offered_features(
            queues=disk.queues, read_only=disk.read_only, discards=self.discards
        )
        self.write_cache = True
        self.write_through = False
        self.parked: list[Job] = []
        self._disk = disk
        self._guest_features = self.features

    # Requests

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Take each request apart and begin it."""
        for chain in chains:
            self.serve(chain)

    def serve(self, chain: Chain) -> None:
        """Take one request of any form apart; answer a bad one, begin a good one."""
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
                or offset + length > self.size_bytes
                or (kind == layout.REQUEST_OUT and self.read_only)
            ):
                self.finish(chain, status, layout.STATUS_IO_ERROR)
            elif kind == layout.REQUEST_OUT:
                self.begin_write(chain, status, buffers, offset, length)
            else:
                self.begin_read(chain, status, buffers, offset, length)
        elif kind == layout.REQUEST_FLUSH:
            self.begin_flush(chain, status)
        elif kind == layout.REQUEST_GET_ID:
            self._tell_id(chain, status)
        elif self.discards and kind in (layout.REQUEST_DISCARD, layout.REQUEST_WRITE_ZEROES):
            self._serve_range(chain, status, kind)
        else:
            self.finish(chain, status, layout.STATUS_UNSUPPORTED)

    def finish(self, chain: Chain, status: memoryview, code: int, written: int = 1) -> None:
        """Answer a request: ``written`` counts the status byte too."""
        status[0] = code
        chain.queue.complete(chain, written)

    def may_wait(self, number: int) -> bool:
        """Whether a request that met this error of the system waits: for room, if somebody is told of it."""
        return number in NO_ROOM and self.on_full is not say_nothing

    def park(self, job: Job) -> None:
        """Keep a request that found no room in flight, until ``retry`` or a successor does it again."""
        self.parked.append(job)
        if len(self.parked) == 1:
            self.on_full()

    def retry(self) -> None:
        """There may be room again: do once more what waits for it."""
        parked, self.parked = self.parked, []
        for job in parked:
            job.error = 0
            self.do_again(job)

    def report(self) -> None:
        """It was not for want of room: tell the guest of errors."""
        parked, self.parked = self.parked, []
        for job in parked:
            self.finish(job.chain, job.status, layout.STATUS_IO_ERROR)
            job.chain.queue.publish()

    def do_again(self, job: Job) -> None:
        """Do a request that found no room."""
        raise NotImplementedError

    def begin_read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Fill the guest's buffers from ``offset``, then ``finish`` with ``length + 1``."""
        raise NotImplementedError

    def begin_write(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Write the guest's buffers at ``offset``."""
        raise NotImplementedError

    def begin_flush(self, chain: Chain, status: memoryview) -> None:
        """Make safe all that was answered."""
        raise NotImplementedError

    def begin_discard(self, chain: Chain, status: memoryview, offset: int, length: int) -> None:
        """The content of a range is of no use any more."""
        raise NotImplementedError

    def begin_write_zeroes(
        self, chain: Chain, status: memoryview, offset: int, length: int, *, unmap: bool
    ) -> None:
        """Make a range read as zeros; ``unmap``: its space may be given back."""
        raise NotImplementedError

    def _tell_id(self, chain: Chain, status: memoryview) -> None:
        serial = self._disk.serial.encode()[: layout.SERIAL_BYTES].ljust(layout.SERIAL_BYTES, b"\0")
        position = 0
        for piece in chain.writable:
            part = serial[position : position + len(piece)]
            piece[: len(part)] = part
            position += len(part)
        self.finish(chain, status, layout.STATUS_OK, position + 1)

    def _serve_range(self, chain: Chain, status: memoryview, kind: int) -> None:
        """DISCARD or WRITE_ZEROES, with their one range (virtio 1.2, 5.2.6)."""
        data = b"".join(chain.readable[1:])
        if len(data) != layout.RANGE.size:
            self.finish(chain, status, layout.STATUS_UNSUPPORTED)
            return
        sector, count, flags = layout.RANGE.unpack(data)
        offset, length = sector << layout.SECTOR_SHIFT, count << layout.SECTOR_SHIFT
        if flags & ~layout.UNMAP:
            self.finish(chain, status, layout.STATUS_UNSUPPORTED)
        elif not 0 < count <= layout.MAX_RANGE_SECTORS or offset + length > self.size_bytes or self.read_only:
            self.finish(chain, status, layout.STATUS_IO_ERROR)
        elif kind == layout.REQUEST_WRITE_ZEROES:
            self.begin_write_zeroes(chain, status, offset, length, unmap=bool(flags))
        elif flags:  # "unmap" has a meaning only for write zeroes
            self.finish(chain, status, layout.STATUS_UNSUPPORTED)
        else:
            self.begin_discard(chain, status, offset, length)

    # Configuration

    def read_config(self) -> bytes:
        """The configuration space, with the write cache as it is now."""
        return layout.build_block_config(
            sectors=self.size_bytes >> layout.SECTOR_SHIFT,
            queue_size=self._disk.queue_size,
            queues=self.queues,
            block_bytes=self._disk.block_bytes,
            write_cache=self.write_cache,
        )

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        """The guest may switch the write cache; of what a migration writes, only that byte counts."""
        position = layout.WCE_OFFSET - offset
        if not migrating and (offset != layout.WCE_OFFSET or len(data) != 1):
            raise ProtocolError(f"the guest writes {len(data)} bytes at {offset} of the configuration space")
        if 0 <= position < len(data):
            self.write_cache = bool(data[position])
            self.update_write_through()

    def set_features(self, features: int) -> None:
        """A guest that can neither flush nor switch the cache must find its writes on the medium."""
        self._guest_features = features
        self.update_write_through()

    def save_state(self) -> bytes:
        """Whether the write cache is on: QEMU does not tell a successor."""
        return bytes([self.write_cache])

    def load_state(self, state: bytes) -> None:
        """Take over the predecessor's write cache setting."""
        if len(state) == 1:
            self.write_cache = bool(state[0])
            self.update_write_through()

    def reset(self) -> None:
        """A fresh device has its write cache on."""
        self.write_cache = True
        self.update_write_through()

    def update_write_through(self) -> None:
        """The rule of virtio 1.2, 5.2.6.2, as QEMU applies it."""
        features = self._guest_features
        cached = self.write_cache if features & layout.FEATURE_CONFIG_WCE else features & layout.FEATURE_FLUSH
        self.write_through = not cached


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
