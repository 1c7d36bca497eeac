"""The log of requests in flight, in memory that the front end holds while a back end dies and another starts.

One region per queue, laid out and updated as the vhost-user specification orders for split virtqueues
("Inflight I/O tracking")::

    0  u64 features = 0      16 + 16 i  u8  inflight     descriptor i is the head of a request in flight
    8  u16 version = 1       22 + 16 i  u16 next         list of the last batch of used heads
   10  u16 desc_num          24 + 16 i  u64 counter      order in which heads were fetched
   12  u16 last_batch_head
   14  u16 used_idx

A process may be killed between any two stores, so each is a single one: assignment to a cast ``memoryview``
compiles to one move of the item's size (``struct`` in standard byte order would store byte by byte).

Behind the last region lie 64 bytes of our own: what else a device must not forget, such as a write cache that
the guest switched off. The front end keeps them like the rest; it never looks inside.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct

from duovisor.channel.errors import ProtocolError
from duovisor.channel.messages import InflightDescription

VERSION = 1
REGION_HEADER_BYTES = 16
DESCRIPTOR_STATE_BYTES = 16
REGION_ALIGNMENT = 64

# Indexes into the casts of a region.
VERSION_HALF, DESC_NUM_HALF, LAST_BATCH_HEAD_HALF, USED_INDEX_HALF = 4, 5, 6, 7

COUNTER_LIMIT = 1 << 63  # no queue lives so long; above it the counter would soon have more than 64 bits

# A guest may make a queue larger than the front end announced (QEMU 10: 1024 entries where it asked for a log
# of 256). The buffers that we make have room for QEMU's largest queue, VIRTQUEUE_MAX_SIZE.
CAPACITY_MIN = 1024

DEVICE_STATE_BYTES = 64
DEVICE_STATE_MAX = 48
_DEVICE_STATE = Struct("=8sI4x48s")
_DEVICE_STATE_MAGIC = b"duovisor"


def region_bytes(queue_size: int) -> int:
    """Bytes of one queue's region, a multiple of a cache line."""
    size = REGION_HEADER_BYTES + DESCRIPTOR_STATE_BYTES * queue_size
    return -(-size // REGION_ALIGNMENT) * REGION_ALIGNMENT


def buffer_bytes(queues: int, queue_size: int) -> int:
    """Bytes of the whole buffer that we make: the regions, then the device's own state."""
    return queues * region_bytes(queue_size) + DEVICE_STATE_BYTES


class QueueInflight:
    """The region of one queue; the data path in ``virtqueue`` stores through its views.

    ``states`` are its bytes, ``halves`` and ``counters`` the same memory as 16-bit and 64-bit items.
    """

    __slots__ = ("counters", "halves", "queue_size", "states")

    def __init__(self, view: memoryview, queue_size: int) -> None:
        self.states = view
        self.halves = view.cast("H")
        self.counters = view.cast("Q")
        self.queue_size = queue_size

    @property
    def in_use(self) -> bool:
        """Whether a back end has worked with this region before."""
        return bool(self.halves[VERSION_HALF])

    def recover(self, used_index: int) -> list[int]:
        """Bring the region up to date; return the heads to submit again, in the order they were fetched.

        ``used_index`` is the ``idx`` of the used ring now. A region that was never used is initialised.
        Raises ``ProtocolError`` when the region cannot belong to this queue.
        """
        halves = self.halves
        if halves[VERSION_HALF] == 0:
            halves[DESC_NUM_HALF] = self.queue_size
            halves[USED_INDEX_HALF] = used_index
            halves[VERSION_HALF] = VERSION
            return []
        if halves[VERSION_HALF] != VERSION or halves[DESC_NUM_HALF] != self.queue_size:
            raise ProtocolError(
                f"the in-flight log is version {halves[VERSION_HALF]} for {halves[DESC_NUM_HALF]} entries, "
                f"not version {VERSION} for {self.queue_size}"
            )
        self._finish_last_batch(used_index)
        states = self.states
        heads = [head for head in range(self.queue_size) if states[16 + 16 * head]]
        heads.sort(key=lambda head: self.counters[3 + 2 * head])
        return heads

    def next_counter(self, heads: list[int]) -> int:
        """A value above the counter of every head in flight; raises ``ProtocolError`` at the end of them."""
        last = max((self.counters[3 + 2 * head] for head in heads), default=0)
        if last >= COUNTER_LIMIT:
            raise ProtocolError(f"the in-flight log has fetched {last} requests, more than there can be")
        return last + 1

    def _finish_last_batch(self, used_index: int) -> None:
        """The guest has seen the last batch, but the process died before it could clear the batch's marks."""
        halves = self.halves
        batch = (used_index - halves[USED_INDEX_HALF]) & 0xFFFF
        if batch > self.queue_size:
            raise ProtocolError(
                f"the used ring is {batch} entries ahead of its in-flight log, more than {self.queue_size}"
            )
        head = halves[LAST_BATCH_HEAD_HALF]
        for _ in range(batch):
            if head >= self.queue_size:
                raise ProtocolError(f"the in-flight log names descriptor {head} of {self.queue_size}")
            self.states[16 + 16 * head] = 0
            head = halves[11 + 8 * head]
        halves[USED_INDEX_HALF] = used_index


def make_private_inflight(queue_size: int) -> QueueInflight:
    """A region in our own memory, for a front end without in-flight tracking: the data path has one form."""
    return QueueInflight(memoryview(bytearray(region_bytes(queue_size))), queue_size)


class InflightLog:
    """The whole shared buffer: a region per queue, then the device's own 64 bytes."""

    def __init__(self, view: memoryview, queues: int, queue_size: int) -> None:
        self.queues = queues
        self.queue_size = queue_size
        step = region_bytes(queue_size)
        self.regions = [
            QueueInflight(view[index * step : (index + 1) * step], queue_size) for index in range(queues)
        ]
        tail = view[queues * step : queues * step + DEVICE_STATE_BYTES]
        self._tail = tail if len(tail) == DEVICE_STATE_BYTES else None

    def save_device_state(self, state: bytes) -> None:
        """Keep up to 48 bytes for the next back end of this device."""
        if self._tail is not None:
            _DEVICE_STATE.pack_into(self._tail, 0, _DEVICE_STATE_MAGIC, len(state), state)

    def load_device_state(self) -> bytes | None:
        """What the previous back end saved, or ``None``."""
        if self._tail is None:
            return None
        magic, length, state = _DEVICE_STATE.unpack(self._tail)
        saved: bytes = state[:length]
        return saved if magic == _DEVICE_STATE_MAGIC and length <= DEVICE_STATE_MAX else None


def create_inflight(queues: int, queue_size: int) -> tuple[int, InflightDescription]:
    """A new, empty buffer in a memory file that cannot be resized; the caller closes the descriptor.

    It has room for queues of ``CAPACITY_MIN`` entries at least, whatever ``queue_size`` the front end names.
    """
    size = buffer_bytes(queues, max(queue_size, CAPACITY_MIN))
    descriptor = os.memfd_create("duovisor-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor, InflightDescription(size, 0, queues, queue_size)


def map_inflight(description: InflightDescription, descriptor: int, max_queues: int) -> InflightLog:
    """Map the buffer of SET_INFLIGHT_FD; the caller keeps the descriptor and closes it.

    Raises ``ProtocolError`` when it is too small for its queues or its file.
    """
    queues, queue_size = description.queues, description.queue_size
    if not 0 < queues <= max_queues or not queue_size:
        raise ProtocolError(
            f"an in-flight log for {queues} queues of {queue_size}; this device has {max_queues}"
        )
    if description.mmap_size < queues * region_bytes(queue_size):
        raise ProtocolError(
            f"an in-flight log of {description.mmap_size} bytes is too small for {queues} × {queue_size}"
        )
    if description.mmap_size == buffer_bytes(queues, max(queue_size, CAPACITY_MIN)):
        queue_size = max(queue_size, CAPACITY_MIN)  # one that a back end of ours made
    start, end = description.mmap_offset, description.mmap_offset + description.mmap_size
    try:
        if end > os.fstat(descriptor).st_size:
            raise ProtocolError(f"the in-flight log ends at {end}, behind the end of its file")
        mapping = mmap.mmap(descriptor, end, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the in-flight log cannot be mapped: {error}") from error
    return InflightLog(memoryview(mapping)[start:end], queues, queue_size)
