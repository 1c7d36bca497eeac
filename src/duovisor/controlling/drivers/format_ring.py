"""The ring towards the format process: a split virtqueue in the replay memory, driven from the guest's side.

Everything about a request lies in the shared memory, so that after a crash of the driver its successor knows
exactly what the format process is still working on, and goes on with the same ring. A *slot* is a request's
place: its three descriptors are fixed (header, data, status), and so is its buffer for reading.

Order of stores: a slot is filled and marked busy, then ``avail.idx`` makes it available. When it comes back
it is marked free, then ``REAPED_WORD`` moves on, and only then can it be used again.
"""

from __future__ import annotations

import os
from struct import Struct

from duovisor.channel.chain import DESCRIPTOR, NEXT, WRITE
from duovisor.channel.errors import ProtocolError
from duovisor.channel.fence import make_memory_fence
from duovisor.channel.virtqueue import USED_NO_NOTIFY
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.replay_log import ZERO_AND_UNMAP
from duovisor.controlling.drivers.replay_memory import (
    AVAILABLE_AT,
    DESCRIPTORS_AT,
    POSITION_MAX,
    QUEUE_SIZE,
    READ_BUFFER_BYTES,
    REAPED_WORD,
    SLOT_BYTES,
    SLOTS,
    SLOTS_AT,
    SUBMITTED_WORD,
    USED_AT,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.controlling.drivers.replay_memory import ReplayMemory

_MASK = QUEUE_SIZE - 1
_NO_STATUS = 0xFF
BUFFERS_KEPT = 8  # for reading: 1 MiB
# Inside a slot: virtio-blk's header, the range of a discard, status, then what a successor must know.
_RANGE_AT, _STATUS_AT, _BUSY_AT, _NOTES_AT = 16, 32, 33, 40
# position in the ring, position in the replay log + 1, bytes on the disk
_NOTES = Struct("=QQI")


class Outstanding:
    """A request of a predecessor that the format process has not answered; ``record``: -1 without one."""

    __slots__ = ("kind", "length", "offset", "record", "slot")

    def __init__(self, slot: int, kind: int, offset: int, length: int, record: int) -> None:
        self.slot = slot
        self.kind = kind
        self.offset = offset
        self.length = length
        self.record = record


class FormatRing:
    """The ring and its slots; ``kick_descriptor`` and ``call_descriptor`` are eventfds of this process."""

    def __init__(self, memory: ReplayMemory) -> None:
        view = memory.view
        self.kick_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._memory = memory
        self._view = view
        self._words = memory.words
        self._available = view[AVAILABLE_AT : AVAILABLE_AT + 6 + 2 * QUEUE_SIZE].cast("H")
        used = view[USED_AT : USED_AT + 6 + 8 * QUEUE_SIZE]
        self._used_halves = used.cast("H")
        self._used_words = used[: 4 + 8 * QUEUE_SIZE].cast("I")
        self._fence = make_memory_fence()
        self._free: list[int] = []
        self._submitted = self._reaped = 0
        self._buffers_touched = 0

    # A ring begins, or goes on

    def reset(self) -> None:
        """An empty ring, for a format process that knows nothing of it."""
        self._view[DESCRIPTORS_AT : SLOTS_AT + SLOTS * SLOT_BYTES] = bytes(
            SLOTS_AT + SLOTS * SLOT_BYTES - DESCRIPTORS_AT
        )
        self._submitted = self._words[SUBMITTED_WORD] = 0
        self._reaped = self._words[REAPED_WORD] = 0
        self._free = list(range(SLOTS - 1, -1, -1))

    def recover(self) -> list[Outstanding]:
        """Go on with a predecessor's ring; return what is outstanding. Raises ``ProtocolError``."""
        words = self._words
        submitted = words[SUBMITTED_WORD]
        submitted += (self._available[1] - submitted) & 0xFFFF  # killed between the two stores of ``publish``
        outstanding = submitted - words[REAPED_WORD]
        if not 0 <= outstanding <= 2 * SLOTS or submitted > POSITION_MAX:
            raise ProtocolError(f"the ring of the format process has {outstanding} requests under way")
        self._submitted = words[SUBMITTED_WORD] = submitted
        self._reaped = words[REAPED_WORD]
        self._free = []
        self._buffers_touched = SLOTS  # by the predecessor, perhaps
        self._reap(outstanding, answered_before=True)
        found = []
        for slot in range(SLOTS - 1, -1, -1):
            base = SLOTS_AT + slot * SLOT_BYTES
            position, record, length = _NOTES.unpack_from(self._view, base + _NOTES_AT)
            if self._view[base + _BUSY_AT] and position < self._submitted:
                kind, _, sector = layout.REQUEST_HEADER.unpack_from(self._view, base)
                found.append(Outstanding(slot, kind, sector << layout.SECTOR_SHIFT, length, record - 1))
            else:
                self._view[base + _BUSY_AT] = 0
                self._free.append(slot)
        return found

    # Requests

    def take(self) -> int | None:
        """A free slot, the lowest ones first so that few buffers are ever touched."""
        return self._free.pop() if self._free else None

    def give_back(self, slot: int) -> None:
        """Make a slot usable again, after its answer was dealt with."""
        self._free.append(slot)

    def read_buffer(self, slot: int, length: int) -> memoryview:
        """The bytes that the format process has read for a slot."""
        start = self._memory.read_buffers_at + slot * READ_BUFFER_BYTES
        return self._view[start : start + length]

    def release_buffers(self) -> None:
        """Give the memory of the buffers back, but for that of the first; nothing may be under way."""
        if self._buffers_touched > BUFFERS_KEPT:
            start = self._memory.read_buffers_at
            touched = start + self._buffers_touched * READ_BUFFER_BYTES
            self._memory.release(start + BUFFERS_KEPT * READ_BUFFER_BYTES, touched)
            self._buffers_touched = BUFFERS_KEPT

    def has_answers(self) -> bool:
        """Whether something was answered since the last ``reap``."""
        return self._used_halves[1] != self._reaped & 0xFFFF

    def put(self, slot: int, kind: int, offset: int, length: int, data_at: int = 0, record: int = -1) -> None:
        """Put a request into the ring; ``publish`` shows it. ``data_at``: where a write's data lies."""
        view, base, submitted = self._view, SLOTS_AT + slot * SLOT_BYTES, self._submitted
        descriptor = 3 * slot
        table = DESCRIPTORS_AT + 16 * descriptor
        following = descriptor + 1
        if kind == layout.REQUEST_IN:
            buffer = self._memory.read_buffers_at + slot * READ_BUFFER_BYTES
            self._buffers_touched = max(self._buffers_touched, slot + 1)
            DESCRIPTOR.pack_into(view, table + 16, buffer, length, NEXT | WRITE, descriptor + 2)
        elif kind == layout.REQUEST_OUT:
            DESCRIPTOR.pack_into(view, table + 16, data_at, length, NEXT, descriptor + 2)
        elif kind == layout.REQUEST_FLUSH:
            following = descriptor + 2
        else:
            flags = layout.UNMAP if kind == ZERO_AND_UNMAP else 0
            sector, count = offset >> layout.SECTOR_SHIFT, length >> layout.SECTOR_SHIFT
            layout.RANGE.pack_into(view, base + _RANGE_AT, sector, count, flags)
            DESCRIPTOR.pack_into(view, table + 16, base + _RANGE_AT, layout.RANGE.size, NEXT, descriptor + 2)
        DESCRIPTOR.pack_into(view, table, base, layout.REQUEST_HEADER.size, NEXT, following)
        DESCRIPTOR.pack_into(view, table + 32, base + _STATUS_AT, 1, WRITE, 0)
        layout.REQUEST_HEADER.pack_into(view, base, kind & 0xFF, 0, offset >> layout.SECTOR_SHIFT)
        _NOTES.pack_into(view, base + _NOTES_AT, submitted, record + 1, length)
        view[base + _STATUS_AT] = _NO_STATUS
        view[base + _BUSY_AT] = 1
        self._available[2 + (submitted & _MASK)] = descriptor
        self._submitted = submitted + 1

    def publish(self) -> None:
        """Show the format process what was put into the ring, and notify it if it wants to know."""
        submitted = self._submitted
        if submitted == self._words[SUBMITTED_WORD]:
            return
        self._available[1] = submitted & 0xFFFF
        self._words[SUBMITTED_WORD] = submitted
        self._fence()
        if not self._used_halves[0] & USED_NO_NOTIFY:
            self.kick()

    def kick(self) -> None:
        """Notify the format process whether it wants to know or not."""
        os.eventfd_write(self.kick_descriptor, 1)

    def reap(self) -> list[tuple[int, int]]:
        """Slots that were answered, with their status. Raises ``ProtocolError``."""
        return self._reap(self._submitted - self._reaped, answered_before=False)

    def _reap(self, outstanding: int, *, answered_before: bool) -> list[tuple[int, int]]:
        """``answered_before``: an answer may be there twice, if a predecessor died while it took it."""
        view, words, reaped = self._view, self._used_words, self._reaped
        count = (self._used_halves[1] - reaped) & 0xFFFF
        if not count:
            return []
        if count > outstanding:
            raise ProtocolError(f"the format process answers {count} requests of {outstanding}")
        answers = []
        for position in range(reaped, reaped + count):
            slot, rest = divmod(words[1 + 2 * (position & _MASK)], 3)
            busy = SLOTS_AT + slot * SLOT_BYTES + _BUSY_AT
            if rest or slot >= SLOTS or not (view[busy] or answered_before):
                raise ProtocolError(f"the format process answers descriptor {3 * slot + rest}")
            view[busy] = 0
            answers.append((slot, view[busy - _BUSY_AT + _STATUS_AT]))
        self._reaped = self._words[REAPED_WORD] = reaped + count
        return answers

    def close(self) -> None:
        """Close the eventfds."""
        os.close(self.kick_descriptor)
        os.close(self.call_descriptor)
