"""Hostile guests: any ring contents, contents that change while they are read, the longest chains."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.channel.guest import BOTH, BUFFERS, GUEST, MEMORY_BYTES, Guest
from tests.unit.channel.hostile_peer import HostilePeer, ToughDevice, make_memory

from duovisor.channel.chain import INDIRECT, KEPT_TABLE_LENGTH, MAX_CHAIN_LENGTH, NEXT, WRITE, table_unpacker
from duovisor.channel.dirty_log import map_dirty_log
from duovisor.channel.errors import QueueError
from duovisor.channel.features import LOG_ALL
from duovisor.channel.memory import GuestMemory, MemoryRegion
from duovisor.channel.virtqueue import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

DATA = GUEST + BUFFERS
DESCRIPTOR = struct.Struct("=QIHH")


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def peer(no_leak: None) -> Iterator[HostilePeer]:
    made = HostilePeer()
    yield made
    made.close()


def put_table(guest: Guest, entries: list[tuple[int, int, int, int]], offset: int = BUFFERS) -> None:
    for position, entry in enumerate(entries):
        DESCRIPTOR.pack_into(guest.view, offset + 16 * position, *entry)


def offer(guest: Guest, *descriptors: tuple[int, int, int, int]) -> None:
    """Make a chain available that begins with descriptor 0."""
    put_table(guest, list(descriptors), 0)
    guest.make_available(0)


def linked(
    count: int, address: int = DATA, length: int = 1, flags: int = 0
) -> list[tuple[int, int, int, int]]:
    """A table of ``count`` equal buffers, each linked to the next."""
    return [
        (address, length, flags | (NEXT if index + 1 < count else 0), (index + 1) % count)
        for index in range(count)
    ]


def use(queue: Virtqueue, chain: Chain) -> None:
    """Touch every byte as a device may."""
    assert sum(map(len, chain.readable)) == len(b"".join(chain.readable))
    for piece in chain.writable:
        piece[:] = bytes(len(piece))
    queue.complete(chain, min(sum(map(len, chain.writable)), 2**32 - 1))


# Any content

RING_BYTES = 16 * 8 + 6 + 2 * 8 + 64 + 6 + 8 * 8
numbers = st.one_of(
    st.integers(0, 16), st.sampled_from([2**16 - 1, 2**32 - 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1)
)
addresses = st.one_of(st.integers(GUEST - 32, GUEST + MEMORY_BYTES + 32), st.just(DATA), numbers)


def clip(address: int, length: int, flags: int, following: int) -> tuple[int, int, int, int]:
    return address, length & 0xFFFFFFFF, flags & 0xFFFF, following & 0xFFFF


tables = st.lists(
    st.builds(clip, addresses, numbers, st.one_of(st.integers(0, 7), numbers), numbers), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(tables, tables, st.lists(st.integers(0, 9), max_size=9), numbers, numbers), max_size=4
    ),
    st.binary(max_size=RING_BYTES),
    st.sampled_from([0, BOTH]),
)
def test_any_content_is_served_or_ends_the_queue(
    turns: list[tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int, int]], list[int], int, int]],
    first: bytes,
    features: int,
) -> None:
    guest = Guest(features=features, region_cuts=(BUFFERS, BUFFERS + 24, BUFFERS + 0x100))
    queue = guest.start_device()
    if first[:1] > b"\x7f":  # half of the time with wild rings from the start
        guest.view[: len(first)] = first
    with contextlib.suppress(QueueError):
        for ring, table, heads, event, used in turns:
            put_table(guest, ring, 0)
            put_table(guest, table)
            for head in heads:
                guest.make_available(head)
            struct.pack_into("=H", guest.view, 16 * 8 + 4 + 2 * 8, event & 0xFFFF)
            struct.pack_into("=H", guest.view, guest.used_offset + 2, used & 0xFFFF)
            for chain in queue.pop():
                use(queue, chain)
            queue.publish()
            queue.enable_notifications()
    assert queue.in_flight <= guest.size
    guest.close()


def test_contents_that_change_while_they_are_read_stay_inside(guest: Guest) -> None:
    """One thread writes descriptors, good and bad, as fast as it can, while the other fetches them."""
    queue = guest.start_device()
    good = (DATA, 16 * 3, INDIRECT, 0)
    wild = [good, (DATA, 2**32 - 1, INDIRECT, 0), (2**64 - 1, 48, INDIRECT, 0), (DATA, 64, WRITE, 0), good]
    tables = [
        [(DATA + 256, 16, NEXT, 1), (DATA + 512, 512, NEXT | WRITE, 2), (DATA + 1024, 1, WRITE, 0)],
        [(DATA + 256, 2**32 - 1, NEXT, 1), (GUEST + MEMORY_BYTES - 1, 2, 3, 2), (0, 1, WRITE, 0)],
        [(DATA, 16, NEXT, 0), (DATA, 16, INDIRECT, 1), (DATA, 0, WRITE, 65535)],
    ]
    ends = threading.Event()
    chance = random.Random(4)

    def change() -> None:
        while not ends.is_set():
            DESCRIPTOR.pack_into(guest.view, 0, *chance.choice(wild))
            put_table(guest, chance.choice(tables))

    thread = threading.Thread(target=change)
    thread.start()
    served = failed = 0
    deadline = time.monotonic() + 0.5
    try:
        while time.monotonic() < deadline:
            guest.make_available(0)
            try:
                (chain,) = queue.pop()
                assert sum(map(len, chain.writable)) <= MEMORY_BYTES
                queue.complete(chain, 1)
                queue.publish()
                served += 1
            except QueueError:
                failed += 1
                queue.stop()
                queue = guest.start_device(base=queue.last_available, shared=False)
    finally:
        ends.set()
        thread.join()
    assert served
    assert failed


# Long chains and tables


@pytest.mark.parametrize("length", [8, 9, 256, MAX_CHAIN_LENGTH])
def test_tables_up_to_the_limit_are_served(guest: Guest, length: int) -> None:
    queue = guest.start_device()
    put_table(guest, linked(length))
    offer(guest, (DATA, 16 * length, INDIRECT, 0))
    (chain,) = queue.pop()
    assert len(chain.readable) == length


@pytest.mark.parametrize("before", [1, 7])
def test_a_chain_longer_than_the_limit_in_two_parts_ends_the_queue(guest: Guest, before: int) -> None:
    queue = guest.start_device()
    put_table(guest, linked(MAX_CHAIN_LENGTH))
    direct = [(DATA, 1, NEXT, index + 1) for index in range(before)]
    offer(guest, *direct, (DATA, 16 * MAX_CHAIN_LENGTH, INDIRECT, 0))
    with pytest.raises(QueueError, match="longer than 1024"):
        queue.pop()


def test_a_chain_of_more_pieces_than_the_kernel_takes_ends_the_queue() -> None:
    guest = Guest(region_cuts=(BUFFERS + 0x8000 + 8,))
    queue = guest.start_device()
    put_table(guest, linked(600, DATA + 0x8000, 16))  # each in two regions
    offer(guest, (DATA, 16 * 600, INDIRECT, 0))
    with pytest.raises(QueueError, match="more than 1024 pieces"):
        queue.pop()
    guest.close()


@pytest.mark.parametrize("length", [0, 1, 15, 17, 16 * 1025, 2**31, 2**32 - 1, 2**32 - 16])
def test_lengths_that_no_table_has_end_the_queue(guest: Guest, length: int) -> None:
    queue = guest.start_device()
    offer(guest, (DATA, length, INDIRECT, 0))
    with pytest.raises(QueueError):
        queue.pop()


def test_what_is_kept_for_the_lengths_of_tables_is_bounded() -> None:
    kept = {length: table_unpacker(16 * length) for length in (1, KEPT_TABLE_LENGTH, MAX_CHAIN_LENGTH)}
    again = {length: table_unpacker(16 * length) is found for length, found in kept.items()}
    assert again == {1: True, KEPT_TABLE_LENGTH: True, MAX_CHAIN_LENGTH: False}


class WideView:
    """A region of 1 TiB of which nothing exists: whoever touches a byte of it fails."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, where: slice) -> WideView:
        assert 0 <= where.start < where.stop <= self.size
        return WideView(where.stop - where.start)


def build_wide_memory(guest: Guest) -> GuestMemory:
    wide: memoryview = WideView(1 << 40)  # type: ignore[assignment]
    narrow = guest.memory.regions[0]
    memory = GuestMemory([narrow, MemoryRegion(1 << 40, 1 << 50, wide)])
    memory.main_view, memory.main_start, memory.main_size = narrow.view, GUEST, len(narrow.view)
    return memory


@pytest.mark.parametrize("count", [3, 4, 1024])
def test_a_chain_of_more_than_4_gib_ends_the_queue(guest: Guest, count: int) -> None:
    guest.memory = build_wide_memory(guest)
    queue = guest.start_device()
    put_table(guest, linked(count, 1 << 40, 2**32 - 1, WRITE))
    offer(guest, (DATA, 16 * count, INDIRECT, 0))
    with pytest.raises(QueueError, match="more than 4294967296 bytes"):
        queue.pop()


def test_marking_the_longest_chain_takes_no_time(guest: Guest) -> None:
    """4 GiB are a million pages; a log that has them all already costs nothing."""
    guest.memory = build_wide_memory(guest)
    queue = guest.start_device()
    descriptor = make_memory(((1 << 40) + (1 << 33)) >> 15)
    queue.set_log(map_dirty_log(descriptor, ((1 << 40) + (1 << 33)) >> 15, 0), LOG_ALL)
    put_table(guest, [(1 << 40, 2**31, WRITE | NEXT, 1), ((1 << 40) + 2**31, 2**31, WRITE, 0)])
    for limit_s in (20.0, 5.0):
        offer(guest, (DATA, 32, INDIRECT, 0))
        started = time.monotonic()
        (chain,) = queue.pop()
        queue.complete(chain, 1)
        queue.publish()
        assert time.monotonic() - started < limit_s
    os.close(descriptor)


# Indexes


@pytest.mark.parametrize("used", [1, 7, 0x8000, 0xFFFF])
def test_a_guest_that_writes_the_used_index_confuses_only_itself(guest: Guest, used: int) -> None:
    queue = guest.start_device()
    for turn in range(3):
        struct.pack_into("=H", guest.view, guest.used_offset + 2, used)
        head = guest.front.prepare([(DATA, 1)], [])
        guest.make_available(head)
        (chain,) = queue.pop()
        queue.complete(chain, 0)
        queue.publish()
        assert struct.unpack_from("=H", guest.view, guest.used_offset + 2) == (turn + 1,)


@pytest.mark.parametrize("event", [0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])
def test_no_event_index_stops_the_queue(guest: Guest, event: int) -> None:
    queue = guest.start_device()
    queue.call_descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    for _ in range(5):
        struct.pack_into("=H", guest.view, 16 * 8 + 4 + 2 * 8, event)
        guest.front.submit(guest.front.prepare([(DATA, 1)], []))
        for chain in queue.pop():
            queue.complete(chain, 0)
        queue.publish()
        assert queue.enable_notifications() is False
    assert queue.progress == 5
    os.close(queue.call_descriptor)


def test_a_broken_queue_leaves_the_other_and_the_messages_alone(peer: HostilePeer) -> None:
    peer.set_up()
    broken = peer.queues[0]
    broken.submit(9)  # no descriptor of the ring
    broken.force_kick()
    for _ in range(3):
        assert peer.echo(b"other", 1) == b"rehto"
        assert peer.is_served()
    assert len(peer.running.reports) == 1
    assert "queue 0 of size 8 makes descriptor 9 available" in peer.running.reports[0]


def test_kicks_without_work_hold_up_nobody(peer: HostilePeer) -> None:
    peer.set_up()
    for _ in range(1000):
        peer.queues[0].force_kick()
    assert peer.echo(b"other", 1) == b"rehto"
    assert peer.is_served()


class HungryDevice(ToughDevice):
    """For one of its queues, it needs more memory than its process may have."""

    def handle_request(self, chain: Chain) -> int:
        if chain.queue.index == 0:
            raise MemoryError
        return super().handle_request(chain)


@pytest.fixture
def hungry(no_leak: None) -> Iterator[HostilePeer]:
    made = HostilePeer(HungryDevice(queues=2))
    yield made
    made.close()


def test_a_queue_that_needs_too_much_memory_rests_and_the_other_goes_on(hungry: HostilePeer) -> None:
    hungry.set_up()
    queue = hungry.queues[0]
    queue.submit(queue.prepare([(0x10000, 1)], []))
    queue.force_kick()
    assert hungry.echo(b"other", 1) == b"rehto"
    assert hungry.is_served()
    assert "queue 0 asks for more memory than there is" in hungry.running.reports[0]


def test_a_batch_is_bounded() -> None:
    guest = Guest(size=1024)
    queue = guest.start_device()
    for head in range(1024):
        DESCRIPTOR.pack_into(guest.view, 16 * head, DATA, 1, 0, 0)
        guest.make_available(head)
    fetched: list[int] = []
    while chains := queue.pop():
        assert len(chains) <= MAX_BATCH
        fetched += [chain.head for chain in chains]
    assert fetched == list(range(1024))
    guest.close()
