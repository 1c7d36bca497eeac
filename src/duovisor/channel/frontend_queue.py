"""A split virtqueue, front-end (guest) side: prepare requests once, submit and reap them as often as wanted.

Source: virtio 1.2, section 2.7. Used by benchmarks, by tests, and by a VMM that is not QEMU.
"""

from __future__ import annotations

import os
import select
import time

from duovisor.channel.chain import DESCRIPTOR, DESCRIPTOR_BYTES, INDIRECT, NEXT, WRITE
from duovisor.channel.errors import ProtocolError
from duovisor.channel.features import RING_EVENT_IDX, RING_INDIRECT_DESC
from duovisor.channel.fence import make_memory_fence
from duovisor.channel.virtqueue import AVAILABLE_NO_INTERRUPT, NO_MEMORY, USED_NO_NOTIFY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

    # Guest address and length in bytes of each part of a buffer.
    Pieces = Sequence[tuple[int, int]]


def ring_bytes(size: int) -> int:
    """Bytes of the three parts of a ring of ``size`` descriptors, each part aligned."""
    return _used_offset(size) + 6 + 8 * size


def _available_offset(size: int) -> int:
    return DESCRIPTOR_BYTES * size


def _used_offset(size: int) -> int:
    return (_available_offset(size) + 6 + 2 * size + 63) & ~63


class FrontEndQueue:
    """One queue in ``view``, the guest memory at guest address ``guest_address``.

    A *head* names a prepared request. ``kick_descriptor`` and ``call_descriptor`` are eventfds of ours.
    """

    def __init__(self, index: int, size: int, view: memoryview, guest_address: int) -> None:
        self.index = index
        self.size = size
        self.guest_address = guest_address
        self.kick_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.outstanding = 0
        self.kicks = 0
        self._table = view[: DESCRIPTOR_BYTES * size]
        self._available = view[_available_offset(size) : _available_offset(size) + 6 + 2 * size].cast("H")
        used = view[_used_offset(size) : _used_offset(size) + 6 + 8 * size]
        self._used_halves = used.cast("H")
        self._used_words = used[: 4 + 8 * size].cast("I")
        self._mask = size - 1
        self._next_available = 0
        self._kicked = 0
        self._last_used = 0
        self._fence = make_memory_fence()
        # Edge-triggered and never read: a back end could empty the eventfd before us and make our read wait.
        self._poller = select.epoll()
        self._poller.register(self.call_descriptor, select.EPOLLIN | select.EPOLLET)
        self._negotiated = False
        self._free: list[int] = []
        self._owned: dict[int, list[int]] = {}
        self._writable_bytes: dict[int, int] = {}
        self._submitted: set[int] = set()

    @property
    def last_used(self) -> int:
        """The index of the next entry of the used ring that will be reaped."""
        return self._last_used

    @property
    def available_address(self) -> int:
        """Guest address of the available ring."""
        return self.guest_address + _available_offset(self.size)

    @property
    def used_address(self) -> int:
        """Guest address of the used ring."""
        return self.guest_address + _used_offset(self.size)

    def set_features(self, features: int) -> None:
        """Forget all requests and begin anew with the negotiated ring features."""
        self._indirect = bool(features & RING_INDIRECT_DESC)
        self._event_idx = bool(features & RING_EVENT_IDX)
        self._negotiated = True
        self._free = list(range(self.size))
        self._owned = {}
        self._writable_bytes = {}
        self._submitted = set()
        self._available[0] = 0
        self._available[1] = self._used_halves[1] = self._used_halves[0] = 0
        self._next_available = self._kicked = self._last_used = 0
        self.outstanding = 0
        self.enable_interrupts()

    def prepare(self, readable: Pieces, writable: Pieces, table: tuple[int, memoryview] | None = None) -> int:
        """Write the descriptors of a request and return its head, which stays prepared until ``release``.

        ``table``, guest address and bytes of memory for an indirect table, is used if that was negotiated.
        Raises ``ProtocolError`` before a back end was connected (its features decide the form of a request),
        and when the ring has too few descriptors left.
        """
        if not self._negotiated:
            raise ProtocolError(f"queue {self.index} has no features yet; connect a back end first")
        pieces = [*((*piece, 0) for piece in readable), *((*piece, WRITE) for piece in writable)]
        if table is not None and self._indirect:
            head = self._take(1)[0]
            address, view = table
            for position, (start, length, flags) in enumerate(pieces):
                more = NEXT if position + 1 < len(pieces) else 0
                DESCRIPTOR.pack_into(
                    view, position * 16, start, length, flags | more, position + 1 if more else 0
                )
            DESCRIPTOR.pack_into(self._table, head * 16, address, 16 * len(pieces), INDIRECT, 0)
            self._owned[head] = [head]
            self._writable_bytes[head] = sum(length for _, length in writable)
            return head
        owned = self._take(len(pieces))
        for position, (start, length, flags) in enumerate(pieces):
            following = owned[position + 1] if position + 1 < len(owned) else None
            DESCRIPTOR.pack_into(
                self._table, owned[position] * 16, start, length,
                flags if following is None else flags | NEXT, following or 0,
            )  # fmt: skip
        self._owned[owned[0]] = owned
        self._writable_bytes[owned[0]] = sum(length for _, length in writable)
        return owned[0]

    def release(self, head: int) -> None:
        """Give the descriptors of a request back; it must not be in flight."""
        self._free += self._owned.pop(head)

    def submit(self, head: int) -> None:
        """Make a prepared request available; ``kick`` tells the back end."""
        position = self._next_available
        self._available[2 + (position & self._mask)] = head
        self._next_available = position = (position + 1) & 0xFFFF
        self._submitted.add(head)
        self._available[1] = position
        self.outstanding += 1

    def submit_all(self, heads: array[int]) -> None:
        """Make prepared requests available together; ``heads`` has 16-bit items (type code ``H``)."""
        position, count = self._next_available, len(heads)
        start = position & self._mask
        space = self.size - start
        self._available[2 + start : 2 + min(start + count, self.size)] = heads[:space]
        if count > space:
            self._available[2 : 2 + count - space] = heads[space:]
        self._next_available = position = (position + count) & 0xFFFF
        self._submitted.update(heads)
        self._available[1] = position
        self.outstanding += count

    def kick(self) -> None:
        """Notify the back end of what was submitted since the last kick, if it wants to know."""
        new, old = self._next_available, self._kicked
        self._kicked = new
        self._fence()
        if self._event_idx:
            event = self._used_halves[2 + 4 * self.size]
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not self._used_halves[0] & USED_NO_NOTIFY
        if wanted:
            self.force_kick()

    def force_kick(self) -> None:
        """Notify the back end whether it wants to know or not."""
        self.kicks += 1
        try:
            os.eventfd_write(self.kick_descriptor, 1)
        except BlockingIOError:
            pass  # a kick is pending already

    def reap(self) -> list[tuple[int, int]]:
        """Heads that the back end has used since the last call, with the bytes written to each.

        Raises ``ProtocolError`` for what was not submitted, and for more bytes than there was room for.
        """
        words, mask, position = self._used_words, self._mask, self._last_used
        count = (self._used_halves[1] - position) & 0xFFFF
        if not count:
            return []
        if count > self.outstanding:
            raise ProtocolError(f"the back end has used {count} requests of {self.outstanding}")
        reaped = []
        for _ in range(count):
            place = 1 + 2 * (position & mask)
            head, written = words[place], words[place + 1]
            if head not in self._submitted or written > self._writable_bytes[head]:
                raise ProtocolError(f"the back end of queue {self.index} used {head} with {written} bytes")
            self._submitted.remove(head)
            reaped.append((head, written))
            position = (position + 1) & 0xFFFF
        self._last_used = position
        self.outstanding -= count
        return reaped

    def reap_heads(self) -> list[int]:
        """As ``reap``, but heads only, all at once."""
        position = self._last_used
        count = (self._used_halves[1] - position) & 0xFFFF
        if count > self.outstanding:
            raise ProtocolError(f"the back end has used {count} requests of {self.outstanding}")
        start = position & self._mask
        end = start + count
        heads: list[int] = self._used_words[1 + 2 * start : 1 + 2 * min(end, self.size) : 2].tolist()
        if end > self.size:
            heads += self._used_words[1 : 1 + 2 * (end - self.size) : 2].tolist()
        self._last_used = (position + count) & 0xFFFF
        self.outstanding -= count
        self._submitted.difference_update(heads)
        if len(self._submitted) != self.outstanding:
            raise ProtocolError(f"the back end of queue {self.index} used what was not submitted")
        return heads

    def enable_interrupts(self) -> bool:
        """Ask to be notified of the next used request; True if one came in the meantime."""
        if self._event_idx:
            self._available[2 + self.size] = self._last_used
        else:
            self._available[0] = 0
        self._fence()
        return self._used_halves[1] != self._last_used

    def disable_interrupts(self) -> None:
        """Ask not to be notified; a hint without effect under EVENT_IDX."""
        if not self._event_idx:
            self._available[0] = AVAILABLE_NO_INTERRUPT

    def has_used(self) -> bool:
        """Whether the back end has used requests that were not reaped yet."""
        return self._used_halves[1] != self._last_used

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Reap at least one request; raises ``ProtocolError`` if none comes within ``timeout_s`` seconds."""
        self.wait_used(timeout_s)
        reaped = self.reap()
        if not reaped:
            raise ProtocolError(f"the back end of queue {self.index} took back what it had used")
        return reaped

    def wait_used(self, timeout_s: float) -> None:
        """Sleep until there is something to reap; raises ``ProtocolError`` after ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s  # of the whole wait: a back end may notify of nothing
        while not self.has_used() and not self.enable_interrupts():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._poller.poll(left_s):
                raise ProtocolError(f"no request was completed within {timeout_s:g} s")

    def close(self) -> None:
        """Close the eventfds and let go of the memory."""
        self._poller.close()
        os.close(self.kick_descriptor)
        os.close(self.call_descriptor)
        self._table = self._available = self._used_halves = self._used_words = NO_MEMORY

    def _take(self, count: int) -> list[int]:
        if len(self._free) < count or not count:
            raise ProtocolError(f"queue {self.index} has {len(self._free)} descriptors left for {count}")
        taken, self._free = self._free[:count], self._free[count:]
        return taken
