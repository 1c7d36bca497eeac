"""The ring towards a format process: successors that find it at any moment, and answers that cannot be."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.unit.drivers.format_fake import RingServer

from duovisor.channel.errors import ProtocolError
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.format_ring import FormatRing
from duovisor.controlling.drivers.replay_memory import (
    REAPED_WORD,
    SLOTS,
    SUBMITTED_WORD,
    USED_AT,
    ReplayMemory,
    create_replay,
    open_replay,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OUT, IN, FLUSH = layout.REQUEST_OUT, layout.REQUEST_IN, layout.REQUEST_FLUSH


@contextmanager
def make_ring() -> Iterator[tuple[FormatRing, RingServer, ReplayMemory]]:
    memory = open_replay(create_replay(4 << 20))
    ring = FormatRing(memory)
    ring.reset()
    yield ring, RingServer(memory), memory
    ring.close()
    memory.close()


def submit(ring: FormatRing, kind: int = OUT, offset: int = 0, length: int = 512, record: int = -1) -> int:
    slot = ring.take()
    assert slot is not None
    ring.put(slot, kind, offset, length, 0, record)
    return slot


def test_requests_come_back_in_any_order() -> None:
    with make_ring() as (ring, server, _):
        slots = [submit(ring) for _ in range(5)]
        assert server.take() == []
        ring.publish()
        assert [each.slot for each in server.take()] == slots
        for slot in reversed(slots):
            server.answer(3 * slot, status=slot % 2)
        assert ring.reap() == [(slot, slot % 2) for slot in reversed(slots)]
        assert ring.reap() == []


def test_runs_for_ever() -> None:
    """Past the end of the ring and the wrap of its 16-bit indexes, with one request that stays."""
    with make_ring() as (ring, server, _):
        stays = submit(ring)
        ring.publish()
        server.take()
        for _ in range(70000):
            slot = submit(ring)
            ring.publish()
            assert [each.slot for each in server.take()] == [slot]
            server.answer(3 * slot)
            assert ring.reap() == [(slot, 0)]
            ring.give_back(slot)
        successor = FormatRing(ring._memory)
        assert [left.slot for left in successor.recover()] == [stays]
        successor.close()


def test_all_slots_are_taken() -> None:
    with make_ring() as (ring, _, _):
        assert sorted(submit(ring) for _ in range(SLOTS)) == list(range(SLOTS))
        assert ring.take() is None


def test_a_successor_knows_what_is_outstanding() -> None:
    with make_ring() as (ring, server, memory):
        first = submit(ring, OUT, 4096, 1024, record=7)
        answered, taken, second = submit(ring), submit(ring), submit(ring, IN, 512, 2048)
        ring.publish()
        submit(ring)  # never made available
        server.answer(3 * answered)
        server.answer(3 * taken)
        successor = FormatRing(memory)
        left = sorted(successor.recover(), key=lambda each: each.slot)
        assert [(each.slot, each.kind, each.offset, each.length, each.record) for each in left] == [
            (first, OUT, 4096, 1024, 7), (second, IN, 512, 2048, -1),
        ]  # fmt: skip
        free = [successor.take() for _ in range(SLOTS - 2)]
        assert {first, second}.isdisjoint(free)
        assert successor.take() is None
        server.answer(3 * second)
        assert successor.reap() == [(second, 0)]
        successor.close()


def test_a_successor_of_one_killed_between_the_stores_of_publish() -> None:
    with make_ring() as (ring, _, memory):
        slots = {submit(ring) for _ in range(3)}
        ring.publish()
        memory.words[SUBMITTED_WORD] = 1
        successor = FormatRing(memory)
        assert {left.slot for left in successor.recover()} == slots
        assert memory.words[SUBMITTED_WORD] == 3
        successor.close()


def test_a_successor_of_one_killed_while_it_took_answers() -> None:
    with make_ring() as (ring, server, memory):
        slots = [submit(ring) for _ in range(4)]
        ring.publish()
        for slot in slots[:3]:
            server.answer(3 * slot)
        ring.reap()
        memory.words[REAPED_WORD] = 1
        successor = FormatRing(memory)
        assert [left.slot for left in successor.recover()] == [slots[3]]
        assert memory.words[REAPED_WORD] == 3
        successor.close()


@pytest.mark.parametrize("descriptor", [1, 3 * SLOTS, 3 * 5, 0xFFFFFFFF])
def test_answers_that_cannot_be(descriptor: int) -> None:
    with make_ring() as (ring, server, _):
        submit(ring)
        ring.publish()
        server.answer(descriptor)
        with pytest.raises(ProtocolError, match="the format process answers"):
            ring.reap()


def test_an_answer_that_comes_twice() -> None:
    with make_ring() as (ring, server, _):
        slot = submit(ring)
        submit(ring)
        ring.publish()
        server.answer(3 * slot)
        server.answer(3 * slot)
        with pytest.raises(ProtocolError, match="the format process answers"):
            ring.reap()


def test_more_answers_than_requests() -> None:
    with make_ring() as (ring, server, _):
        submit(ring)
        ring.publish()
        server.answered = 7
        server.answer(0)
        with pytest.raises(ProtocolError, match="answers 8 requests of 1"):
            ring.reap()


@pytest.mark.parametrize("word", [SUBMITTED_WORD, REAPED_WORD])
@pytest.mark.parametrize("value", [1 << 50, (1 << 64) - 1])
def test_counts_that_cannot_be(word: int, value: int) -> None:
    with make_ring() as (ring, _, memory):
        submit(ring)
        ring.publish()
        memory.words[word] = value
        successor = FormatRing(memory)
        with pytest.raises(ProtocolError, match="requests under way"):
            successor.recover()
        successor.close()


def test_a_notification_only_when_it_is_wanted() -> None:
    with make_ring() as (ring, _, memory):
        memory.view[USED_AT] = 1
        submit(ring)
        ring.publish()
        with pytest.raises(BlockingIOError):
            os.eventfd_read(ring.kick_descriptor)
        memory.view[USED_AT] = 0
        submit(ring)
        ring.publish()
        assert os.eventfd_read(ring.kick_descriptor) == 1
