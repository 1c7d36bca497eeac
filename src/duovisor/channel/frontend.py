"""The front-end side of vhost-user: shared memory, set-up and queues, as a VMM has them.

A ``FrontEnd`` outlives its back ends: it holds the guest's memory, the rings and the log of requests in
flight; ``connect`` brings up a back end on them, the first one or the successor of one that died.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from duovisor.channel import features as bits
from duovisor.channel.connection import Connection, request_name
from duovisor.channel.dirty_log import PAGE_BYTES
from duovisor.channel.errors import ProtocolError
from duovisor.channel.frontend_queue import FrontEndQueue, ring_bytes
from duovisor.channel.inflight import map_inflight
from duovisor.channel.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    InflightDescription,
    RegionDescription,
    Request,
    VringAddress,
    build_config,
    build_inflight,
    build_log,
    build_memory_region,
    build_memory_table,
    build_u64,
    build_vring_address,
    build_vring_state,
    parse_config,
    parse_inflight,
    parse_u64,
    parse_vring_state,
)
from duovisor.channel.virtqueue import VRING_FLAG_LOG

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from duovisor.channel.connection import Message

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
        self.protocol_features = 0
        self.timeout_s = timeout_s
        self._wanted_features = features
        self._wanted_protocol_features = protocol_features
        self._allocated = 0
        self._inflight: tuple[int, InflightDescription] | None = None
        self._connection: Connection | None = None
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

    def connect(self, connected: socket.socket) -> None:
        """Set up a back end and start its queues; raises ``ChannelError`` when it breaks the protocol."""
        self.disconnect()
        self._connection = Connection(connected)
        self._request(Request.SET_OWNER)
        self._negotiate()
        self._set_inflight()
        self._set_memory()
        for queue in self.queues:
            self._start_queue(queue)

    def disconnect(self) -> None:
        """Close the connection as a VMM that ends does; what is in flight stays so."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def stop(self) -> list[int]:
        """Stop all queues in an orderly way; return the available index of each."""
        return [self._stop_queue(queue.index) for queue in self.queues]

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
        answer = parse_config(self._ask(Request.GET_CONFIG, build_config(offset, 0, bytes(size))))
        if (answer[0], len(answer[2])) != (offset, size):
            raise ProtocolError(
                f"the back end answers with {len(answer[2])} bytes of configuration, not {size}"
            )
        return answer[2]

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write to the device's configuration space."""
        self._request(Request.SET_CONFIG, build_config(offset, flags, data))

    # Dirty log

    def start_log(self) -> None:
        """Let the back end note every page that it writes from now on."""
        size = -(-(GUEST_START + len(self.view)) // (PAGE_BYTES * 64)) * 8
        if self._log is not None:
            os.close(self._log[0])
        descriptor = make_memory_file("duovisor-log", size)
        self._log = (descriptor, mmap.mmap(descriptor, size))
        answer = self._ask(Request.SET_LOG_BASE, build_log(size, 0), (descriptor,))
        if len(answer) not in (0, 8):  # the specification does not say what is in it
            raise ProtocolError(f"the back end answers SET_LOG_BASE with {len(answer)} bytes")
        self._request(Request.SET_FEATURES, build_u64(self.features | bits.LOG_ALL))
        for queue in self.queues:
            self._set_address(queue)

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

    def _negotiate(self) -> None:
        offered = parse_u64(self._ask(Request.GET_FEATURES))
        if offered & bits.PROTOCOL_FEATURES:
            available = parse_u64(self._ask(Request.GET_PROTOCOL_FEATURES))
            self.protocol_features = available & self._wanted_protocol_features
            self._request(Request.SET_PROTOCOL_FEATURES, build_u64(self.protocol_features))
        if self.protocol_features & bits.PROTOCOL_MQ:
            possible = parse_u64(self._ask(Request.GET_QUEUE_NUM))
            if possible < len(self.queues):
                raise ProtocolError(f"the back end has {possible} queues; {len(self.queues)} are wanted")
        features = offered & self._wanted_features
        if not self._negotiated:
            self.features = features
            self._negotiated = True
            for queue in self.queues:
                queue.set_features(features)
        elif self.features & ~features:
            raise ProtocolError(f"the successor lacks features {self.features & ~features:#x}")
        self._request(Request.SET_FEATURES, build_u64(self.features))

    def _set_inflight(self) -> None:
        if not self.protocol_features & bits.PROTOCOL_INFLIGHT_SHMFD:
            return
        if self._inflight is None:
            wanted = InflightDescription(0, 0, len(self.queues), self.queue_size)
            self._send(Request.GET_INFLIGHT_FD, build_inflight(wanted))
            message = self._receive(Request.GET_INFLIGHT_FD)
            try:
                description = parse_inflight(message.payload)
                message.expect_descriptors(1)
                self._check_inflight(description, message.descriptors[0])
                self._inflight = (message.take_descriptor(), description)
            finally:
                message.close()
        descriptor, description = self._inflight
        self._request(Request.SET_INFLIGHT_FD, build_inflight(description), (descriptor,))

    def _check_inflight(self, description: InflightDescription, descriptor: int) -> None:
        """A log that no successor could use must not be kept: the device would never come up again."""
        if (description.queues, description.queue_size) != (len(self.queues), self.queue_size):
            raise ProtocolError(
                f"the back end's in-flight log is for {description.queues} queues of {description.queue_size}"
            )
        map_inflight(description, descriptor, len(self.queues))

    def _set_memory(self) -> None:
        descriptors = (self.memory_descriptor,) * len(self.regions)
        if self.protocol_features & bits.PROTOCOL_CONFIGURE_MEM_SLOTS:
            slots = parse_u64(self._ask(Request.GET_MAX_MEM_SLOTS))
            if slots < len(self.regions):
                raise ProtocolError(f"the back end takes {slots} memory regions, not {len(self.regions)}")
            for region in self.regions:
                self._request(Request.ADD_MEM_REG, build_memory_region(region), descriptors[:1])
        else:
            self._request(Request.SET_MEM_TABLE, build_memory_table(self.regions), descriptors)

    def _start_queue(self, queue: FrontEndQueue) -> None:
        index = queue.index
        self._request(Request.SET_VRING_NUM, build_vring_state(index, queue.size))
        self._request(Request.SET_VRING_BASE, build_vring_state(index, queue.last_used))
        self._set_address(queue)
        self._request(Request.SET_VRING_KICK, build_u64(index), (queue.kick_descriptor,))
        self._request(Request.SET_VRING_CALL, build_u64(index), (queue.call_descriptor,))
        if self.features & bits.PROTOCOL_FEATURES:
            self._request(Request.SET_VRING_ENABLE, build_vring_state(index, 1))

    def _stop_queue(self, index: int) -> int:
        answer = parse_vring_state(self._ask(Request.GET_VRING_BASE, build_vring_state(index, 0)))
        if answer[0] != index or answer[1] > 0xFFFF:
            raise ProtocolError(
                f"the back end says that queue {answer[0]} is at {answer[1]}, asked for {index}"
            )
        return answer[1]

    def _set_address(self, queue: FrontEndQueue) -> None:
        address = VringAddress(
            queue.index,
            VRING_FLAG_LOG if self._log is not None else 0,
            self._user_address(queue.guest_address),
            self._user_address(queue.used_address),
            self._user_address(queue.available_address),
            queue.used_address,
        )
        self._request(Request.SET_VRING_ADDR, build_vring_address(address))

    # Messages

    def _send(
        self, request: Request, payload: bytes, descriptors: Sequence[int] = (), flags: int = 0
    ) -> None:
        if self._connection is None:
            raise ProtocolError("no back end is connected")
        self._connection.send(request, payload, flags, tuple(descriptors))

    def _receive(self, request: Request) -> Message:
        if self._connection is None:
            raise ProtocolError("no back end is connected")
        message = self._connection.wait(self.timeout_s)
        if message.request != request or not message.flags & FLAG_REPLY:
            message.close()
            raise ProtocolError(f"the back end answers {request.name} with {request_name(message.request)}")
        return message

    def _ask(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        """Send a request that has an answer of its own."""
        self._send(request, payload, descriptors)
        message = self._receive(request)
        message.close()
        return message.payload

    def _request(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send a request and, where that was negotiated, wait for its acknowledgement."""
        acknowledged = bool(self.protocol_features & bits.PROTOCOL_REPLY_ACK)
        self._send(request, payload, descriptors, FLAG_NEED_REPLY if acknowledged else 0)
        if acknowledged:
            message = self._receive(request)
            message.close()
            if parse_u64(message.payload):
                raise ProtocolError(f"the back end refuses {request.name}")
