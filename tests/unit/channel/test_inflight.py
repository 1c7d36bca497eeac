"""Requests in flight: after a death at any store, the successor finishes everything exactly once."""

from __future__ import annotations

import os
from array import array
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.channel.guest import BUFFERS, GUEST, Guest

from duovisor.channel.errors import ProtocolError, QueueError
from duovisor.channel.inflight import (
    DEVICE_STATE_BYTES,
    InflightLog,
    create_inflight,
    map_inflight,
    region_bytes,
)
from duovisor.channel.messages import InflightDescription

if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

DATA = GUEST + BUFFERS


class DeathError(Exception):
    """The process would be killed here."""


class MortalView:
    """Shared memory that dies before its owner's n-th store; all views of a queue share the count."""

    def __init__(self, view: memoryview, life: list[int]) -> None:
        self._view = view
        self._life = life

    def __getitem__(self, index: int) -> int:
        value: int = self._view[index]
        return value

    def __setitem__(self, index: int | slice, value: int | array[int]) -> None:
        if isinstance(index, slice):
            assert isinstance(value, array)
            for place, item in zip(range(index.start, index.stop), value, strict=True):
                self[place] = item
            return
        assert isinstance(value, int)
        if self._life[0] == 0:
            raise DeathError
        self._life[0] -= 1
        self._view[index] = value


SHARED_VIEWS = ("_used_halves", "_used_words", "_inflight_states", "_inflight_halves", "_inflight_counters")


def make_mortal(queue: Virtqueue, stores: int) -> list[int]:
    life = [stores]
    for name in SHARED_VIEWS:
        setattr(queue, name, MortalView(getattr(queue, name), life))
    return life


def run_device(
    queue: Virtqueue, worked_on: list[int], order: st.DataObject | None = None, *, together: bool = False
) -> None:
    """Do all requests, noting each by its head; with ``order``, complete them in any order and batches."""
    waiting: list[Chain] = []
    while chains := queue.pop():
        waiting += chains
        worked_on += [chain.head for chain in chains]
        if order is not None:
            waiting = order.draw(st.permutations(waiting))
            batch = order.draw(st.integers(0, len(waiting)))
            for chain in waiting[:batch]:
                queue.complete(chain, 0)
            queue.publish()
            waiting = waiting[batch:]
    for chain in waiting:
        queue.complete(chain, 0)
    queue.publish()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_death_at_any_store_loses_and_repeats_nothing(data: st.DataObject) -> None:
    guest = Guest(size=8)
    heads = [guest.front.prepare([(DATA + index, 1)], []) for index in range(8)]
    free, outstanding = set(heads), set()
    for _ in range(data.draw(st.integers(1, 6))):  # lives
        for head in data.draw(st.lists(st.sampled_from(sorted(free)), unique=True)) if free else []:
            guest.front.submit(head)
            free.remove(head)
            outstanding.add(head)
        queue = guest.start_device()
        make_mortal(queue, data.draw(st.integers(0, 40)))
        try:
            run_device(queue, [], data)
        except DeathError:
            pass
        for head, _ in guest.front.reap():
            assert head in outstanding, "a request was completed twice"
            outstanding.remove(head)
            free.add(head)
    survivor = guest.start_device()
    run_device(survivor, [])
    assert {head for head, _ in guest.front.reap()} == outstanding, "a request was lost"
    assert survivor.last_available == guest.front.last_used
    guest.close()


@pytest.mark.parametrize("together", [False, True])
def test_every_store_of_one_batch_is_a_safe_place_to_die(together: bool) -> None:
    for stores in range(100):
        guest = Guest(size=4)
        heads = [guest.front.prepare([(DATA, 1)], []) for _ in range(3)]
        for head in heads:
            guest.front.submit(head)
        queue = guest.start_device()
        life = make_mortal(queue, stores)
        try:
            run_device(queue, [], together=together)
        except DeathError:
            life.clear()
        run_device(guest.start_device(), [])
        assert sorted(head for head, _ in guest.front.reap()) == heads
        guest.close()
        if life:
            assert stores > 10  # there were that many places
            return
    pytest.fail("the device never got to its end")


def test_requests_come_back_in_the_order_they_were_fetched(guest: Guest) -> None:
    heads = [guest.front.prepare([(DATA, 1)], []) for _ in range(6)]
    queue = guest.start_device()
    for head in (heads[3], heads[1], heads[5], heads[0]):
        guest.front.submit(head)
    chains = queue.pop()
    queue.complete(chains[1], 0)
    queue.publish()
    guest.front.submit(heads[1])
    queue.pop()
    guest.front.submit(heads[2])
    worked_on: list[int] = []
    run_device(guest.start_device(), worked_on)
    assert worked_on == [heads[3], heads[5], heads[0], heads[1], heads[2]]


def test_without_a_shared_log_the_front_end_says_where_to_begin(guest: Guest) -> None:
    head = guest.front.prepare([(DATA, 1)], [])
    guest.front.submit(head)
    first = guest.start_device(shared=False)
    first.pop()
    assert guest.start_device(base=1, shared=False).pop() == []
    assert [chain.head for chain in guest.start_device(base=0, shared=False).pop()] == [head]


def test_a_fresh_log_begins_where_the_front_end_says(guest: Guest) -> None:
    """As when a VM's disk moves from the VMM, whose rings are in the middle of their life, to a driver."""
    head = guest.front.prepare([(DATA, 1)], [])
    queue = guest.start_device(shared=False)
    for _ in range(3):
        guest.front.submit(head)
        run_device(queue, [])
        guest.front.reap()
    guest.front.submit(head)
    successor = guest.start_device(base=3)
    assert [chain.head for chain in successor.pop()] == [head]


def test_a_log_of_another_queue_size_is_refused(guest: Guest) -> None:
    guest.start_device()
    guest.inflight.halves[5] = 16
    with pytest.raises(ProtocolError, match="16 entries, not version 1 for 8"):
        guest.start_device()


def test_a_used_ring_far_ahead_of_the_log_is_refused(guest: Guest) -> None:
    guest.start_device()
    guest.view[guest.used_offset + 2 : guest.used_offset + 4] = b"\x09\x00"
    with pytest.raises(ProtocolError, match="9 entries ahead"):
        guest.start_device()


def test_a_batch_list_that_leaves_the_log_is_refused(guest: Guest) -> None:
    guest.start_device()
    guest.view[guest.used_offset + 2] = 1
    guest.inflight.halves[6] = 500
    with pytest.raises(ProtocolError, match="descriptor 500"):
        guest.start_device()


def test_heads_beyond_a_smaller_ring_are_refused() -> None:
    guest = Guest(size=8)
    log = Guest(size=16).inflight
    log.recover(0)
    log.states[16 + 16 * 12] = 1
    guest.inflight = log
    with pytest.raises(QueueError, match="beyond 8"):
        guest.start_device()
    guest.close()


@pytest.mark.usefixtures("no_leak")
def test_the_shared_buffer_survives_its_maker() -> None:
    descriptor, description = create_inflight(2, 8)
    first = map_inflight(description, descriptor, 2)
    assert first.load_device_state() is None
    first.save_device_state(b"\x00")
    first.regions[1].recover(7)
    second = map_inflight(description, descriptor, 2)
    assert second.load_device_state() == b"\x00"
    assert second.regions[1].in_use
    assert not second.regions[0].in_use
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_buffer_without_room_for_the_devices_state_is_fine() -> None:
    log = InflightLog(memoryview(bytearray(region_bytes(8))), 1, 8)
    log.save_device_state(b"x")
    assert log.load_device_state() is None


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (InflightDescription(4096, 0, 0, 8), "0 queues"),
        (InflightDescription(4096, 0, 3, 8), "3 queues of 8; this device has 2"),
        (InflightDescription(4096, 0, 1, 0), "queues of 0"),
        (InflightDescription(100, 0, 1, 8), "100 bytes is too small"),
        (InflightDescription(4096, 4096, 1, 8), "behind the end of its file"),
        (InflightDescription(2**63, 2**63, 1, 8), "behind the end of its file"),
    ],
)
def test_impossible_buffers_are_refused(description: InflightDescription, said: str) -> None:
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ProtocolError, match=said):
        map_inflight(description, descriptor, 2)
    os.close(descriptor)


def test_regions_are_whole_cache_lines() -> None:
    assert region_bytes(8) == 192
    assert all(region_bytes(size) % 64 == 0 for size in (1, 2, 128, 256, 1024))
    assert create_size(3, 128) == create_size(3, 1024) == 3 * region_bytes(1024) + DEVICE_STATE_BYTES
    assert create_size(1, 4096) == region_bytes(4096) + DEVICE_STATE_BYTES


def test_a_log_of_ours_has_room_for_a_queue_larger_than_was_announced() -> None:
    """QEMU 10 asks for a log of 256 entries and then starts a queue of 1024 (its firmware's choice)."""
    descriptor, description = create_inflight(2, 256)
    try:
        log = map_inflight(description, descriptor, 2)
    finally:
        os.close(descriptor)
    assert description.queue_size == 256
    assert log.queue_size == 1024
    assert [len(region.states) for region in log.regions] == [region_bytes(1024)] * 2


def create_size(queues: int, queue_size: int) -> int:
    descriptor, description = create_inflight(queues, queue_size)
    os.close(descriptor)
    return description.mmap_size
