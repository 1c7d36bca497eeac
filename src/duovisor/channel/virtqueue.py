"""A split virtqueue, device side: fetch chains, complete them, publish completions, decide whom to notify.

Source: virtio 1.2, section 2.7. The guest may write anything at any time, so each word is loaded once,
checked, and only the checked copy is used. What is wrong raises ``QueueError``.

The order of stores is what makes a crash harmless (see ``inflight``): a head is marked in flight before it is
worked on; the used elements are stored, then ``used.idx``, and only then are the marks cleared.
"""

from __future__ import annotations

import os
from array import array
from struct import Struct

from duovisor.channel.chain import (
    DESCRIPTOR,
    DESCRIPTOR_BYTES,
    INDIRECT,
    MAX_CHAIN_BYTES,
    MAX_CHAIN_LENGTH,
    NEXT,
    WRITE,
    Chain,
    Frame,
    count_writable,
    find_frame,
    follow_table,
    map_chain,
    table_unpacker,
)
from duovisor.channel.errors import DeviceError, GuestMemoryError, QueueError
from duovisor.channel.features import LOG_ALL, RING_EVENT_IDX, RING_INDIRECT_DESC
from duovisor.channel.fence import make_memory_fence
from duovisor.channel.inflight import LAST_BATCH_HEAD_HALF, USED_INDEX_HALF, make_private_inflight

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.dirty_log import DirtyLog
    from duovisor.channel.inflight import QueueInflight
    from duovisor.channel.memory import GuestMemory
    from duovisor.channel.messages import VringAddress

MAX_QUEUE_SIZE = 32768
# A batch of the longest chains takes a tenth of a second; then others must have their turn.
MAX_BATCH = 128
MAX_USED_BYTES = 0xFFFFFFFF  # what a used element can say
VRING_FLAG_LOG = 1
AVAILABLE_NO_INTERRUPT = 1
USED_NO_NOTIFY = 1
NO_MEMORY = memoryview(b"")
_NOTHING: list[Chain] = []
_FRAMES_MAX = 256  # a kilobyte each
_HEAD = Struct("=QIH2x").unpack_from  # a descriptor without its link
_FRAME_BYTES = 3 * DESCRIPTOR_BYTES
_FRAME = Struct(f"{_FRAME_BYTES}s").unpack_from
_THREE = Struct("=" + 3 * "QIHH").unpack


class Virtqueue:
    """One queue; ``start`` binds it to a ring, ``stop`` lets go of it.

    ``in_flight`` counts the chains fetched and not yet published, ``progress`` published chains, ``errors``
    those that the driver could not serve.
    """

    __slots__ = (
        "_available", "_batch", "_chains", "_counter", "_event_idx", "_fence", "_framed", "_frames",
        "_indirect", "_inflight", "_inflight_counters", "_inflight_halves", "_inflight_states",
        "_last_available", "_log", "_log_address", "_mask", "_memory", "_notify_always", "_resubmit",
        "_table", "_used_halves", "_used_index", "_used_words", "call_descriptor", "errors", "in_flight",
        "index", "notifications", "progress", "running", "size",
    )  # fmt: skip

    def __init__(self, index: int, memory: GuestMemory) -> None:
        self.index = index
        self.call_descriptor: int | None = None
        self.running = False
        self.size = 0
        self.in_flight = 0
        self.progress = 0
        self.errors = 0
        self.notifications = 0
        self._memory = memory
        self._fence = make_memory_fence()
        self._log: DirtyLog | None = None
        self._log_address: int | None = None
        self._batch: list[Chain] = []
        self._chains: list[Chain] = []
        self._frames: dict[bytes, Frame] = {}
        self._framed = NO_MEMORY  # the memory they are of
        self._resubmit: list[int] = []
        self._last_available = 0

    @property
    def last_available(self) -> int:
        """The index of the next entry of the available ring that will be fetched."""
        return self._last_available

    def start(
        self, size: int, address: VringAddress, features: int, base: int, inflight: QueueInflight | None
    ) -> None:
        """Begin at index ``base`` of the available ring, or where ``inflight`` says the last back end was.

        Raises ``QueueError`` or ``GuestMemoryError`` for a ring that cannot be, ``ProtocolError`` for a log
        that belongs to another one.
        """
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise QueueError(f"queue {self.index} has size {size}, which is not a power of two up to 32768")
        self.size = size
        self._mask = size - 1
        self._event_idx = bool(features & RING_EVENT_IDX)
        self._indirect = bool(features & RING_INDIRECT_DESC)
        self.bind(address)
        self._chains = [Chain(self, head) for head in range(size)]
        self._batch = []
        self._used_index = self._used_halves[1]
        self._bind_inflight(inflight or make_private_inflight(size))
        resumed = self._inflight.in_use
        self._resubmit = self._inflight.recover(self._used_index)
        if any(head >= size for head in self._resubmit):
            raise QueueError(f"the in-flight log of queue {self.index} names descriptors beyond {size}")
        self._counter = self._inflight.next_counter(self._resubmit)
        self._last_available = (self._used_index + len(self._resubmit)) & 0xFFFF if resumed else base & 0xFFFF
        self.in_flight = 0
        self._notify_always = True  # the last back end may have died between publishing and notifying
        self.running = True

    def bind(self, address: VringAddress) -> None:
        """Find the ring in guest memory (again, after a change of the memory table)."""
        if address.descriptors % 16 or address.available % 2 or address.used % 4:
            raise QueueError(f"the rings of queue {self.index} are not aligned to 16, 2 and 4 bytes")
        size, memory = self.size, self._memory
        self._table = memory.user_slice(address.descriptors, DESCRIPTOR_BYTES * size)
        self._available = memory.user_slice(address.available, 6 + 2 * size).cast("H")
        used = memory.user_slice(address.used, 6 + 8 * size)
        self._used_halves = used.cast("H")
        self._used_words = used[: 4 + 8 * size].cast("I")
        self._log_address = address.log_guest_address if address.flags & VRING_FLAG_LOG else None

    def _bind_inflight(self, inflight: QueueInflight) -> None:
        self._inflight = inflight
        self._inflight_states = inflight.states
        self._inflight_halves = inflight.halves
        self._inflight_counters = inflight.counters

    def set_log(self, log: DirtyLog | None, features: int) -> None:
        """Begin or end marking what is written, as ``VHOST_F_LOG_ALL`` says."""
        self._log = log if features & LOG_ALL else None

    def stop(self) -> int:
        """Let go of the ring; return the index from which a successor goes on."""
        self.running = False
        self._chains = []
        self._frames.clear()
        self._framed = NO_MEMORY
        self._resubmit = []
        self._table = self._available = self._used_halves = self._used_words = NO_MEMORY
        self._bind_inflight(make_private_inflight(1))
        return self._last_available

    # Fetching

    def has_available(self) -> bool:
        """Whether the guest made chains available that were not fetched yet."""
        return self._available[1] != self._last_available or bool(self._resubmit)

    def pop(self) -> list[Chain]:
        """Fetch what is available, up to a batch; first all that a crashed predecessor left in flight."""
        if self._resubmit:
            return self.pop_resubmitted()
        available = self._available
        position = self._last_available
        count = (available[1] - position) & 0xFFFF
        if not count:
            return _NOTHING
        if count > self.size - self.in_flight:
            raise QueueError(
                f"queue {self.index} of size {self.size} has {count} chains available, {self.in_flight} taken"
            )
        count = min(count, MAX_BATCH)
        if count == 1:
            heads = [available[2 + (position & self._mask)]]
        else:
            start = 2 + (position & self._mask)
            over = start + count - self.size - 2
            heads = available[start : start + count].tolist()
            if over > 0:
                heads = heads[: count - over] + available[2 : 2 + over].tolist()
        popped: list[Chain] = []
        try:
            self._fetch(heads, popped)
        finally:
            self._last_available = (position + len(popped)) & 0xFFFF
            self._counter += len(popped)
            self.in_flight += len(popped)
        return popped

    def _fetch(self, heads: list[int], popped: list[Chain]) -> None:
        """Mark each head in flight, add its chain to ``popped``, then read and check its descriptors.

        Three buffers in one indirect table make a ``Frame``, which is kept: a guest uses its buffers again.
        One buffer alone, as network cards get them by the hundred, is read here.
        Every other chain is read by ``_load``, from a copy of its own.
        """
        chains, states, counters = self._chains, self._inflight_states, self._inflight_counters
        table, frames, memory = self._table, self._frames, self._memory
        view, origin, limit = memory.main_view, memory.main_start, memory.main_size
        table_limit = limit - _FRAME_BYTES if self._indirect else -1
        if view is not self._framed:
            frames.clear()
            self._framed = view
        size, counter = self.size, self._counter
        read_descriptor, append = DESCRIPTOR.unpack_from, popped.append
        for head in heads:
            if head >= size:
                raise QueueError(f"queue {self.index} of size {size} makes descriptor {head} available")
            chain = chains[head]
            if chain.busy:
                raise QueueError(
                    f"queue {self.index} makes descriptor {head} available while it is in flight"
                )
            counters[chain.counter_place] = counter
            counter += 1
            states[chain.state_place] = 1
            chain.busy = True
            append(chain)
            descriptor = read_descriptor(table, chain.table_place)
            address, length, flags, _ = descriptor
            place = address - origin
            if flags == WRITE or not flags:
                end = place + length
                if place < 0 or end > limit or not length:
                    self._load(chain)
                    continue
                chain.descriptors = descriptor
                if flags:
                    chain.set_buffers([], [view[place:end]])
                else:
                    chain.set_buffers([view[place:end]], [])
                continue
            if length != _FRAME_BYTES or flags != INDIRECT or place < 0 or place > table_limit:
                self._load(chain)
                continue
            (key,) = _FRAME(view, place)
            frame = frames.get(key)
            if frame is None:
                flat = _THREE(key)
                frame = find_frame(flat, view, origin)
                if frame is None:
                    self._load_flat(chain, flat)
                    continue
                if len(frames) >= _FRAMES_MAX:
                    frames.clear()
                frames[key] = frame
            chain.frame = frame
            chain.descriptors = frame.descriptors

    def pop_resubmitted(self) -> list[Chain]:
        """The chains that were in flight when the last back end ended, in the order it fetched them."""
        heads, self._resubmit = self._resubmit, []
        self.in_flight += len(heads)
        chains = [self._chains[head] for head in heads]
        for chain in chains:
            chain.busy = True
            self._load(chain)
        return chains

    def _load(self, chain: Chain) -> None:
        """Read the descriptors of a chain and map its buffers; one indirect table in one piece here."""
        memory = self._memory
        address, length, flags = _HEAD(self._table, chain.table_place)
        offset = address - memory.main_start
        if flags != INDIRECT or not self._indirect or offset < 0 or offset + length > memory.main_size:
            self._load_any(chain)
            return
        self._load_flat(chain, table_unpacker(length)(memory.main_view, offset))

    def _load_flat(self, chain: Chain, flat: tuple[int, ...]) -> None:
        """Map the buffers of an indirect table, of which ``flat`` is our copy.

        In order and inside the largest memory region they are mapped here; any other form, and every
        malformed one, is ``_load_table``'s.
        """
        memory = self._memory
        view, start, limit = memory.main_view, memory.main_start, memory.main_size
        if sum(flat[1::4]) > MAX_CHAIN_BYTES:
            self._load_table(chain, flat)
            return
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        entries = iter(flat)
        position = 0
        for address, length, flags, following in zip(entries, entries, entries, entries, strict=True):
            offset = address - start
            end = offset + length
            if offset < 0 or end > limit or not length or flags > 3:
                break
            if flags & WRITE:
                writable.append(view[offset:end])
            elif writable:
                break
            else:
                readable.append(view[offset:end])
            if not flags & NEXT:
                chain.descriptors = flat
                chain.set_buffers(readable, writable)
                return
            position += 1
            if following != position:
                break
        self._load_table(chain, flat)

    def _load_any(self, chain: Chain) -> None:
        """Load a chain of any form that the specification allows."""
        table, size, index = self._table, self.size, chain.head
        walked: list[int] = []
        for _ in range(size):
            descriptor = DESCRIPTOR.unpack_from(table, index << 4)
            address, length, flags, following = descriptor
            if flags & INDIRECT:
                if not self._indirect or flags & NEXT:
                    raise QueueError(f"queue {self.index} has an indirect table where none is allowed")
                pieces = self._slices(address, length)
                flat = table_unpacker(length)(pieces[0] if len(pieces) == 1 else b"".join(pieces), 0)
                self._load_table(chain, flat, walked)
                return
            walked.extend(descriptor)
            if not flags & NEXT:
                map_chain(chain, walked, self._memory)
                return
            if following >= size:
                raise QueueError(f"queue {self.index} of size {size} links to descriptor {following}")
            index = following
        raise QueueError(f"queue {self.index} has a chain that is a loop or longer than {size}")

    def _load_table(self, chain: Chain, flat: tuple[int, ...], before: list[int] | None = None) -> None:
        walked = [*(before or ()), *follow_table(flat)]
        if len(walked) > 4 * MAX_CHAIN_LENGTH:
            raise QueueError(f"queue {self.index} has a chain longer than {MAX_CHAIN_LENGTH}")
        map_chain(chain, walked, self._memory)

    def _slices(self, address: int, length: int) -> list[memoryview]:
        try:
            return self._memory.slices(address, length)
        except GuestMemoryError as error:
            raise QueueError(f"queue {self.index}: {error}") from error

    # Completing

    def complete(self, chain: Chain, written: int) -> None:
        """Note that a chain is done, with ``written`` bytes in its writable part; ``publish`` shows it.

        Raises ``DeviceError`` for a chain that is not in flight, or bytes that have no place in it.
        """
        head = chain.head
        if not chain.busy:
            raise DeviceError(f"chain {head} of queue {self.index} is completed twice")
        if written.__class__ is not int or not 0 <= written <= count_writable(chain.descriptors):
            raise DeviceError(
                f"a request of queue {self.index} is completed with {written!r:.40} bytes written; "
                f"its writable part has {count_writable(chain.descriptors)}"
            )
        if self._log is not None:
            self._mark_written(chain, self._log)
        chain.busy = False
        batch = self._batch
        place = ((self._used_index + len(batch)) & self._mask) * 2 + 1
        words = self._used_words
        words[place] = head
        words[place + 1] = min(written, MAX_USED_BYTES)
        halves = self._inflight_halves
        halves[chain.link_place] = halves[LAST_BATCH_HEAD_HALF]
        halves[LAST_BATCH_HEAD_HALF] = head
        batch.append(chain)

    def complete_all(self, chains: list[Chain]) -> None:
        """As ``complete``, for chains whose ``written`` says how many bytes that was.

        For a driver in a hurry: nobody looks whether so many bytes have a place in the chain.
        """
        log, batch, halves = self._log, self._batch, self._inflight_halves
        start = ((self._used_index + len(batch)) & self._mask) * 2 + 1
        link = halves[LAST_BATCH_HEAD_HALF]
        elements: list[int] = []
        for chain in chains:
            if not chain.busy:
                raise DeviceError(f"chain {chain.head} of queue {self.index} is completed twice")
            if log is not None:
                self._mark_written(chain, log)
            chain.busy = False
            head = chain.head
            elements += (head, chain.written)
            halves[chain.link_place] = link
            link = head
        try:
            words = array("I", elements)
        except OverflowError as error:
            raise DeviceError(
                f"a request of queue {self.index} wrote more bytes than 32 bits hold"
            ) from error
        space = 2 * self.size + 1 - start
        self._used_words[start : start + len(words)] = words[:space]
        if len(words) > space:
            self._used_words[1 : 1 + len(words) - space] = words[space:]
        halves[LAST_BATCH_HEAD_HALF] = link
        batch += chains

    def give_back(self, chains: list[Chain]) -> None:
        """Undo the fetching of those chains that were fetched last, in their order: they will be again."""
        for chain in reversed(
            chains
        ):  # a crash on the way leaves the older ones in flight, which is as exact
            chain.busy = False
            self._inflight_states[chain.state_place] = 0
        self._last_available = (self._last_available - len(chains)) & 0xFFFF
        self.in_flight -= len(chains)

    def publish(self) -> None:
        """Show the guest all completed chains, and notify it if it wants to know."""
        batch = self._batch
        count = len(batch)
        if not count:
            return
        old = self._used_index
        new = (old + count) & 0xFFFF
        self._used_halves[1] = new
        states = self._inflight_states
        for chain in batch:
            states[chain.state_place] = 0
        self._inflight_halves[USED_INDEX_HALF] = new
        self._used_index = new
        self.in_flight -= count
        self.progress += count
        batch.clear()
        if self._log is not None:
            self._mark_used_ring(self._log)
        self._fence()
        if self._event_idx:
            event = self._available[2 + self.size]
            wanted = (new - event - 1) & 0xFFFF < count
        else:
            wanted = not self._available[0] & AVAILABLE_NO_INTERRUPT
        if wanted or self._notify_always:
            self._notify_always = False
            self.notify()

    def notify(self) -> None:
        """Interrupt the guest; without a descriptor it polls."""
        if self.call_descriptor is not None:
            self.notifications += 1
            try:
                os.eventfd_write(self.call_descriptor, 1)
            except BlockingIOError:
                pass  # an interrupt is pending already
            except OSError as error:
                raise QueueError(f"queue {self.index} cannot notify the guest: {error.strerror}") from error

    # Being notified

    def enable_notifications(self) -> bool:
        """Ask the guest to kick for the next chain; True if one came meanwhile, for which it will not."""
        if self._event_idx:
            self._used_halves[2 + 4 * self.size] = self._last_available
        else:
            self._used_halves[0] = 0
        if self._log is not None:
            self._mark_used_ring(self._log)
        self._fence()
        return self._available[1] != self._last_available

    def disable_notifications(self) -> None:
        """Spare the guest its kicks while we look anyway; under EVENT_IDX not moving the event does it."""
        if not self._event_idx:
            self._used_halves[0] = USED_NO_NOTIFY

    # Logging, during a live migration only

    def log_used_ring(self) -> None:
        """Mark the used ring: the last back end may have died between storing to it and marking it."""
        if self._log is not None:
            self._mark_used_ring(self._log)

    def _mark_written(self, chain: Chain, log: DirtyLog) -> None:
        entries = iter(chain.descriptors)
        for address, length, flags, _ in zip(entries, entries, entries, entries, strict=True):
            if flags & WRITE:
                log.mark(address, length)
            if not flags & NEXT:
                return

    def _mark_used_ring(self, log: DirtyLog) -> None:
        if self._log_address is not None:
            log.mark(self._log_address, 6 + 8 * self.size)
