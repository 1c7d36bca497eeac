"""A queue driven from both sides, then by a guest that writes whatever it likes."""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.channel.guest import BOTH, BUFFERS, GUEST, MEMORY_BYTES, USER, Guest

from duovisor.channel.chain import IN, INDIRECT, NEXT, OUT, WRITE
from duovisor.channel.errors import DeviceError, GuestMemoryError, QueueError
from duovisor.channel.features import RING_EVENT_IDX, RING_INDIRECT_DESC
from duovisor.channel.memory import MemoryRegion
from duovisor.channel.messages import VringAddress

if TYPE_CHECKING:
    import random

    from duovisor.channel.virtqueue import Virtqueue

DATA = GUEST + BUFFERS


def descriptor(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    return struct.pack("=QIHH", address, length, flags, following)


def put(guest: Guest, offset: int, *descriptors: bytes) -> None:
    data = b"".join(descriptors)
    guest.view[offset : offset + len(data)] = data


@pytest.mark.parametrize("features", [0, RING_INDIRECT_DESC, RING_EVENT_IDX, BOTH])
def test_a_request_goes_there_and_back(features: int) -> None:
    guest = Guest(features=features)
    queue = guest.start_device()
    guest.view[BUFFERS : BUFFERS + 4] = b"ping"
    table = (GUEST + BUFFERS + 256, guest.view[BUFFERS + 256 : BUFFERS + 512])
    head = guest.front.prepare([(DATA, 2), (DATA + 2, 2)], [(DATA + 64, 4)], table)
    guest.front.submit(head)
    (chain,) = queue.pop()
    assert b"".join(chain.readable) == b"ping"
    chain.writable[0][:] = b"pong"
    queue.complete(chain, 4)
    assert guest.front.reap() == []
    queue.publish()
    assert guest.front.reap() == [(head, 4)]
    assert bytes(guest.view[BUFFERS + 64 : BUFFERS + 68]) == b"pong"
    assert queue.in_flight == 0
    guest.close()


def test_indexes_wrap_after_65536(guest: Guest) -> None:
    queue = guest.start_device()
    heads = [guest.front.prepare([], [(DATA, 8)]) for _ in range(8)]
    for turn in range(65536 // 8 + 10):
        for head in heads:
            guest.front.submit(head)
        chains = queue.pop()
        for chain in reversed(chains):
            queue.complete(chain, turn % 7)
        queue.publish()
        assert guest.front.reap() == [(head, turn % 7) for head in reversed(heads)]


def test_a_buffer_may_span_memory_regions() -> None:
    guest = Guest(region_cuts=(BUFFERS + 10, BUFFERS + 20))
    queue = guest.start_device()
    guest.view[BUFFERS : BUFFERS + 30] = bytes(range(30))
    guest.front.submit(guest.front.prepare([(DATA, 30)], [(DATA + 5, 10)]))
    (chain,) = queue.pop()
    assert [len(piece) for piece in chain.readable] == [10, 10, 10]
    assert b"".join(chain.readable) == bytes(range(30))
    assert [len(piece) for piece in chain.writable] == [5, 5]
    guest.close()


def test_an_indirect_table_may_span_memory_regions_and_be_in_any_order() -> None:
    guest = Guest(region_cuts=(BUFFERS + 24,))
    queue = guest.start_device()
    put(guest, BUFFERS, descriptor(DATA + 100, 1, NEXT, 2), descriptor(DATA + 102, 3, WRITE),
        descriptor(DATA + 101, 1, NEXT, 1))  # fmt: skip
    put(guest, 0, descriptor(DATA, 48, INDIRECT))
    guest.view[BUFFERS + 100 : BUFFERS + 102] = b"ab"
    guest.make_available(0)
    (chain,) = queue.pop()
    assert b"".join(chain.readable) == b"ab"
    assert [len(piece) for piece in chain.writable] == [3]
    guest.close()


def test_a_chain_may_end_in_an_indirect_table(guest: Guest) -> None:
    queue = guest.start_device()
    put(guest, 0, descriptor(DATA, 1, NEXT, 1), descriptor(DATA + 256, 32, INDIRECT))
    put(guest, BUFFERS + 256, descriptor(DATA + 1, 1, NEXT, 1), descriptor(DATA + 2, 1, WRITE))
    guest.make_available(0)
    (chain,) = queue.pop()
    assert (len(chain.readable), len(chain.writable)) == (2, 1)


HOSTILE_RINGS = {
    "empty writable buffer": [descriptor(DATA, 0, WRITE)],
    "writable buffer that begins below": [descriptor(GUEST - 1, 2, WRITE)],
    "writable buffer that ends above": [descriptor(GUEST + MEMORY_BYTES - 1, 2, WRITE)],
    "loop of one": [descriptor(DATA, 1, NEXT, 0)],
    "loop of two": [descriptor(DATA, 1, NEXT, 1), descriptor(DATA, 1, NEXT, 0)],
    "loop of all": [descriptor(DATA, 1, NEXT, (index + 1) % 8) for index in range(8)],
    "link beyond the table": [descriptor(DATA, 1, NEXT, 8)],
    "link far beyond the table": [descriptor(DATA, 1, NEXT, 65535)],
    "empty buffer": [descriptor(DATA, 0)],
    "buffer below the memory": [descriptor(0, 1)],
    "buffer that begins below": [descriptor(GUEST - 1, 2)],
    "buffer above the memory": [descriptor(GUEST + MEMORY_BYTES, 1)],
    "buffer that ends above": [descriptor(GUEST + MEMORY_BYTES - 1, 2)],
    "buffer that wraps around": [descriptor(2**64 - 1, 2**32 - 1)],
    "buffer of 4 GiB": [descriptor(DATA, 2**32 - 1)],
    "readable after writable": [descriptor(DATA, 1, WRITE | NEXT, 1), descriptor(DATA, 1)],
    "indirect and next": [descriptor(DATA, 16, INDIRECT | NEXT, 1), descriptor(DATA, 1)],
    "indirect table of nothing": [descriptor(DATA, 0, INDIRECT)],
    "indirect table of half a descriptor": [descriptor(DATA, 24, INDIRECT)],
    "indirect table too long": [descriptor(DATA, 16 * 1025, INDIRECT)],
    "indirect table outside": [descriptor(GUEST + MEMORY_BYTES - 8, 16, INDIRECT)],
}

HOSTILE_TABLES = {
    "nested indirect": [descriptor(DATA, 16, INDIRECT)],
    "nested indirect at the end": [descriptor(DATA, 1, NEXT, 1), descriptor(DATA, 16, INDIRECT)],
    "loop of one": [descriptor(DATA, 1, NEXT, 0)],
    "loop of two": [descriptor(DATA, 1, NEXT, 1), descriptor(DATA, 1, NEXT, 0)],
    "link beyond the table": [descriptor(DATA, 1, NEXT, 1)],
    "link far beyond the table": [descriptor(DATA, 1, NEXT, 65535)],
    "empty buffer": [descriptor(DATA, 0)],
    "buffer outside": [descriptor(GUEST + MEMORY_BYTES, 1)],
    "buffer that ends above": [descriptor(GUEST + MEMORY_BYTES - 1, 2)],
    "readable after writable": [descriptor(DATA, 1, WRITE | NEXT, 1), descriptor(DATA, 1)],
}


@pytest.mark.parametrize("name", HOSTILE_RINGS)
def test_hostile_descriptors_end_the_queue(guest: Guest, name: str) -> None:
    queue = guest.start_device()
    put(guest, 0, *HOSTILE_RINGS[name])
    guest.make_available(0)
    with pytest.raises(QueueError):
        queue.pop()


@pytest.mark.parametrize("name", HOSTILE_TABLES)
def test_hostile_indirect_tables_end_the_queue(guest: Guest, name: str) -> None:
    queue = guest.start_device()
    table = HOSTILE_TABLES[name]
    put(guest, BUFFERS + 0x1000, *table)
    put(guest, 0, descriptor(DATA + 0x1000, 16 * len(table), INDIRECT))
    guest.make_available(0)
    with pytest.raises(QueueError):
        queue.pop()


def test_an_indirect_table_that_was_not_negotiated_ends_the_queue() -> None:
    guest = Guest(features=RING_EVENT_IDX)
    queue = guest.start_device()
    put(guest, BUFFERS, descriptor(DATA, 1))
    put(guest, 0, descriptor(DATA, 16, INDIRECT))
    guest.make_available(0)
    with pytest.raises(QueueError, match="where none is allowed"):
        queue.pop()
    guest.close()


@pytest.mark.parametrize("head", [8, 9, 65535])
def test_a_head_beyond_the_table_ends_the_queue(guest: Guest, head: int) -> None:
    queue = guest.start_device()
    guest.make_available(head)
    with pytest.raises(QueueError, match=f"makes descriptor {head} available"):
        queue.pop()


def test_a_head_twice_ends_the_queue(guest: Guest) -> None:
    queue = guest.start_device()
    head = guest.front.prepare([(DATA, 1)], [])
    guest.make_available(head)
    queue.pop()
    guest.make_available(head)
    with pytest.raises(QueueError, match="while it is in flight"):
        queue.pop()


@pytest.mark.parametrize("jump", [9, 100, 65535])
def test_an_available_index_that_jumps_ends_the_queue(guest: Guest, jump: int) -> None:
    queue = guest.start_device()
    struct.pack_into("=H", guest.view, 16 * 8 + 2, jump)
    with pytest.raises(QueueError, match=f"{jump} chains available"):
        queue.pop()


def test_a_chain_cannot_be_completed_twice(guest: Guest) -> None:
    queue = guest.start_device()
    guest.front.submit(guest.front.prepare([(DATA, 1)], []))
    (chain,) = queue.pop()
    queue.complete(chain, 0)
    with pytest.raises(DeviceError, match="completed twice"):
        queue.complete(chain, 0)


@pytest.mark.parametrize("written", [-1, 2**32, 9, True, None, "8", 8.0])
def test_a_driver_cannot_have_written_what_has_no_place(guest: Guest, written: Any) -> None:
    queue = guest.start_device()
    guest.front.submit(guest.front.prepare([(DATA, 1)], [(DATA + 8, 5), (DATA + 16, 3)]))
    (chain,) = queue.pop()
    with pytest.raises(DeviceError, match="its writable part has 8"):
        queue.complete(chain, written)
    queue.complete(chain, 8)
    queue.publish()
    assert [written for _, written in guest.front.reap()] == [8]


@pytest.mark.parametrize("size", [0, 3, 12, 65536, 2**31])
def test_sizes_that_are_no_power_of_two_are_refused(guest: Guest, size: int) -> None:
    guest.size = size
    with pytest.raises(QueueError, match="not a power of two"):
        guest.start_device()


@pytest.mark.parametrize("part", ["descriptors", "available", "used"])
def test_rings_must_be_aligned_and_inside(guest: Guest, part: str) -> None:
    good = getattr(guest.address, part)
    setattr(guest.address, part, good + 1)
    with pytest.raises(QueueError, match="not aligned"):
        guest.start_device()
    setattr(guest.address, part, USER + MEMORY_BYTES - 16)
    with pytest.raises(GuestMemoryError):
        guest.start_device()


def test_a_ring_must_not_span_memory_regions() -> None:
    guest = Guest(region_cuts=(64,))
    with pytest.raises(GuestMemoryError, match="not in one memory region"):
        guest.start_device()
    guest.close()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_the_guest_writes_no_other_error_comes_out(data: st.DataObject) -> None:
    guest = Guest()
    queue = guest.start_device()
    addresses = st.one_of(st.integers(GUEST - 64, GUEST + 512), st.integers(0, 2**64 - 1), st.just(DATA))
    entries = st.builds(
        descriptor, addresses, st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)), st.integers(0, 7),
        st.one_of(st.integers(0, 9), st.integers(0, 65535)),
    )  # fmt: skip
    put(guest, 0, *data.draw(st.lists(entries, max_size=8)))
    put(guest, BUFFERS, *data.draw(st.lists(entries, max_size=8)))
    for head in data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=9)):
        guest.make_available(head)
    with contextlib.suppress(QueueError):
        for chain in queue.pop():
            for piece in chain.writable:
                piece[:] = bytes(len(piece))
            queue.complete(chain, sum(map(len, chain.writable)) and 1)
            queue.publish()
    guest.close()


# Notifications


def notified(queue: Virtqueue) -> int:
    assert queue.call_descriptor is not None
    try:
        return os.eventfd_read(queue.call_descriptor)
    except BlockingIOError:
        return 0


def complete_some(guest: Guest, queue: Virtqueue, heads: list[int]) -> None:
    for head in heads:
        guest.front.submit(head)
    for chain in queue.pop():
        queue.complete(chain, 0)
    queue.publish()


@pytest.fixture
def notifying(guest: Guest) -> tuple[Guest, Virtqueue, list[int]]:
    queue = guest.start_device()
    queue.call_descriptor = guest.front.call_descriptor
    return guest, queue, [guest.front.prepare([(DATA, 1)], []) for _ in range(8)]


def test_the_first_completion_of_a_back_end_always_notifies(
    notifying: tuple[Guest, Virtqueue, list[int]],
) -> None:
    guest, queue, heads = notifying
    struct.pack_into("=H", guest.view, 16 * 8 + 4 + 16, 5000)  # used_event far away
    complete_some(guest, queue, heads[:1])
    assert notified(queue) == 1
    complete_some(guest, queue, heads[1:2])
    assert notified(queue) == 0


def test_a_batch_notifies_once_and_not_before_the_event(
    notifying: tuple[Guest, Virtqueue, list[int]],
) -> None:
    guest, queue, heads = notifying
    complete_some(guest, queue, heads)
    assert notified(queue) == 1
    guest.front.reap()
    complete_some(guest, queue, heads)
    assert notified(queue) == 0  # the guest did not ask again
    guest.front.reap()
    assert guest.front.enable_interrupts() is False
    complete_some(guest, queue, heads)
    assert notified(queue) == 1


def test_without_event_idx_the_guests_flag_rules() -> None:
    guest = Guest(features=0)
    queue = guest.start_device()
    queue.call_descriptor = guest.front.call_descriptor
    heads = [guest.front.prepare([(DATA, 1)], []) for _ in range(2)]
    complete_some(guest, queue, heads[:1])
    assert notified(queue) == 1
    guest.front.disable_interrupts()
    complete_some(guest, queue, heads[1:])
    assert notified(queue) == 0
    guest.close()


def test_enabling_notifications_sees_what_came_meanwhile(guest: Guest) -> None:
    queue = guest.start_device()
    assert queue.enable_notifications() is False
    guest.front.submit(guest.front.prepare([(DATA, 1)], []))
    assert queue.enable_notifications() is True


@pytest.mark.parametrize("features", [0, BOTH])
def test_the_guest_kicks_only_when_asked(features: int) -> None:
    guest = Guest(features=features)
    queue = guest.start_device()
    heads = [guest.front.prepare([(DATA, 1)], []) for _ in range(8)]
    queue.enable_notifications()
    guest.front.submit(heads[0])
    guest.front.kick()
    assert guest.front.kicks == 1
    queue.disable_notifications()
    queue.pop()
    guest.front.submit(heads[1])
    guest.front.kick()
    assert guest.front.kicks == 1
    queue.pop()
    queue.enable_notifications()
    guest.front.submit(heads[2])
    guest.front.kick()
    assert guest.front.kicks == 2
    guest.close()


def test_a_call_descriptor_that_is_full_is_pending_anyway(guest: Guest) -> None:
    queue = guest.start_device()
    queue.call_descriptor = guest.front.call_descriptor
    os.eventfd_write(guest.front.call_descriptor, 2**64 - 2)
    queue.notify()
    assert queue.notifications == 1


def test_a_ring_may_move_while_requests_are_in_flight(guest: Guest) -> None:
    queue = guest.start_device()
    head = guest.front.prepare([(DATA, 1)], [])
    guest.front.submit(head)
    (chain,) = queue.pop()
    queue.bind(VringAddress(0, 0, guest.address.descriptors, guest.address.used, guest.address.available, 0))
    queue.complete(chain, 0)
    queue.publish()
    assert guest.front.reap() == [(head, 0)]


# Many at once


def framed(guest: Guest, offset: int, form: int, middle: int) -> None:
    """An indirect table at ``offset`` of three buffers, the second at guest address ``middle``."""
    put(
        guest,
        offset,
        descriptor(DATA, 16, NEXT, 1),
        descriptor(middle, 4, form, 2),
        descriptor(DATA + 16, 1, WRITE),
    )


@pytest.mark.parametrize("form", [OUT, IN])
def test_three_buffers_make_a_frame_that_is_used_again(guest: Guest, form: int) -> None:
    queue = guest.start_device()
    framed(guest, BUFFERS + 0x1000, form, DATA + 64)
    put(guest, 0, descriptor(DATA + 0x1000, 48, INDIRECT), descriptor(DATA + 0x1000, 48, INDIRECT))
    guest.view[BUFFERS + 64 : BUFFERS + 68] = b"data"
    guest.make_available(0)
    guest.make_available(1)
    first, second = queue.pop()
    frame = first.frame
    assert frame is not None
    assert second.frame is frame
    assert (frame.form, bytes(frame.buffers[0])) == (form, b"data")
    assert [len(piece) for piece in first.readable] == ([16, 4] if form == OUT else [16])
    assert [len(piece) for piece in first.writable] == ([1] if form == OUT else [4, 1])
    assert first.frame is None  # its buffers are lists now, which their user may change
    first.writable.pop()
    assert len(second.writable) == (1 if form == OUT else 2)


def test_a_table_that_changed_is_another_frame(guest: Guest) -> None:
    queue = guest.start_device()
    guest.view[BUFFERS + 64 : BUFFERS + 72] = b"onetwo.."
    put(guest, 0, descriptor(DATA + 0x1000, 48, INDIRECT))
    found = []
    for place in (64, 67):
        framed(guest, BUFFERS + 0x1000, OUT, DATA + place)
        guest.make_available(0)
        (chain,) = queue.pop()
        found.append(bytes(chain.readable[1][:3]))
        queue.complete(chain, 0)
        queue.publish()
    assert found == [b"one", b"two"]


def test_no_frame_outlives_its_memory(guest: Guest) -> None:
    queue = guest.start_device()
    framed(guest, BUFFERS + 0x1000, OUT, DATA + 64)
    put(guest, 0, descriptor(DATA + 0x1000, 48, INDIRECT), descriptor(DATA + 0x1000, 48, INDIRECT))
    guest.make_available(0)
    (before,) = queue.pop()
    other = memoryview(bytearray(guest.view))
    guest.memory.replace([MemoryRegion(GUEST, USER, other)])
    queue.bind(guest.address)
    other[BUFFERS + 64 : BUFFERS + 68] = b"new."
    struct.pack_into("=HHHH", other, 16 * 8, 0, 2, 0, 1)
    (chain,) = queue.pop()
    assert bytes(chain.readable[1]) == b"new."
    assert bytes(before.readable[1]) == bytes(4)


@pytest.mark.parametrize("out", [-1, MEMORY_BYTES - 3])
def test_a_frame_must_be_inside_its_memory(guest: Guest, out: int) -> None:
    queue = guest.start_device()
    framed(guest, BUFFERS + 0x1000, IN, GUEST + out)
    put(guest, 0, descriptor(DATA + 0x1000, 48, INDIRECT))
    guest.make_available(0)
    with pytest.raises(QueueError, match="not in the guest's memory"):
        queue.pop()


@pytest.mark.parametrize("flags", [0, WRITE])
@pytest.mark.parametrize("place", [BUFFERS, MEMORY_BYTES - 4], ids=["inside", "at the end"])
def test_a_lone_buffer_may_have_any_link(guest: Guest, flags: int, place: int) -> None:
    queue = guest.start_device()
    guest.view[place : place + 4] = b"lone"
    put(guest, 0, descriptor(GUEST + place, 4, flags, 0xFFFF))
    guest.make_available(0)
    (chain,) = queue.pop()
    full, empty = (chain.writable, chain.readable) if flags else (chain.readable, chain.writable)
    assert ([bytes(piece) for piece in full], empty) == ([b"lone"], [])
    queue.complete(chain, 4 if flags else 0)


@pytest.mark.parametrize("features", [0, RING_INDIRECT_DESC])
def test_three_readable_buffers_are_no_frame(features: int) -> None:
    """A long TCP segment of Linux: the headers, and two pieces of what a program sends."""
    guest = Guest(features=features)
    queue = guest.start_device()
    guest.view[BUFFERS : BUFFERS + 9] = b"onetwo333"
    table = (DATA + 256, guest.view[BUFFERS + 256 : BUFFERS + 512])
    guest.front.submit(guest.front.prepare([(DATA, 3), (DATA + 3, 3), (DATA + 6, 3)], [], table))
    (chain,) = queue.pop()
    assert [bytes(piece) for piece in chain.readable] == [b"one", b"two", b"333"]
    assert (chain.frame, chain.writable) == (None, [])
    guest.close()


def test_only_so_many_frames_are_kept(guest: Guest) -> None:
    queue = guest.start_device()
    put(guest, 0, descriptor(DATA + 0x1000, 48, INDIRECT))
    for number in range(3000):
        framed(guest, BUFFERS + 0x1000, OUT, DATA + 0x2000 + number)
        guest.make_available(0)
        (chain,) = queue.pop()
        guest.view[BUFFERS + 0x2000 + number] = number & 0xFF
        assert chain.readable[1][0] == number & 0xFF
        queue.complete(chain, 0)
        queue.publish()
    assert len(queue._frames) <= 256


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_batches_of_any_size_go_there_and_back(sizes: list[int], chance: random.Random) -> None:
    guest = Guest()
    queue = guest.start_device()
    heads = [guest.front.prepare([], [(DATA, 200)]) for _ in range(8)]
    for size in sizes:
        batch = chance.sample(heads, size)
        guest.front.submit_all(array("H", batch))
        chains = queue.pop()
        assert [chain.head for chain in chains] == batch
        chance.shuffle(chains)
        for chain in chains:
            chain.written = chain.head + 100
        queue.complete_all(chains)
        assert not guest.front.has_used()
        queue.publish()
        assert guest.front.has_used()
        done = [chain.head for chain in chains]
        if chance.random() < 0.5:
            assert guest.front.reap_heads() == done
        else:
            assert guest.front.reap() == [(head, head + 100) for head in done]
    assert queue.in_flight == guest.front.outstanding == 0
    guest.close()


def test_chains_cannot_be_completed_twice_together_either(guest: Guest) -> None:
    queue = guest.start_device()
    guest.front.submit(guest.front.prepare([(DATA, 1)], []))
    (chain,) = queue.pop()
    with pytest.raises(DeviceError, match="completed twice"):
        queue.complete_all([chain, chain])


@pytest.mark.parametrize("written", [-1, 2**32])
def test_chains_together_have_32_bits_for_what_was_written(guest: Guest, written: int) -> None:
    queue = guest.start_device()
    guest.front.submit(guest.front.prepare([(DATA, 1)], []))
    (chain,) = queue.pop()
    chain.written = written
    with pytest.raises(DeviceError, match="32 bits"):
        queue.complete_all([chain])
