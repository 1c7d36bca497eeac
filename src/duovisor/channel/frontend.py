"""The front-end side of vhost-user: shared memory, set-up and queues, as a VMM has them.

A ``FrontEnd`` outlives its back ends: it holds the guest's memory, the rings and the log of requests in
flight; ``connect`` brings up a back end on them, the first one or the successor of one that died.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from duovisor.channel import features as bits
from duovisor.channel.dirty_log import PAGE_BYTES
from duovisor.channel.errors import ProtocolError
from duovisor.channel.frontend_link import FrontEndLink
from duovisor.channel.frontend_queue import FrontEndQueue, ring_bytes
from duovisor.channel.messages import RegionDescription, VringAddress
from duovisor.channel.virtqueue import VRING_FLAG_LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from duovisor.channel.frontend_link import Inflight

GUEST_START = 0x100000
USER_START = 0x7F0000000000


def make_memory_file(name: str, size: int) -> int:
    """A new memory file of ``size`` bytes, which no back end can resize; the caller closes the descriptor."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


class FrontEnd:
    """Memory of ``memory_bytes`` in ``regions`` adjacent pieces, and ``queues`` queues of ``queue_size``.

    Guest addresses begin at ``GUEST_START``. ``timeout_s`` bounds every wait for an answer.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 64 << 20,
        regions: int = 1,
        queues: int = 1,
        queue_size: int = 128,
        features: int = (1 << 64) - 1 & ~bits.LOG_ALL,
        protocol_features: int = bits.CHANNEL_PROTOCOL_FEATURES,
        timeout_s: float = 10.0,
    ) -> None:
        self.memory_descriptor = make_memory_file("duovisor-guest", memory_bytes)
        self.view = memoryview(mmap.mmap(self.memory_descriptor, memory_bytes))
        piece = memory_bytes // regions // PAGE_BYTES * PAGE_BYTES
        starts = [index * piece for index in range(regions)]
        self.regions = [
            RegionDescription(GUEST_START + start, end - start, USER_START + 2 * start, start)
            for start, end in zip(starts, [*starts[1:], memory_bytes], strict=True)
        ]
        self.queue_size = queue_size
        self.features = 0
        self.timeout_s = timeout_s
        self._wanted_features = features
        self._wanted_protocol_features = protocol_features
        self._allocated = 0
        self._inflight: Inflight | None = None
        self._link: FrontEndLink | None = None
        self._log: tuple[int, mmap.mmap] | None = None
        self._negotiated = False
        self.queues = [self._make_queue(index) for index in range(queues)]

    # Memory

    def allocate(self, size: int, alignment: int = 16) -> tuple[int, memoryview]:
        """Guest address and bytes of fresh memory, never freed; raises ``ProtocolError`` without any left."""
        start = -(-self._allocated // alignment) * alignment
        if start + size > len(self.view):
            raise ProtocolError(f"the guest's memory of {len(self.view)} bytes is used up")
        self._allocated = start + size
        return GUEST_START + start, self.view[start : start + size]

    def _make_queue(self, index: int) -> FrontEndQueue:
        address, view = self.allocate(ring_bytes(self.queue_size), PAGE_BYTES)
        return FrontEndQueue(index, self.queue_size, view, address)

    def _user_address(self, guest_address: int) -> int:
        for region in self.regions:
            if region.guest_address <= guest_address < region.guest_address + region.size:
                return region.user_address + guest_address - region.guest_address
        raise ProtocolError(f"guest address {guest_address:#x} is not in the guest's memory")

    # Connection

    @property
    def link(self) -> FrontEndLink:
        """The connection to the back end; raises ``ProtocolError`` while there is none."""
        if self._link is None:
            raise ProtocolError("no back end is connected")
        return self._link

    @property
    def protocol_features(self) -> int:
        """What was agreed on with the back end that is connected; 0 without one."""
        return self._link.protocol_features if self._link is not None else 0

    def connect(self, connected: socket.socket) -> None:
        """Set up a back end and start its queues; raises ``ChannelError`` when it breaks the protocol."""
        self.disconnect()
        self._link = link = FrontEndLink(connected, self.timeout_s)
        self._choose_features(link.negotiate(self._wanted_protocol_features, len(self.queues)))
        link.set_features(self.features)
        self._set_inflight()
        link.set_memory(self.regions, (self.memory_descriptor,) * len(self.regions))
        for queue in self.queues:
            self._start_queue(queue)

    def disconnect(self) -> None:
        """Close the connection as a VMM that ends does; what is in flight stays so."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def stop(self) -> list[int]:
        """Stop all queues in an orderly way; return the available index of each."""
        return [self.link.stop_queue(queue.index) for queue in self.queues]

    def resume(self) -> None:
        """Start the queues again after ``stop``, on the same connection."""
        self._set_inflight()
        for queue in self.queues:
            self._start_queue(queue)

    def close(self) -> None:
        """Close everything; slices of the memory that others hold stay valid."""
        self.disconnect()
        for queue in self.queues:
            queue.close()
        descriptors = [self.memory_descriptor]
        descriptors += [held[0] for held in (self._inflight, self._log) if held is not None]
        for descriptor in descriptors:
            os.close(descriptor)
        self._inflight = self._log = None
        self.view = memoryview(b"")

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Configuration space

    def get_config(self, offset: int, size: int) -> bytes:
        """Read the device's configuration space."""
        return self.link.get_config(offset, size)

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write to the device's configuration space."""
        self.link.set_config(offset, data, flags)

    # Dirty log

    def start_log(self) -> None:
        """Let the back end note every page that it writes from now on."""
        size = -(-(GUEST_START + len(self.view)) // (PAGE_BYTES * 64)) * 8
        if self._log is not None:
            os.close(self._log[0])
        descriptor = make_memory_file("duovisor-log", size)
        self._log = (descriptor, mmap.mmap(descriptor, size))
        self.link.set_log(size, descriptor)
        self.link.set_features(self.features | bits.LOG_ALL)
        for queue in self.queues:
            self.link.set_address(self._address(queue))

    def take_dirty_pages(self) -> set[int]:
        """Numbers of the guest pages written since the last call; clears them.

        Only for a back end at rest: unlike a VMM's, this does not fetch and clear in one atomic step.
        """
        if self._log is None:
            return set()
        mapping = self._log[1]
        pages = {
            8 * index + bit
            for index, byte in enumerate(mapping[:])
            if byte
            for bit in range(8)
            if byte >> bit & 1
        }
        mapping[:] = bytes(len(mapping))
        return pages

    # Set-up

    def _choose_features(self, offered: int) -> None:
        features = offered & self._wanted_features
        if not self._negotiated:
            self.features = features
            self._negotiated = True
            for queue in self.queues:
                queue.set_features(features)
        elif self.features & ~features:
            raise ProtocolError(f"the successor lacks features {self.features & ~features:#x}")

    def _set_inflight(self) -> None:
        if self._inflight is None:
            self._inflight = self.link.get_inflight(len(self.queues), self.queue_size)
        if self._inflight is not None:
            self.link.set_inflight(self._inflight)

    def _start_queue(self, queue: FrontEndQueue) -> None:
        self.link.start_queue(
            self._address(queue), queue.size, queue.last_used, queue.kick_descriptor, queue.call_descriptor
        )
        if self.features & bits.PROTOCOL_FEATURES:
            self.link.enable_queue(queue.index)

    def _address(self, queue: FrontEndQueue) -> VringAddress:
        return VringAddress(
            queue.index,
            VRING_FLAG_LOG if self._log is not None else 0,
            self._user_address(queue.guest_address),
            self._user_address(queue.used_address),
            self._user_address(queue.available_address),
            queue.used_address,
        )
