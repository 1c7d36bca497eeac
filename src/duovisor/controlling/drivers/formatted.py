"""virtio-blk on an image of any format: the format process reads and writes it, this driver never forgets.

Requests go through ``format_ring`` to the format process (qemu-storage-daemon). Two things make the death of
either process invisible to the guest: the ring lies in memory that outlives both, and each change is in the
replay log until a flush has made it safe. While there is no format process, requests wait.

Changes of overlapping ranges are never under way together, so that executing them again in the order of the
log gives what the guest was told.
"""

from __future__ import annotations

import os
import time
from collections import deque
from enum import IntEnum

from duovisor.channel.errors import ChannelError
from duovisor.controlling.drivers import block_layout as layout
from duovisor.controlling.drivers.block_protocol import BlockProtocol, say_nothing
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.format_link import PHASE_REPLAYING, PHASE_SERVING, FormatLink
from duovisor.controlling.drivers.format_ring import FormatRing
from duovisor.controlling.drivers.format_work import Command, Request, cut
from duovisor.controlling.drivers.image import copy_pieces
from duovisor.controlling.drivers.options import build_disk
from duovisor.controlling.drivers.replay_log import ZERO_AND_UNMAP, ReplayLog
from duovisor.controlling.drivers.replay_memory import PHASE_WORD, open_replay
from duovisor.controlling.drivers.workers import Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue
    from duovisor.controlling.drivers.options import BlockOptions

# A format process that does not answer may hold up the end of a queue for so long; then the requests stay in
# flight, for whoever starts the queue again.
DRAIN_S = 5.0
# How long the answer to a lone request is looked for at most.
WATCH_NS = 50_000


class State(IntEnum):
    """Where the driver stands with its format process."""

    IDLE = 0
    CONNECTING = 1
    REPLAYING = 2
    SERVING = 3


class FormattedDevice(BlockProtocol):
    """A disk of ``size`` bytes behind a format process; ``memory`` is its replay memory's descriptor.

    Touches neither before the first request comes: a spare holds the same ones as the driver that works.
    """

    def __init__(self, options: BlockOptions, memory: int, connection: int | None) -> None:
        super().__init__(build_disk(options), options.size_bytes)
        self.state = State.IDLE
        self._memory = open_replay(memory)
        self._ring = FormatRing(self._memory)
        self._link = FormatLink(self._memory, self._ring, self.size_bytes, read_only=self.read_only)
        self._log: ReplayLog | None = None  # read when the first request comes: until then it is another's
        self._pending: deque[Command] = deque()
        self._replay: deque[Command] = deque()
        self._active: dict[int, Command] = {}
        self._touched: list[Virtqueue] = []
        self._refused: list[tuple[Command, Request]] = []
        self._flushes_early = False
        self._window_ns = WATCH_NS
        self._watched_ns = 0
        self.completion_descriptor = self._link.descriptor
        if connection is not None:
            self._link.offer(connection)

    # The format process

    def attach(self, name: str, descriptor: int) -> None:
        """A new connection to the format process, which is a new one: what is not safe is made again."""
        if name != "format":
            os.close(descriptor)
            raise DriverError(f"a formatted disk has no use for a descriptor named {name}")
        self._link.offer(descriptor)
        if self._log is not None:
            if self._link.is_connected:
                self._lose("its owner brings another")
            self._begin()
            self._pump()

    def _begin(self) -> None:
        """Use the connection that was offered, if any."""
        try:
            resumed = self._link.begin()
            if resumed:
                self._resume()
            elif self._link.is_connected:
                self.state = State.CONNECTING
        except (ChannelError, DriverError) as error:
            self._lose(error.message)

    def _resume(self) -> None:
        """Go on where a predecessor was, with what it left outstanding."""
        for left in self._ring.recover():
            command = Command(left.kind, left.offset, left.length)
            command.record = left.record if command.changes else -1
            self._active[left.slot] = command
        if self._memory.words[PHASE_WORD] == PHASE_SERVING:
            self.state = State.SERVING
        else:
            self._start_replay()

    def _start_replay(self) -> None:
        assert self._log is not None
        self._replay.clear()
        for record in self._log.read():
            command = Command(record.kind, record.offset, record.length)
            command.record, command.data_at = record.position, record.data_at
            command.repeats = True
            self._replay.append(command)
        self._memory.words[PHASE_WORD] = PHASE_REPLAYING
        self.state = State.REPLAYING
        self._finish_replay()

    def _finish_replay(self) -> None:
        if not self._replay and not any(command.repeats for command in self._active.values()):
            self._memory.words[PHASE_WORD] = PHASE_SERVING
            self.state = State.SERVING

    def _lose(self, reason: str) -> None:
        """There is no format process any more: everything waits for the next one."""
        os.write(2, f"storage driver: the format process is gone: {reason}\n".encode())
        self._link.lose()
        waiting = [command for command in self._active.values() if command.request is not None]
        for command in waiting:
            command.record = -1  # it goes into the log again, behind what is replayed
        self._pending.extendleft(reversed(waiting))
        self._active.clear()
        self._replay.clear()
        self._flushes_early = False
        self.state = State.IDLE

    # Requests of the guest

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Put requests into the ring, or let them wait for a place in it."""
        if self._log is None:
            self._log = ReplayLog(self._memory)
            self._begin()
        super().handle(queue, chains)
        self._pump()
        self._watch_ring()

    def begin_read(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """Put it in the queue of those that wait for the ring; so do the others."""
        if length:
            request = Request(chain, status, written=length + 1)
            self._pending += cut(request, layout.REQUEST_IN, offset, length, buffers)
        else:
            self.finish(chain, status, layout.STATUS_IO_ERROR)

    def begin_write(
        self, chain: Chain, status: memoryview, buffers: list[memoryview], offset: int, length: int
    ) -> None:
        """A guest without a write cache gets a write, then a flush."""
        if length:
            request = Request(chain, status, flushes=self.write_through)
            self._pending += cut(request, layout.REQUEST_OUT, offset, length, buffers)
        else:
            self.finish(chain, status, layout.STATUS_IO_ERROR)

    def begin_flush(self, chain: Chain, status: memoryview) -> None:
        """Nothing is to be flushed of what cannot be written."""
        if self.read_only:
            self.finish(chain, status, layout.STATUS_OK)
        else:
            request = Request(chain, status)
            request.parts = 1
            self._pending.append(Command(layout.REQUEST_FLUSH, request=request))

    def begin_discard(self, chain: Chain, status: memoryview, offset: int, length: int) -> None:
        """As a write without data."""
        request = Request(chain, status, flushes=self.write_through)
        self._pending += cut(request, layout.REQUEST_DISCARD, offset, length)

    def begin_write_zeroes(
        self, chain: Chain, status: memoryview, offset: int, length: int, *, unmap: bool
    ) -> None:
        """As a write without data."""
        kind = ZERO_AND_UNMAP if unmap else layout.REQUEST_WRITE_ZEROES
        request = Request(chain, status, flushes=self.write_through)
        self._pending += cut(request, kind, offset, length)

    # To the format process

    def _pump(self) -> None:
        """Start what can be started, in order."""
        log = self._log
        if log is None or self.state < State.REPLAYING:
            return
        replay, pending = self._replay, self._pending
        while replay and self._start(replay[0], log):
            replay.popleft()
        if self.state is State.SERVING:
            if log.is_tight and not self._flushes_early and self._safe_position(log) > log.first:
                self._flushes_early = self._start(Command(layout.REQUEST_FLUSH), log)
            while pending and self._start(pending[0], log):
                pending.popleft()
        self._ring.publish()

    def _start(self, command: Command, log: ReplayLog) -> bool:
        """Put a command into the ring; False when it has to wait for room, or for one that overlaps it."""
        ring, kind = self._ring, command.kind
        if command.changes and self._must_wait(command):
            return False
        slot = ring.take()
        if slot is None:
            return False
        if kind == layout.REQUEST_FLUSH:
            command.record = self._safe_position(log)
            ring.put(slot, kind, 0, 0)
        elif kind == layout.REQUEST_IN:
            ring.put(slot, kind, command.offset, command.length)
        else:
            if command.record < 0:
                record = log.append(kind, command.offset, command.length, command.buffers)
                if record is None:
                    ring.give_back(slot)
                    return False
                command.record, command.data_at = record.position, record.data_at
            ring.put(slot, kind, command.offset, command.length, command.data_at, command.record)
        self._active[slot] = command
        return True

    def _must_wait(self, command: Command) -> bool:
        """Whether a change has to wait for another one."""
        if self._memory.one_change:
            return any(other.changes for other in self._active.values())
        return command.overlaps(self._active.values())

    def _safe_position(self, log: ReplayLog) -> int:
        """Up to where the log will not be needed when a flush that begins now has ended."""
        unfinished = [command.record for command in self._active.values() if command.changes]
        return min((record for record in unfinished if record >= 0), default=log.next)

    # From the format process

    def _watch_ring(self) -> None:
        """Look for the answer to a lone request for a moment, which spares both sides a sleep.

        The moment halves each time nothing came, and is whole again when an answer came in time elsewhere.
        """
        if len(self._active) != 1 or self.state is not State.SERVING:
            return
        now, ring = time.perf_counter_ns, self._ring
        began = now()
        deadline = began + self._window_ns
        while now() < deadline:
            if ring.has_answers():
                self._window_ns = WATCH_NS
                self.reap()
                return
        self._window_ns //= 2
        self._watched_ns = began

    def reap(self) -> None:
        """Take answers, follow the connection's state, and go on."""
        if self._log is None:
            return
        if not self._window_ns and time.perf_counter_ns() - self._watched_ns < 2 * WATCH_NS:
            self._window_ns = WATCH_NS
        try:
            is_set_up = self._link.advance()
            self._take_answers()
            if is_set_up:
                self._start_replay()
        except (ChannelError, DriverError) as error:
            self._take_last_answers()
            self._lose(error.message)
        self._pump()
        queues, self._touched = self._touched, []
        for queue in queues:
            queue.publish()

    def _take_last_answers(self) -> None:
        try:
            self._take_answers()
        except (ChannelError, DriverError):
            pass  # the ring is broken; what is unanswered is done again

    def _take_answers(self) -> None:
        if self.state < State.REPLAYING:
            return
        ring, active = self._ring, self._active
        for slot, status in ring.reap():
            command = active.pop(slot)
            self._settle(slot, command, status)
            ring.give_back(slot)
        if self.state is State.REPLAYING:
            self._finish_replay()

    def _settle(self, slot: int, command: Command, status: int) -> None:
        """Draw the consequences of an answer."""
        assert self._log is not None
        request, succeeded = command.request, status == layout.STATUS_OK
        if command.kind == layout.REQUEST_FLUSH:
            self._flushes_early = self._flushes_early and request is not None
            if succeeded:
                self._log.drop(command.record)
                if not self._active:
                    self._ring.release_buffers()
        elif command.kind == layout.REQUEST_IN:
            if succeeded and request is not None:
                copy_pieces(command.buffers, self._ring.read_buffer(slot, command.length), into=False)
        elif not succeeded and command.repeats:
            raise DriverError("an acknowledged write cannot be made again")
        elif not succeeded:
            self._log.void(command.record)
            if request is not None and self.on_full is not say_nothing:
                self._refuse(command, request)
                return
        if request is not None:
            self._finish_part(request, status)

    # A change that the format process refused: QEMU does not say whether it was for want of room

    def _refuse(self, command: Command, request: Request) -> None:
        """Ask the owner, who can see how much room there is; it answers with ``retry`` or ``report``."""
        command.record = -1
        self._refused.append((command, request))
        self.parked = [Job(request.chain, request.status, 1, self.retry, ()) for _, request in self._refused]
        if len(self._refused) == 1:
            self.on_full()

    def retry(self) -> None:
        """Do them again: there is room, or may be."""
        refused = self._take_refused()
        self._pending.extendleft(command for command, _ in reversed(refused))
        self._pump()

    def report(self) -> None:
        """Tell the guest of errors: it was not for want of room."""
        for _, request in self._take_refused():
            self._finish_part(request, layout.STATUS_IO_ERROR)
        queues, self._touched = self._touched, []
        for queue in queues:
            queue.publish()

    def _take_refused(self) -> list[tuple[Command, Request]]:
        refused, self._refused, self.parked = self._refused, [], []
        return refused

    def _finish_part(self, request: Request, status: int) -> None:
        request.code = request.code or status
        request.parts -= 1
        if request.parts:
            return
        if request.flushes and not request.code:
            request.flushes, request.parts = False, 1
            self._pending.appendleft(Command(layout.REQUEST_FLUSH, request=request))
            return
        code = min(request.code, layout.STATUS_UNSUPPORTED)
        request.status[0] = code
        queue = request.chain.queue
        queue.complete(request.chain, 1 if code else request.written)
        if queue not in self._touched:
            self._touched.append(queue)

    # The end

    def drain(self) -> None:
        """Finish what is in flight, unless the format process does not answer; then forget it."""
        deadline = time.monotonic() + DRAIN_S
        while (self._pending or self._has_requests()) and self._link.is_connected:
            if not self._link.wait(deadline - time.monotonic()):
                break
            self.reap()
        self.abandon()

    def _has_requests(self) -> bool:
        return any(command.request is not None for command in self._active.values())

    def abandon(self) -> None:
        """Forget the guest's requests; what the format process still does touches no memory of the guest."""
        self._pending.clear()
        self._take_refused()
        for command in self._active.values():
            command.request = None

    def close(self) -> None:
        """Let go of everything; the format process and a successor go on with the ring."""
        self._link.close()
        self._ring.close()
        self._memory.close()


def create_formatted_device(options: BlockOptions, descriptors: dict[str, int]) -> FormattedDevice:
    """The device for ``replay`` and, unless the format process is being started, ``format``.

    Takes the descriptors over. Raises ``DriverError``.
    """
    if "replay" not in descriptors:
        raise DriverError("the descriptor replay is missing")
    size = options.size_bytes
    if not size or size % layout.SECTOR_BYTES:
        raise DriverError(f"option --size is {size}, not a positive multiple of {layout.SECTOR_BYTES}")
    return FormattedDevice(options, descriptors["replay"], descriptors.get("format"))
