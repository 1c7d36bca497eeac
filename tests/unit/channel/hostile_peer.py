"""A front end that sends what it likes, to a back end that runs in a thread."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
from typing import TYPE_CHECKING

from tests.unit.channel.echo_device import EchoDevice, RunningBackend

from duovisor.channel import features as bits
from duovisor.channel import messages as m
from duovisor.channel.connection import Connection
from duovisor.channel.frontend_queue import FrontEndQueue, ring_bytes
from duovisor.channel.messages import Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.channel.chain import Chain
    from duovisor.channel.connection import Message
    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.errors import ChannelError

MEMORY_BYTES = 0x20000
USER = 0x7000_0000
DATA = 0x10000  # where a request's buffers may lie; the rings are below
TIMEOUT_S = 60.0


class ToughDevice(EchoDevice):
    """An echo that lives with whatever a guest or a log says, as every device must."""

    def handle_request(self, chain: Chain) -> int:
        data = b"".join(chain.readable)[::-1]
        written = 0
        for piece in chain.writable:
            part = data[written : written + len(piece)]
            piece[: len(part)] = part
            written += len(part)
        return written

    def load_state(self, state: bytes) -> None:
        self.switch = sum(state) & 0xFF


class HostilePeer:
    """A socket to a back end; the back end's end is waited for, never for ever."""

    def __init__(self, device: VirtioDevice | None = None) -> None:
        self.running = RunningBackend(device or ToughDevice(queues=2))
        self.connection = Connection(self.running.peer)
        self.queues: list[FrontEndQueue] = []
        self.memory = make_memory()
        self.view = memoryview(bytearray())

    def send_bytes(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send as it is; the descriptors belong to the call. A back end that has left is no error."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            select.select([], [self.connection.socket], [], TIMEOUT_S)  # the back end may be slow
            self.connection.socket.sendmsg([data], ancillary if descriptors else [])
        for descriptor in descriptors:
            os.close(descriptor)

    def send(self, request: int, payload: bytes = b"", *descriptors: int, flags: int = 0) -> None:
        self.send_bytes(m.build_header(request, flags, len(payload)) + payload, descriptors)

    def ask(self, request: int, payload: bytes = b"") -> Message:
        """Send, and wait for the answer."""
        self.send(request, payload)
        return self.connection.wait(TIMEOUT_S)

    def is_served(self) -> bool:
        """Whether the back end still answers."""
        return len(self.ask(Request.GET_FEATURES).payload) == 8

    def set_memory(self) -> None:
        self.send(
            Request.SET_MEM_TABLE,
            m.build_memory_table([m.RegionDescription(0, MEMORY_BYTES, USER, 0)]),
            os.dup(self.memory),
        )

    def set_up(self, features: int = bits.RING_INDIRECT_DESC | bits.RING_EVENT_IDX, size: int = 8) -> None:
        """Bring up both queues in an orderly way; ``queues`` are the guest's side of them."""
        self.view = map_memory(self.memory)
        self.set_memory()
        self.send(Request.SET_FEATURES, m.build_u64(features | bits.VERSION_1 | bits.PROTOCOL_FEATURES))
        for index in range(2):
            start = index * 0x1000
            queue = FrontEndQueue(index, size, self.view[start : start + ring_bytes(size)], start)
            queue.set_features(features)
            self.queues.append(queue)
            self.send(Request.SET_VRING_NUM, m.build_vring_state(index, size))
            self.send(Request.SET_VRING_ADDR, m.build_vring_address(ring_address(queue)))
            self.send(Request.SET_VRING_KICK, m.build_u64(index), os.dup(queue.kick_descriptor))
            self.send(Request.SET_VRING_CALL, m.build_u64(index), os.dup(queue.call_descriptor))
            self.send(Request.SET_VRING_ENABLE, m.build_vring_state(index, 1))

    def echo(self, text: bytes, index: int = 0) -> bytes:
        """One correct request on a queue."""
        queue = self.queues[index]
        start = DATA + 0x1000 * index
        self.view[start : start + len(text)] = text
        head = queue.prepare([(start, len(text))], [(start + 64, len(text))])
        queue.submit(head)
        queue.force_kick()
        assert queue.wait(TIMEOUT_S) == [(head, len(text))]
        queue.release(head)
        return bytes(self.view[start + 64 : start + 64 + len(text)])

    def ending(self) -> ChannelError | None:
        """Wait for the back end to end by itself; how it did."""
        error = self.running.wait()
        if error is not None:
            error.__traceback__ = error.__context__ = None  # whose frames hold what the back end has mapped
        return error

    def close(self) -> None:
        self.connection.close()
        self.running.close()
        for queue in self.queues:
            queue.close()
        self.view = memoryview(b"")
        os.close(self.memory)


def make_memory(size: int = MEMORY_BYTES, flags: int = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) -> int:
    descriptor = os.memfd_create("guest", flags)
    os.ftruncate(descriptor, size)
    return descriptor


def map_memory(descriptor: int) -> memoryview:
    return memoryview(mmap.mmap(descriptor, 0))


def ring_address(queue: FrontEndQueue) -> m.VringAddress:
    return m.VringAddress(
        queue.index,
        0,
        USER + queue.guest_address,
        USER + queue.used_address,
        USER + queue.available_address,
        0,
    )
