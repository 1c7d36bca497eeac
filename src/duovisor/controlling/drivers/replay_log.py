"""The replay log: every change of a disk since the last flush, in order, so that it can be made again.

A format process that is killed takes metadata of acknowledged writes with it, those that no flush has brought
to the medium. As an NFSv3 client keeps unstable writes until COMMIT, the driver appends each write here
before it sends it, and drops what a flush has made safe. Overlapping changes are never under way at the same
time (see ``formatted``), so the order of the log is the order of execution: applying the log from its first
to its last record leads to the same content however much of it had been executed before.

A record counts from the store into ``NEXT_WORD`` on and until the store into ``FIRST_WORD``: a driver may be
killed between any two stores, its successor reads a log that is whole.
"""

from __future__ import annotations

from collections import deque
from struct import Struct

from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.replay_memory import (
    FIRST_WORD,
    NEXT_WORD,
    PAGE_BYTES,
    POSITION_MAX,
    RECORD_BYTES,
    RECORDS_AT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.controlling.drivers.replay_memory import ReplayMemory

VOID = 0  # the kind of a record that shall not be replayed: its request failed
ZERO_AND_UNMAP = layout.REQUEST_WRITE_ZEROES | 0x100
KINDS = (layout.REQUEST_OUT, layout.REQUEST_WRITE_ZEROES, ZERO_AND_UNMAP, layout.REQUEST_DISCARD)
# What may stay in memory when the log is empty.
KEPT_BYTES = 1 << 20

_RECORD = Struct("=QIIQ8x")  # offset and length on the disk, kind, offset of the data in the file
_KIND_OFFSET = 12


class Record:
    """One change; ``data_at`` is where its data lies in the memory file, 0 if it has none."""

    __slots__ = ("data_at", "kind", "length", "offset", "position")

    def __init__(self, position: int, kind: int, offset: int, length: int, data_at: int) -> None:
        self.position = position
        self.kind = kind
        self.offset = offset
        self.length = length
        self.data_at = data_at


class ReplayLog:
    """The log in a replay memory; ``first`` and ``next`` are the positions that it spans.

    Raises ``DriverError`` for a log that cannot be.
    """

    def __init__(self, memory: ReplayMemory) -> None:
        self._memory = memory
        self._words = memory.words
        self._data: deque[tuple[int, int]] = deque()  # position and place of each record's data
        self._head = memory.data_at
        self._touched = memory.data_at
        self.first = memory.words[FIRST_WORD]
        self.next = memory.words[NEXT_WORD]
        if not 0 <= self.next - self.first <= memory.records or self.next > POSITION_MAX:
            raise DriverError(f"the replay log spans the records {self.first} to {self.next}")
        for record in self.read():
            if record.data_at:
                self._data.append((record.position, record.data_at))
                self._head = record.data_at + _pages(record.length)
        if self.next > self.first:
            self._touched = memory.data_at + memory.data_bytes  # what a predecessor touched is unknown

    @property
    def is_tight(self) -> bool:
        """Whether half of the space is used: time to flush before writes have to wait."""
        return (
            2 * (self.next - self.first) > self._memory.records
            or 2 * self.used_bytes > self._memory.data_bytes
        )

    @property
    def used_bytes(self) -> int:
        """Bytes of data that are kept, with what lies unused between them."""
        if not self._data:
            return 0
        used = self._head - self._data[0][1]
        return used if used > 0 else used + self._memory.data_bytes

    def read(self) -> list[Record]:
        """The records to replay, in order."""
        records = []
        for position in range(self.first, self.next):
            offset, length, kind, data_at = _RECORD.unpack_from(self._memory.view, self._place(position))
            if kind == VOID:
                continue
            start, end = self._memory.data_at, self._memory.data_at + self._memory.data_bytes
            has_data = kind == layout.REQUEST_OUT
            if kind not in KINDS or has_data != bool(data_at) or (
                has_data and not (start <= data_at and data_at + _pages(length) <= end)
            ):  # fmt: skip
                raise DriverError(f"record {position} of the replay log is broken")
            records.append(Record(position, kind, offset, length, data_at))
        return records

    def append(
        self, kind: int, offset: int, length: int, buffers: Sequence[memoryview] = ()
    ) -> Record | None:
        """Keep a change, with a copy of its data for a write; ``None`` when there is no room."""
        position = self.next
        if position - self.first >= self._memory.records:
            return None
        data_at = 0
        if kind == layout.REQUEST_OUT:
            data_at = self._find_room(_pages(length))
            if not data_at:
                return None
            self._copy(data_at, length, buffers)
            self._data.append((position, data_at))
        _RECORD.pack_into(self._memory.view, self._place(position), offset, length, kind, data_at)
        self.next = self._words[NEXT_WORD] = position + 1
        return Record(position, kind, offset, length, data_at)

    def void(self, position: int) -> None:
        """Take a change that failed out of the log."""
        if self.first <= position < self.next:
            place = self._place(position) + _KIND_OFFSET
            self._memory.view[place : place + 4].cast("I")[0] = VOID

    def drop(self, until: int) -> None:
        """Forget the records before the position ``until``: they are safe."""
        if until <= self.first:
            return
        self.first = self._words[FIRST_WORD] = min(until, self.next)
        data = self._data
        while data and data[0][0] < until:
            data.popleft()
        if not data:
            start = self._memory.data_at
            self._head = start
            if self._touched > start + KEPT_BYTES:
                self._memory.release(start + KEPT_BYTES, self._touched)
                self._touched = start + KEPT_BYTES

    def _place(self, position: int) -> int:
        return RECORDS_AT + position % self._memory.records * RECORD_BYTES

    def _find_room(self, length: int) -> int:
        """A place for ``length`` bytes in one piece, or 0; the oldest data is never touched."""
        start, head = self._memory.data_at, self._head
        end = start + self._memory.data_bytes
        if not self._data:
            return start if length <= end - start else 0
        tail = self._data[0][1]
        if head > tail:
            if length <= end - head:
                return head
            return start if length < tail - start else 0
        return head if length < tail - head else 0

    def _copy(self, data_at: int, length: int, buffers: Sequence[memoryview]) -> None:
        view, position = self._memory.view, data_at
        for piece in buffers:
            end = position + len(piece)
            view[position:end] = piece
            position = end
        if position != data_at + length:
            raise DriverError(f"a write of {length} bytes comes with {position - data_at}")
        self._head = data_at + _pages(length)
        self._touched = max(self._touched, self._head)


def _pages(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES
