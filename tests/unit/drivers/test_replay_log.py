"""The replay log against a model, with its writer killed between any two of its statements."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers import replay_log, replay_memory
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.replay_log import KEPT_BYTES, ZERO_AND_UNMAP, ReplayLog
from duovisor.controlling.drivers.replay_memory import PAGE_BYTES, ReplayMemory, create_replay, open_replay

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA_BYTES = 4 << 20
OUT, ZEROES, DISCARD = layout.REQUEST_OUT, layout.REQUEST_WRITE_ZEROES, layout.REQUEST_DISCARD

# What a record says, and its data.
Change = tuple[int, int, bytes]


@contextmanager
def open_memory() -> Iterator[ReplayMemory]:
    memory = open_replay(create_replay(DATA_BYTES))
    yield memory
    memory.close()


def read_changes(memory: ReplayMemory) -> list[Change]:
    """What a successor would make again."""
    return [
        (record.kind, record.offset, bytes(memory.view[record.data_at : record.data_at + record.length]))
        if record.data_at
        else (record.kind, record.offset, bytes(record.length))
        for record in ReplayLog(memory).read()
    ]


class Killer:
    """Looks at the memory as a successor would, before each statement of the log's module."""

    def __init__(self, memory: ReplayMemory) -> None:
        self.memory = memory
        self.seen: list[list[Change]] = []
        self._looks = False

    def __enter__(self) -> Killer:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter(self, frame: Any, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in (replay_log.__file__, replay_memory.__file__) or self._looks:
            return None
        return self._look

    def _look(self, frame: Any, event: str, argument: object) -> Any:
        self._looks = True
        self.seen.append(read_changes(self.memory))
        self._looks = False
        return self._look


append_write = st.tuples(st.just(OUT), st.integers(0, 1 << 40), st.integers(1, 2048), st.integers(0, 255))
append_range = st.tuples(
    st.sampled_from([ZEROES, ZERO_AND_UNMAP, DISCARD]),
    st.integers(0, 1 << 40),
    st.integers(1, 99),
    st.just(0),
)
drop = st.tuples(st.just("drop"), st.integers(0, 1 << 20))
void = st.tuples(st.just("void"), st.integers(0, 1 << 20))


@given(st.lists(st.one_of(append_write, append_range, drop, void), max_size=40))
@settings(max_examples=60, deadline=None)
def test_is_whole_at_every_moment(steps: list[Any]) -> None:
    with open_memory() as memory:
        log = ReplayLog(memory)
        model: dict[int, Change] = {}
        for step in steps:
            before = list(model.values())
            with Killer(memory) as killer:
                apply_step(log, model, step)
            after = list(model.values())
            assert all(seen in (before, after) for seen in killer.seen)
            assert len(killer.seen) > 1
            assert read_changes(memory) == after


def apply_step(log: ReplayLog, model: dict[int, Change], step: Any) -> None:
    """Do a step on the log, and on the model once it is done."""
    if step[0] == "drop":
        until = log.first + step[1] % (log.next - log.first + 1)
        log.drop(until)
        for position in [position for position in model if position < until]:
            del model[position]
    elif step[0] == "void":
        position = log.first + step[1] % (log.next - log.first + 1)
        log.void(position)
        model.pop(position, None)
    else:
        kind, sector, sectors, byte = step
        data = bytes([byte]) * (512 * sectors)
        buffers = [memoryview(data)[:512], memoryview(data)[512:]] if kind == OUT else []
        record = log.append(kind, 512 * sector, len(data), buffers)
        if record is not None:
            model[record.position] = (kind, 512 * sector, data)


@given(st.lists(st.tuples(st.integers(1, 2048), st.integers(0, 3)), min_size=50, max_size=200))
@settings(max_examples=40, deadline=None)
def test_wraps_without_touching_what_is_kept(steps: list[tuple[int, int]]) -> None:
    with open_memory() as memory:
        log = ReplayLog(memory)
        kept: list[tuple[int, bytes]] = []
        for number, (sectors, drops) in enumerate(steps):
            data = (b"%08d" % number) * (64 * sectors)
            record = log.append(OUT, 0, len(data), [memoryview(data)])
            if record is None:
                assert log.is_tight
                drops = max(drops, 1)
            else:
                kept.append((record.position, data))
            if drops and kept:
                log.drop(kept[min(drops, len(kept)) - 1][0] + 1)
                del kept[:drops]
            assert [change[2] for change in read_changes(memory)] == [data for _, data in kept]


def test_an_empty_log_takes_the_largest_write_again_and_again() -> None:
    with open_memory() as memory:
        log, data = ReplayLog(memory), memoryview(bytes(1 << 20))
        for _ in range(20):
            assert log.append(OUT, 0, len(data), [data])
            log.drop(log.next)


def test_half_full_leaves_room_for_the_largest_write() -> None:
    with open_memory() as memory:
        log, page, large = ReplayLog(memory), memoryview(bytes(PAGE_BYTES)), memoryview(bytes(1 << 20))
        for shift in range(1024):
            log.append(OUT, 0, PAGE_BYTES, [page])
            log.drop(log.first + (0 if log.next - log.first < 300 else 1))
            if shift % 16 == 0:
                assert not log.is_tight
                assert log.append(OUT, 0, len(large), [large]) is not None
                log.drop(log.next - 1)
                log.append(OUT, 0, PAGE_BYTES, [page])
                log.drop(log.next - 1)


def test_full_of_records() -> None:
    with open_memory() as memory:
        log = ReplayLog(memory)
        while log.append(ZEROES, 0, 512) is not None:
            pass
        assert log.next - log.first == memory.records
        assert log.is_tight
        log.drop(1)
        assert log.append(ZEROES, 0, 512) is not None


def test_idle_memory_is_given_back() -> None:
    with open_memory() as memory:
        log, data = ReplayLog(memory), memoryview(b"x" * (1 << 20))
        for _ in range(3):
            log.append(OUT, 0, len(data), [data])
        assert os.fstat(memory.descriptor).st_blocks * 512 > 3 << 20
        log.drop(log.next)
        assert os.fstat(memory.descriptor).st_blocks * 512 < KEPT_BYTES + (64 << 10)


def test_a_successor_gives_back_what_its_predecessor_touched() -> None:
    with open_memory() as memory:
        log, data = ReplayLog(memory), memoryview(b"x" * (1 << 20))
        for _ in range(3):
            log.append(OUT, 0, len(data), [data])
        successor = ReplayLog(memory)
        successor.drop(successor.next)
        assert os.fstat(memory.descriptor).st_blocks * 512 < KEPT_BYTES + (64 << 10)


@pytest.mark.parametrize("word", [replay_memory.FIRST_WORD, replay_memory.NEXT_WORD])
def test_a_span_that_cannot_be(word: int) -> None:
    with open_memory() as memory:
        memory.words[word] = 1 << 63
        with pytest.raises(DriverError, match="spans the records"):
            ReplayLog(memory)


@pytest.mark.parametrize(("field", "value"), [(12, 99), (16, 512), (16, 1 << 60), (8, 0xFFFFFFFF)])
def test_a_record_that_cannot_be(field: int, value: int) -> None:
    """Kind, place and length of the data, as a hostile format process might leave them."""
    with open_memory() as memory:
        log = ReplayLog(memory)
        log.append(OUT, 0, 512, [memoryview(bytes(512))])
        size = 4 if field != 16 else 8
        place = replay_memory.RECORDS_AT + field
        memory.view[place : place + size] = value.to_bytes(size, "little")
        with pytest.raises(DriverError, match="record 0 of the replay log is broken"):
            ReplayLog(memory)


def test_memory_of_another_kind() -> None:
    descriptor = os.memfd_create("other")
    with pytest.raises(DriverError, match="is no replay memory"):
        open_replay(descriptor)
    os.ftruncate(descriptor, 1 << 20)
    with pytest.raises(DriverError, match="is no replay memory of version"):
        open_replay(descriptor)
    os.close(descriptor)
    descriptor = create_replay(DATA_BYTES)
    os.pwrite(descriptor, (8 << 20).to_bytes(8, "little"), 8 * replay_memory.DATA_BYTES_WORD)
    with pytest.raises(DriverError, match="cannot keep 8388608"):
        open_replay(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1 << 20, (4 << 20) + 512, 2 << 30])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(DriverError, match="cannot keep"):
        create_replay(size)


def test_cannot_be_resized_by_who_shares_it() -> None:
    with open_memory() as memory:
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, PAGE_BYTES)
