"""A guest in plain memory: one queue seen from both sides, without sockets or processes."""

from __future__ import annotations

from itertools import pairwise

from duovisor.channel.features import RING_EVENT_IDX, RING_INDIRECT_DESC
from duovisor.channel.frontend_queue import FrontEndQueue, ring_bytes
from duovisor.channel.inflight import QueueInflight, region_bytes
from duovisor.channel.memory import GuestMemory, MemoryRegion
from duovisor.channel.messages import VringAddress
from duovisor.channel.virtqueue import Virtqueue

GUEST = 0x10000
USER = 0x700000000000
MEMORY_BYTES = 1 << 20
BUFFERS = 0x40000  # offset of the first buffer in the memory
BOTH = RING_INDIRECT_DESC | RING_EVENT_IDX


class Guest:
    """Memory, the guest's side of one queue, its in-flight log; ``start_device`` attaches a device side."""

    def __init__(self, size: int = 8, features: int = BOTH, *, region_cuts: tuple[int, ...] = ()) -> None:
        self.view = memoryview(bytearray(MEMORY_BYTES))
        cuts = [0, *region_cuts, MEMORY_BYTES]
        self.memory = GuestMemory(
            [
                MemoryRegion(GUEST + start, USER + 2 * start, self.view[start:end])
                for start, end in pairwise(cuts)
            ]
        )
        self.size = size
        self.features = features
        self.ring = self.view[: ring_bytes(size)]
        self.front = FrontEndQueue(0, size, self.ring, GUEST)
        self.front.set_features(features)
        self.inflight = QueueInflight(memoryview(bytearray(region_bytes(size))), size)
        self.address = VringAddress(
            0, 0, USER, USER + self.used_offset, USER + 16 * size, self.front.used_address
        )

    @property
    def used_offset(self) -> int:
        return self.front.used_address - GUEST

    def start_device(self, *, base: int = 0, shared: bool = True) -> Virtqueue:
        """A device side on the ring as it is now, as after the start of a back end."""
        queue = Virtqueue(0, self.memory)
        queue.start(self.size, self.address, self.features, base, self.inflight if shared else None)
        return queue

    def make_available(self, head: int) -> None:
        """Put a number into the available ring, whatever it is."""
        self.front.submit(head)

    def close(self) -> None:
        self.front.close()
