"""A front end sends what it likes to a whole back end: it serves or ends in order, and leaks nothing."""

from __future__ import annotations

import array
import gc
import os
import select
import socket
import struct
from typing import TYPE_CHECKING

from tests.fuzz.input_bytes import InputBytes

from duovisor.channel import features as bits
from duovisor.channel import messages as m
from duovisor.channel import requests as r
from duovisor.channel.backend import Backend
from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import ChannelError
from duovisor.channel.inflight import region_bytes
from duovisor.channel.messages import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain

MEMORY_BYTES = 0x8000
USER = 0x7000_0000
QUEUES = 2
MESSAGES = 60
RUNS_PER_LEAK_CHECK = 500
ALL = bits.RING_INDIRECT_DESC | bits.RING_EVENT_IDX | bits.VERSION_1 | bits.PROTOCOL_FEATURES
FEATURES = (ALL, ALL | bits.LOG_ALL, bits.VERSION_1, 0, ALL | bits.RING_PACKED)
ADDRESSES = (USER, USER + 0x200, USER + 0x400, 0, MEMORY_BYTES, USER + MEMORY_BYTES)
SIZES = (MEMORY_BYTES, 0x1000, 8, region_bytes(8) * QUEUES + 64, 64, 0)
REQUESTS = (*sorted(Request), 0, 33, 99)

_life = {"runs": 0, "descriptors": 0}


class Device(VirtioDevice):
    """Answers with what it was asked, as far as there is room."""

    device_id = 42
    queues = QUEUES

    def read_config(self) -> bytes:
        return b"config"

    def write_config(self, offset: int, data: bytes, *, migrating: bool) -> None:
        if offset or not migrating:
            super().write_config(offset, data, migrating=False)

    def save_state(self) -> bytes:
        return b"state"

    def handle_request(self, chain: Chain) -> int:
        data = b"".join(chain.readable)
        written = 0
        for piece in chain.writable:
            part = data[written : written + len(piece)]
            piece[: len(part)] = part
            written += len(part)
        return written


class Peer:
    """The front end's end of a socket, and the memory that it shares."""

    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self.memory = make_memory(MEMORY_BYTES)

    def send(self, data: bytes, descriptors: list[int]) -> None:
        """The descriptors belong to the call; what does not fit is not sent."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self.socket.sendmsg([data or b"\0"], rights if descriptors else [])
        except BlockingIOError:
            pass
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def ask(self, request: int, payload: bytes = b"", *descriptors: int, flags: int = 0) -> None:
        self.send(m.build_header(request, flags, len(payload)) + payload, list(descriptors))


def make_memory(size: int) -> int:
    descriptor = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    return descriptor


def make_ready_event() -> int:
    return os.eventfd(1, os.EFD_NONBLOCK)


def make_orphan() -> int:
    first, second = socket.socketpair()
    second.close()
    return first.detach()


def make_epoll() -> int:
    with select.epoll() as poller:
        return os.dup(poller.fileno())


def make_reader() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def read_descriptors(peer: Peer, source: InputBytes, usual: int) -> list[int]:
    """As many as usual, most of the time, of the kind that is wanted, most of the time."""
    kinds: tuple[Callable[[], int], ...] = (
        lambda: os.dup(peer.memory), make_ready_event, make_ready_event, lambda: make_memory(0x1000),
        lambda: os.open("/", os.O_RDONLY), make_orphan, make_epoll, make_reader,
    )  # fmt: skip
    wanted = source.number(1)
    count = usual if wanted < 200 else wanted % 10
    return [source.choose(kinds)() for _ in range(count)]


def read_region(source: InputBytes) -> m.RegionDescription:
    return m.RegionDescription(
        source.edge(64, (0, 1 << 32)), source.edge(64, SIZES), source.edge(64, ADDRESSES), source.edge(64)
    )


def read_state(source: InputBytes) -> bytes:
    return m.build_vring_state(source.edge(32, (0, 1)), source.edge(32, (8, 0, 1, 4, 16)))


def read_ring(source: InputBytes) -> bytes:
    numbers = [source.edge(64, ADDRESSES) for _ in range(4)]
    return m.build_vring_address(m.VringAddress(source.edge(32, (0, 1)), source.number(1) & 1, *numbers))


def read_log(source: InputBytes) -> bytes:
    size, offset = source.edge(64, SIZES), source.edge(64)
    queues, queue_size = source.choose((2, 1, 0, 3)), source.edge(16, (8,))
    return m.build_inflight(m.InflightDescription(size, offset, queues, queue_size))


def read_payload(request: int, source: InputBytes) -> tuple[bytes, int]:
    """A payload of the request's own form, and how many descriptors go with it."""
    match request:
        case Request.SET_MEM_TABLE:
            count = source.number(1) % 4
            return m.build_memory_table([read_region(source) for _ in range(count)]), count
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            return m.build_memory_region(read_region(source)), int(request == Request.ADD_MEM_REG)
        case (
            Request.SET_VRING_NUM | Request.SET_VRING_BASE | Request.GET_VRING_BASE | Request.SET_VRING_ENABLE
        ):
            return read_state(source), 0
        case Request.SET_VRING_ADDR:
            return read_ring(source), 0
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            value = source.choose((0, 1, 2, 256, 257, 255))
            return m.build_u64(value), int(not value & r.VRING_NO_DESCRIPTOR)
        case Request.SET_FEATURES:
            return m.build_u64(source.choose(FEATURES)), 0
        case Request.GET_CONFIG | Request.SET_CONFIG:
            return m.build_config(source.edge(8), source.number(1) & 3, source.take(source.number(1) % 16)), 0
        case Request.GET_INFLIGHT_FD | Request.SET_INFLIGHT_FD:
            return read_log(source), int(request == Request.SET_INFLIGHT_FD)
        case Request.SET_LOG_BASE:
            return m.build_log(source.edge(64, SIZES), source.edge(64)), 1
        case _:
            return m.build_u64(source.edge(64)), int(request == Request.SET_LOG_FD)


def send_message(peer: Peer, source: InputBytes) -> None:
    request = source.choose(REQUESTS)
    payload, descriptors = read_payload(request, source)
    peer.ask(
        request, payload, *read_descriptors(peer, source, descriptors), flags=source.choose((0, 8, 4, 12))
    )


def send_bytes(peer: Peer, source: InputBytes) -> None:
    peer.send(source.take(source.number(1) % 64), read_descriptors(peer, source, 0))


def send_header(peer: Peer, source: InputBytes) -> None:
    size = source.edge(32, (8, 0, 40))
    data = source.take(source.number(1) % 48)
    peer.send(struct.pack("=III", source.choose(REQUESTS), source.edge(32, (1, 9)), size) + data, [])


def set_up(peer: Peer, source: InputBytes) -> None:
    """The whole way to a running queue, with room for a surprise in the rings."""
    index = source.number(1) % QUEUES
    region = m.RegionDescription(0, MEMORY_BYTES, USER, 0)
    peer.ask(Request.SET_MEM_TABLE, m.build_memory_table([region]), os.dup(peer.memory))
    peer.ask(Request.SET_FEATURES, m.build_u64(source.choose(FEATURES)))
    peer.ask(Request.SET_VRING_NUM, m.build_vring_state(index, 8))
    start = USER + 0x1000 * index
    address = m.VringAddress(index, source.number(1) & 1, start, start + 0x400, start + 0x200, 0x400)
    peer.ask(Request.SET_VRING_ADDR, m.build_vring_address(address))
    peer.ask(Request.SET_VRING_KICK, m.build_u64(index), make_ready_event())
    peer.ask(Request.SET_VRING_CALL, m.build_u64(index), os.eventfd(0, os.EFD_NONBLOCK))
    peer.ask(Request.SET_VRING_ENABLE, m.build_vring_state(index, 1))


def write_rings(peer: Peer, source: InputBytes) -> None:
    """The guest's part: what the rings hold when the back end comes to them."""
    base = 0x1000 * (source.number(1) % QUEUES)
    count = source.number(1) % 9
    for place in range(count):
        entry = struct.pack(
            "=QIHH", source.edge(64, (0x4000, 0x5000, 0)), source.edge(32, (16, 1, 48)),
            source.edge(16, (0, 2, 1, 3, 4)), source.edge(16, (1, 2, 0)),
        )  # fmt: skip
        os.pwrite(peer.memory, entry, base + 16 * place)
    heads = source.take(source.number(1) % 9)
    available = struct.pack("=HH", 0, source.edge(16, (len(heads),)))
    available += b"".join(struct.pack("=H", head % 10) for head in heads)
    os.pwrite(peer.memory, available, base + 0x200)


ACTIONS = (send_message, send_message, set_up, send_message, write_rings, send_bytes, send_header)


def run_one(data: bytes) -> None:
    """One connection, from the first byte to the end of the back end."""
    source, peer = InputBytes(data), Peer()
    backend = Backend(peer.theirs, Device())
    try:
        for _ in range(MESSAGES):
            if not source.remaining:
                break
            source.choose(ACTIONS)(peer, source)
        peer.socket.shutdown(socket.SHUT_WR)
        backend.run()
    except ChannelError:
        pass  # the connection has ended
    finally:
        peer.socket.close()
        os.close(peer.memory)
    _life["runs"] += 1
    if _life["runs"] % RUNS_PER_LEAK_CHECK == 0:
        check_leaks()


def check_leaks() -> None:
    """Fail if descriptors became more since the last look."""
    gc.collect()
    count = len(os.listdir("/proc/self/fd"))
    assert count <= (_life["descriptors"] or count), f"{count} descriptors are open"
    _life["descriptors"] = count
