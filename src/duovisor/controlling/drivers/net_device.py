"""virtio-net on a TAP: frames from the one to the other, in and out of the guest's memory without a copy.

The TAP speaks the guest's own header (IFF_VNET_HDR), so checksums and segmentation pass through: one call
moves up to 64 KiB. The guest's empty buffers are kept until frames come. What was in flight when a driver
dies may be lost, as on any wire; its successor finds the empty buffers in the in-flight log.
"""

from __future__ import annotations

import os
from collections import deque
from itertools import islice

from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import QueueError
from duovisor.controlling.drivers import net_layout as layout
from duovisor.controlling.drivers.net_counters import Counters
from duovisor.controlling.drivers.throttle import UNLIMITED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.net_throttle import NetThrottle
    from duovisor.controlling.drivers.tap import Tap

    Posted = tuple[Chain, list[memoryview], int]
    """An empty buffer of the guest: its pieces and their bytes together."""

MERGED_MAX = 64  # empty buffers offered to one read at most: 64 KiB in pieces of 1 KiB


class NetDevice(VirtioDevice):
    """A network card on ``tap``. With ``mac`` (6 bytes), frames of the guest from another one are dropped."""

    device_id = layout.DEVICE_ID
    features = layout.OFFERED_FEATURES
    queues = layout.QUEUES

    def __init__(self, tap: Tap, *, mac: bytes | None = None) -> None:
        self.tap = tap
        self.counters = Counters()
        self.completion_descriptor = tap.descriptor
        self._mac = mac
        self._header_bytes = layout.HEADER_BYTES
        self._mergeable = False
        self._tap_setting = (0, 0)  # offloads and size of the header
        self._tap_is_set = False
        self._posted: deque[Posted] = deque()
        self.throttle: NetThrottle | None = None
        self._receive_queue: Virtqueue | None = None
        self._transmit_queue: Virtqueue | None = None
        self._readable = True  # the TAP may hold frames that nobody has told of
        self._expected = 1  # so many empty buffers the next frame is likely to need
        self._overflow = memoryview(bytearray(layout.OVERFLOW_BYTES))
        self._waiting = 0  # bytes of a frame that is read, but has not room enough
        self._offered = 0  # and the number of buffers that its beginning was read into

    # Configuration

    def set_features(self, features: int) -> None:
        """The TAP learns of them with the first buffers: a spare must not touch it."""
        setting = (layout.tap_offloads(features), layout.header_bytes(features))
        if setting != self._tap_setting:
            self._tap_setting = setting
            self._tap_is_set = False
        self._header_bytes = setting[1]
        self._mergeable = bool(features & layout.MERGEABLE_BUFFERS)
        self._expected = 1

    def reset(self) -> None:
        """Nothing of the guest's is left."""
        self.set_features(0)

    def holds_buffers(self, queue: int) -> bool:
        """Empty buffers wait for frames."""
        return queue == layout.RECEIVE

    def needs_kicks(self, queue: int) -> bool:
        """As long as there are empty buffers, more of them are no news."""
        return queue != layout.RECEIVE or not self._posted or self._waiting > 0

    def statistics(self) -> dict[str, object]:
        """The counters."""
        return self.counters.describe()

    # Queues

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Send the guest's frames; keep its empty buffers, and fill them if the TAP has frames waiting."""
        if not self._tap_is_set:
            self.tap.set_offloads(*self._tap_setting)
            self._tap_is_set = True
        if queue.index == layout.TRANSMIT:
            self._transmit_queue = queue
            if self.throttle is not None:
                self.throttle.add(chains)
                chains = self.throttle.release()
            self._send(queue, chains)
            return
        self._receive_queue = queue
        self._post(chains)
        if self._readable:
            self._receive(queue)

    def reap(self) -> None:
        """The TAP has frames, or a throttle lets more through."""
        self._readable = True
        if self.throttle is not None and self._transmit_queue is not None:
            self._send(self._transmit_queue, self.throttle.release())
            self._transmit_queue.publish()
        queue = self._receive_queue
        if queue is not None and self._posted:
            self._receive(queue)
            queue.publish()

    def stop_queue(self, queue: Virtqueue) -> None:
        """Give the empty buffers, and frames that wait, back: whoever starts the queue begins with them."""
        if queue.index == layout.TRANSMIT:
            queue.give_back(self.throttle.forget() if self.throttle is not None else [])
            self._transmit_queue = None
        if queue.index == layout.RECEIVE:
            queue.give_back([chain for chain, _, _ in self._posted])
            self._forget()

    def abandon(self) -> None:
        """The front end is gone, and its buffers with it."""
        if self.throttle is not None:
            self.throttle.forget()
        self._transmit_queue = None
        self._forget()

    def close(self) -> None:
        """Close the TAP."""
        self.tap.close()

    def _forget(self) -> None:
        self._posted.clear()
        self._receive_queue = None
        self._waiting = 0
        self._readable = True

    # From the guest

    def _send(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Write each frame to the TAP; one that it refuses is dropped, as on a wire.

        The beginning, which the filter looks at, is copied first: what is checked is what is sent.
        """
        descriptor, writev = self.tap.descriptor, os.writev
        source = self._header_bytes + layout.MAC_BYTES
        beginning = self._header_bytes + layout.ETHERNET_BYTES
        source_end, mac = source + layout.MAC_BYTES, self._mac
        counters = self.counters
        moved = 0
        for chain in chains:
            chain.written = 0
            pieces = chain.readable
            if not pieces or len(pieces[0]) < beginning:
                pieces = gather(pieces, beginning)
            first = pieces[0]
            head = bytes(first[:beginning])
            if len(head) < beginning:
                counters.sent_dropped += 1
                continue
            if mac is not None and head[source:source_end] != mac:
                counters.spoofed += 1
                continue
            try:
                moved += writev(descriptor, [head, first[beginning:], *pieces[1:]]) - self._header_bytes
                counters.sent_frames += 1
            except OSError:  # a header that makes no sense, or an interface that is down
                counters.sent_dropped += 1
        counters.sent_bytes += moved
        queue.complete_all(chains)

    # To the guest

    def _post(self, chains: list[Chain]) -> None:
        """Keep empty buffers. Raises ``QueueError`` for what is none."""
        append, least = self._posted.append, self._header_bytes
        for chain in chains:
            pieces = chain.writable
            size = len(pieces[0]) if len(pieces) == 1 else sum(map(len, pieces))
            if chain.readable or size < least:
                raise QueueError(f"a buffer of {size} bytes for frames has no room for a header")
            append((chain, pieces, size))

    def _receive(self, queue: Virtqueue) -> None:
        """Read frames into the guest's buffers until there are no more of either.

        A read is offered about as many buffers as the last frame took, and room of our own for what they do
        not hold: the end of a frame that is longer than expected is copied from there.
        """
        posted, descriptor, readv = self._posted, self.tap.descriptor, os.readv
        done: list[Chain] = []
        if self._waiting:
            self._finish_waiting(queue, done)
        throttle = self.throttle
        left = allowed = UNLIMITED if throttle is None else throttle.allow()
        while left > 0 and posted and not self._waiting:
            if self._expected == 1:
                _, pieces, room = posted[0]
                pieces = [*pieces, self._overflow]
            else:
                pieces, room = self._collect(self._expected)
            try:
                size = readv(descriptor, pieces)
            except OSError:  # none there (EAGAIN), or the interface is down
                self._readable = False
                break
            left -= size
            if size <= room:
                self._fill(size, done)
            elif self._mergeable:
                self._waiting, self._offered = size, min(self._expected, len(posted))
                self._finish_waiting(queue, done)
            else:
                self.counters.received_dropped += 1
        if throttle is not None:
            throttle.count(allowed - left, more=self._readable)
        if done:
            queue.complete_all(done)

    def _collect(self, count: int) -> tuple[list[memoryview], int]:
        """The pieces of the next ``count`` empty buffers, with our own room behind them, and their bytes."""
        collected: list[memoryview] = []
        room = 0
        for _, pieces, size in islice(self._posted, count):
            collected += pieces
            room += size
        collected.append(self._overflow)
        return collected, room

    def _fill(self, size: int, done: list[Chain]) -> None:
        """A frame of ``size`` bytes, header included, lies in the next buffers: they are done."""
        take, finish = self._posted.popleft, done.append
        chain, first, room = take()
        finish(chain)
        left, count = size, 1
        while left > room:
            chain.written = room
            left -= room
            chain, _, room = take()
            finish(chain)
            count += 1
        chain.written = left
        if self._mergeable:
            self._expected = min(max(count, self._expected >> 1), MERGED_MAX)
        if self._header_bytes == layout.HEADER_BYTES:
            mark(first, count)
        self.counters.received_frames += 1
        self.counters.received_bytes += size - self._header_bytes

    def _finish_waiting(self, queue: Virtqueue, done: list[Chain]) -> None:
        """Complete the frame whose end is in our own memory, if the guest has the room; else it waits.

        It is dropped where it is cut off, or all the buffers that the guest can have are too few.
        """
        room = before = count = 0
        for _, _, size in self._posted:
            count += 1
            room += size
            if count == self._offered:
                before = room
            if room >= self._waiting:
                break
        rest = self._waiting - before
        if rest >= len(self._overflow) or (room < self._waiting and count + len(done) >= queue.size):
            self._waiting = 0
            self.counters.received_dropped += 1
        elif room >= self._waiting:
            behind = islice(self._posted, self._offered, count)
            scatter(self._overflow[:rest], [piece for _, pieces, _ in behind for piece in pieces], 0)
            size, self._waiting = self._waiting, 0
            self._fill(size, done)


def mark(pieces: list[memoryview], count: int) -> None:
    """Write into the header, which begins the pieces, over how many buffers the frame extends."""
    if len(pieces[0]) >= layout.HEADER_BYTES:
        layout.BUFFER_COUNT.pack_into(pieces[0], layout.BUFFER_COUNT_OFFSET, count)
    else:
        scatter(layout.BUFFER_COUNT.pack(count), pieces, layout.BUFFER_COUNT_OFFSET)


def gather(pieces: list[memoryview], beginning: int) -> list[memoryview]:
    """The pieces of a frame, with its first ``beginning`` bytes (fewer, if it has no more) in the first."""
    head = bytearray()
    for index, piece in enumerate(pieces):
        wanted = beginning - len(head)
        head += piece[:wanted]
        if len(head) == beginning:
            return [memoryview(head), piece[wanted:], *pieces[index + 1 :]]
    return [memoryview(head)]


def scatter(data: bytes | memoryview, pieces: list[memoryview], offset: int) -> None:
    """Copy ``data`` to ``offset`` of what the pieces are together; they have the room."""
    position = 0
    for piece in pieces:
        if offset >= len(piece):
            offset -= len(piece)
            continue
        part = data[position : position + len(piece) - offset]
        piece[offset : offset + len(part)] = part
        position += len(part)
        offset = 0
