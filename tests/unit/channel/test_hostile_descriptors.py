"""Hostile front ends: descriptors of the wrong kind, too many, too few, closed early, or shrinking."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import socket
from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.conftest import open_descriptors
from tests.unit.channel.hostile_peer import MEMORY_BYTES, HostilePeer, make_memory

from duovisor.channel import messages as m
from duovisor.channel.errors import ChannelError, ProtocolError
from duovisor.channel.memory import map_file
from duovisor.channel.messages import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("no_leak")


@pytest.fixture
def peer() -> Iterator[HostilePeer]:
    made = HostilePeer()
    yield made
    made.close()


def reopen(flags: int) -> int:
    """The same memory under another descriptor."""
    original = make_memory()
    try:
        return os.open(f"/proc/self/fd/{original}", flags)
    finally:
        os.close(original)


def make_pipe_end(which: int) -> int:
    ends = os.pipe()
    os.close(ends[1 - which])
    return ends[which]


def make_orphaned_socket() -> int:
    first, second = socket.socketpair()
    second.close()
    return first.detach()


def make_epoll() -> int:
    with select.epoll() as poller:
        return os.dup(poller.fileno())


def make_sealed_memory() -> int:
    descriptor = make_memory()
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return descriptor


NO_MEMORY: dict[str, Callable[[], int]] = {
    "folder": lambda: os.open("/", os.O_RDONLY),
    "null device": lambda: os.open(os.devnull, os.O_RDWR),
    "zero device": lambda: os.open("/dev/zero", os.O_RDWR),
    "pipe, read end": lambda: make_pipe_end(0),
    "pipe, write end": lambda: make_pipe_end(1),
    "socket": make_orphaned_socket,
    "event descriptor": lambda: os.eventfd(0),
    "epoll": make_epoll,
    "memory, read-only": lambda: reopen(os.O_RDONLY),
    "memory, write-only": lambda: reopen(os.O_WRONLY),
    "memory, only named": lambda: reopen(os.O_PATH),
    "memory sealed against writing": make_sealed_memory,
    "empty memory": lambda: make_memory(0),
    "memory one byte short": lambda: make_memory(MEMORY_BYTES - 1),
}
MAPPING: dict[Request, bytes] = {
    Request.SET_MEM_TABLE: m.build_memory_table([m.RegionDescription(0, MEMORY_BYTES, 0, 0)]),
    Request.ADD_MEM_REG: m.build_memory_region(m.RegionDescription(0, MEMORY_BYTES, 0, 0)),
    Request.SET_LOG_BASE: m.build_log(MEMORY_BYTES, 0),
    Request.SET_INFLIGHT_FD: m.build_inflight(m.InflightDescription(MEMORY_BYTES, 0, 1, 8)),
}
EVENTS = (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR)


@pytest.mark.parametrize("request_number", MAPPING, ids=lambda request: request.name)
@pytest.mark.parametrize("kind", NO_MEMORY)
def test_what_cannot_be_mapped_ends_the_connection(
    peer: HostilePeer, request_number: Request, kind: str
) -> None:
    peer.send(request_number, MAPPING[request_number], NO_MEMORY[kind]())
    assert isinstance(peer.ending(), ProtocolError)


@pytest.mark.parametrize("request_number", EVENTS, ids=lambda request: request.name)
@pytest.mark.parametrize("kind", NO_MEMORY)
def test_no_kind_of_event_descriptor_hangs_or_crashes(
    peer: HostilePeer, request_number: Request, kind: str
) -> None:
    """Some can be waited for, some not; what a queue with such a one loses is the front end's own."""
    peer.set_up()
    assert peer.echo(b"before") == b"erofeb"
    peer.send(request_number, m.build_u64(0), NO_MEMORY[kind]())
    try:
        assert peer.is_served()
        assert peer.echo(b"other", 1) == b"rehto"
    except ChannelError:
        assert isinstance(peer.ending(), ChannelError)


@pytest.mark.parametrize("count", [0, 2, 8])
@pytest.mark.parametrize("request_number", [*MAPPING, *EVENTS, Request.SET_LOG_FD], ids=lambda r: r.name)
def test_a_wrong_number_of_descriptors_ends_the_connection(
    peer: HostilePeer, request_number: Request, count: int
) -> None:
    payload = MAPPING.get(request_number, m.build_u64(0))
    peer.send(request_number, payload, *(make_memory() for _ in range(count)))
    ended = peer.ending()
    assert isinstance(ended, ProtocolError)
    assert f"{request_number.name} came with {count} descriptors, not 1" in ended.message


def test_descriptors_that_nobody_wants_are_closed_at_once(peer: HostilePeer) -> None:
    assert peer.is_served()
    before = open_descriptors()
    for _ in range(50):
        peer.send(Request.SET_OWNER, b"", *(os.eventfd(0) for _ in range(8)))
        peer.send(Request.GET_QUEUE_NUM, b"", os.eventfd(0))
        assert len(peer.connection.wait(5).payload) == 8
    assert open_descriptors() == before


def test_replaced_descriptors_are_closed_at_once(peer: HostilePeer) -> None:
    peer.set_up()
    assert peer.is_served()
    peer.send(Request.SET_LOG_FD, b"", os.eventfd(0))
    peer.send(Request.SET_VRING_ERR, m.build_u64(0), os.eventfd(0))
    assert peer.is_served()
    before = len(open_descriptors())
    for _ in range(50):
        for request in EVENTS:
            peer.send(request, m.build_u64(0), os.eventfd(0))
        peer.send(Request.SET_LOG_FD, b"", os.eventfd(0))
        peer.set_memory()
        assert peer.is_served()
    assert len(open_descriptors()) == before


def test_event_descriptors_without_another_end_cost_no_other_queue(peer: HostilePeer) -> None:
    peer.set_up()
    peer.send(Request.SET_VRING_ERR, m.build_u64(0), make_orphaned_socket())
    peer.send(Request.SET_VRING_KICK, m.build_u64(0), make_orphaned_socket())
    assert peer.is_served()
    assert peer.echo(b"other", 1) == b"rehto"


def test_a_call_descriptor_without_another_end_ends_in_order(peer: HostilePeer) -> None:
    peer.set_up()
    assert peer.is_served()
    peer.send(Request.SET_VRING_CALL, m.build_u64(0), make_orphaned_socket())
    ended = peer.ending()
    assert ended is not None
    assert "queue 0 cannot notify the guest" in ended.message


def test_a_call_descriptor_that_is_full_and_blocks_is_made_not_to(peer: HostilePeer) -> None:
    peer.set_up()
    full = os.eventfd(0)
    os.eventfd_write(full, 2**64 - 2)
    peer.send(Request.SET_VRING_CALL, m.build_u64(0), full)
    assert peer.is_served()


# Files that shrink


def test_a_memory_file_cannot_shrink_once_it_is_mapped() -> None:
    descriptor = make_memory()
    mapping = map_file(descriptor, 0, MEMORY_BYTES, "memory")
    with pytest.raises(OSError, match=rf"\[Errno {errno.EPERM}\]"):
        os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, 2 * MEMORY_BYTES)  # it may grow
    assert mapping[MEMORY_BYTES - 1] == 0
    os.close(descriptor)


def test_a_file_that_cannot_be_sealed_is_mapped_all_the_same() -> None:
    descriptor = make_memory(flags=os.MFD_CLOEXEC)
    assert map_file(descriptor, 0, MEMORY_BYTES, "memory")[0] == 0
    os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_sparse_file_of_any_size_is_mapped_or_refused(peer: HostilePeer) -> None:
    for size in (1 << 40, 1 << 62, 2**63 - 4096):
        region = m.RegionDescription(1 << 48, size, 1 << 48, 0)
        peer.send(Request.ADD_MEM_REG, m.build_memory_region(region), make_memory(size))
    ended = peer.ending()
    assert isinstance(ended, ProtocolError)
    assert "cannot be mapped" in ended.message


# A process that has no descriptors left


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Let this process open so many more descriptors and no others."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def limit(more: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(more):
            os.close(taken.pop())

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for descriptor in taken:
        os.close(descriptor)


@pytest.mark.parametrize("more", range(4))
def test_running_out_of_descriptors_ends_in_order(
    peer: HostilePeer, few_descriptors: Callable[[int], None], more: int
) -> None:
    assert peer.is_served()
    descriptors = [os.eventfd(0) for _ in range(3)]
    few_descriptors(more)
    for descriptor in descriptors:
        peer.send(Request.GET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 1, 8)))
        peer.send(Request.SET_VRING_KICK, m.build_u64(0), descriptor)
    peer.send(Request.GET_INFLIGHT_FD, m.build_inflight(m.InflightDescription(0, 0, 2, 8)))
    peer.send(99)
    assert isinstance(peer.ending(), ChannelError)
