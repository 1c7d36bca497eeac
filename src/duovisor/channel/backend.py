"""The event loop of a back end: one thread, one connection, one device.

It waits for the connection, the queues' kicks, the device's completions and the order to stop. Kick
descriptors are watched edge-triggered and never read: one system call less per kick, and a descriptor of
any kind is harmless.

Its successors get a snapshot of the session after each message that changed it, before the answer goes out;
``page`` tells them whether the last one is the whole truth.
"""

from __future__ import annotations

import socket
import time
from enum import StrEnum

from duovisor.channel.connection import Connection
from duovisor.channel.device import read_statistics
from duovisor.channel.errors import ChannelError, DeviceError, GuestMemoryError, PeerClosedError, QueueError
from duovisor.channel.event_loop import EventLoop
from duovisor.channel.page import Page
from duovisor.channel.session import Session
from duovisor.channel.succession import Successors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.ring import Ring
    from duovisor.channel.snapshot import Snapshot
    from duovisor.channel.virtqueue import Virtqueue

# A guest that never stops submitting must not keep the loop from its other duties.
ROUNDS_PER_TURN = 16


class Ending(StrEnum):
    """How ``Backend.run`` came to its end."""

    CLOSED = "closed"
    """The front end closed the connection."""
    STOPPED = "stopped"
    """``stop`` was called."""
    HANDED_OVER = "handed-over"
    """A successor goes on."""


def _ignore(_: str) -> None:
    """Report nothing."""


class Backend:
    """Serves one device on one connected vhost-user socket, which it closes at the end.

    ``poll_us`` bounds how long it watches a queue after its last chain, to spare the guest a kick and
    itself a system call; 0 never does. ``report`` is told in one line of each queue that a guest broke and of
    each successor that is dropped. A ``loop`` that was passed in stays open.
    """

    def __init__(
        self,
        connected: socket.socket,
        device: VirtioDevice,
        *,
        poll_us: int = 0,
        report: Callable[[str], None] = _ignore,
        page: Page | None = None,
        loop: EventLoop | None = None,
    ) -> None:
        self.connection = Connection(connected)
        self.session = Session(self.connection, device, self, self._state_changed, report)
        self.device = device
        device.remember = self._remember
        self.inherited = False
        self.messages = 0
        self._page = page or Page.private()
        self._successors = Successors(self._page, self.session.capture, report)
        self._poll_ns = poll_us * 1000
        self._window_ns = self._poll_ns
        self._idle_since_ns = 0
        self._report = report
        self._ready: list[Ring] = []
        self._quiet: list[Ring] = []  # on which the guest does not kick for now
        self._ending: Ending | None = None
        self.owns_loop = loop is None
        self._loop = loop or EventLoop()
        self._watched: set[int] = set()

    @classmethod
    def resume(
        cls,
        snapshot: Snapshot,
        device: VirtioDevice,
        *,
        poll_us: int = 0,
        report: Callable[[str], None] = _ignore,
        page: Page | None = None,
        loop: EventLoop | None = None,
    ) -> Backend:
        """A back end that goes on where the maker of a snapshot was; it touches nothing before ``run``.

        All of the snapshot is mapped at once. It belongs to the back end, or is closed, afterwards. Raises
        ``ChannelError`` when it cannot be or does not fit the device.
        """
        try:
            connected = _take_connection(snapshot)
        except ChannelError:
            snapshot.close()
            raise
        backend = cls(connected, device, poll_us=poll_us, report=report, page=page, loop=loop)
        backend.inherited = True
        try:
            backend.session.restore(snapshot)
        except BaseException:
            snapshot.close()
            backend.close()
            raise
        return backend

    def stop(self) -> None:
        """Let ``run`` return after finishing what is in flight; may be called from a signal handler."""
        self._ending = self._ending or Ending.STOPPED
        self._loop.wake()

    def run(self) -> Ending:
        """Serve until the front end closes the connection, ``stop`` is called or a successor took over.

        Raises ``ChannelError`` when the front end breaks the protocol.
        """
        turn = self._loop.turn
        try:
            self._begin()
            while self._ending is None:
                turn(0 if self._ready else None)
                if self._ending is None:
                    self._work_on_ready_rings()
            if self._ending is Ending.STOPPED:
                self.session.rings.stop_all()
            return self._ending
        except PeerClosedError:
            self._page.busy = False  # nobody waits for an answer
            self.device.abandon()
            return Ending.CLOSED
        except DeviceError:
            self.device.abandon()  # a successor may do better, also on this connection
            raise
        except ChannelError:
            self._page.busy = True  # a successor could not do better on this connection
            self.connection.shut_down()
            self.device.abandon()
            raise
        except BaseException:
            self.device.abandon()
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Release everything but the device; ``run`` does it at its end."""
        self._unwatch_all()
        self._successors.close()
        self.session.close()
        self.connection.close()
        if self.owns_loop:
            self._loop.close()
            self.owns_loop = False

    def watch(self, descriptor: int, callback: Callable[[], None]) -> None:
        """Call back, between two requests, while a descriptor of the caller's is readable."""
        self._watch(descriptor, callback)

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, if it was watched; do it before the descriptor is closed."""
        self._watched.discard(descriptor)
        self._loop.unwatch(descriptor)

    def _unwatch_all(self) -> None:
        for descriptor in tuple(self._watched):
            self.unwatch(descriptor)

    # Succession

    def add_successor(self, name: str, sock: socket.socket) -> bool:
        """Send snapshots to a SOCK_SEQPACKET socket, which is ours from now on, beginning at once.

        A successor of the same name is replaced. False when this one cannot be told.
        """
        return self._successors.add(name, sock)

    def hand_over(self, name: str) -> bool:
        """Finish what is in flight and let a successor go on, with what could not be; ``run`` returns.

        False when that is not possible, for there is none or it does not answer: this back end goes on.
        """
        if self._ending is not None or self.connection.incomplete:
            return False
        if not self._successors.probe(name):
            return False
        self.device.drain()
        if not self._successors.let_go(name):
            self._resubmit()
            return False
        self._ending = Ending.HANDED_OVER
        self._unwatch_all()  # what came meanwhile, also in this turn of the loop, is the successor's
        return True

    def statistics(self) -> dict[str, object]:
        """What it did so far, as plain JSON."""
        return {
            "queues": [
                {
                    "index": ring.queue.index,
                    "size": ring.size,
                    "running": ring.queue.running,
                    "failed": ring.failed,
                    "in_flight": ring.queue.in_flight,
                    "completed": ring.queue.progress,
                    "errors": ring.queue.errors,
                }
                for ring in self.session.rings.all
            ],
            "messages": self.messages,
            "successors": self._successors.names,
            "inherited": self.inherited,
            "device": read_statistics(self.device),
        }

    def _resubmit(self) -> None:
        """Do again what the device could not finish, and forgot, when it was drained."""
        for ring in self.session.rings.all:
            if ring.queue.running and ring.queue.in_flight and not ring.failed:
                self._start(ring, self.session.rings.restart)

    def _remember(self) -> None:
        self.session.save_device_state()
        self._state_changed()

    def _state_changed(self) -> None:
        self._successors.tell()

    # Queues

    def _begin(self) -> None:
        self._watch(self.connection.fileno(), self._serve_messages)
        if self.device.completion_descriptor is not None:
            self._watch(self.device.completion_descriptor, self.reap, edge=True)
        if not self.inherited:  # what others know is about an earlier connection
            self._page.busy = False
            self._state_changed()
            return
        for ring in self.session.begin():
            self._start(ring, self.session.rings.start_restored)

    def _start(self, ring: Ring, start: Callable[[Ring], None]) -> None:
        try:
            start(ring)
        except (QueueError, GuestMemoryError) as error:
            self._fail(ring, error)

    def queue_started(self, ring: Ring) -> None:
        """Called by the session: wait for kicks, and look at once for what came before."""
        if ring.kick_descriptor is not None:
            self._watch(ring.kick_descriptor, lambda: self._make_ready(ring), edge=True)
        self._make_ready(ring)

    def queue_stopping(self, ring: Ring) -> None:
        """Called by the session: forget the kick descriptor, finish what is in flight."""
        if ring.kick_descriptor is not None:
            self.unwatch(ring.kick_descriptor)
        for rings in (self._ready, self._quiet):
            if ring in rings:
                rings.remove(ring)
        if not ring.failed:
            self._handle_resubmitted(ring)
        self.device.drain()
        self.device.stop_queue(ring.queue)

    def _handle_resubmitted(self, ring: Ring) -> None:
        """A queue that stops as soon as it was inherited: what the predecessor left is in flight, too."""
        try:
            chains = ring.queue.pop_resubmitted()
            if chains:
                self.device.handle(ring.queue, chains)
                ring.queue.publish()
        except (QueueError, GuestMemoryError) as error:
            self._fail(ring, error)

    def _watch(self, descriptor: int, callback: Callable[[], None], *, edge: bool = False) -> None:
        self._loop.watch(descriptor, callback, edge=edge)
        self._watched.add(descriptor)

    def _make_ready(self, ring: Ring) -> None:
        if ring not in self._ready and not ring.failed:
            self._ready.append(ring)

    def _serve_messages(self) -> None:
        """Serve one message; until its answer is out, a successor must not go on with the connection."""
        page, connection = self._page, self.connection
        page.busy = True
        message = connection.receive()
        if message is not None:
            self.messages += 1
            self.session.serve_message(message)
        page.busy = connection.incomplete

    def reap(self) -> None:
        """Let the device complete what finished elsewhere, and look at the queues of which nobody tells."""
        if self._ending is not None:  # a successor's, by now
            return
        self.device.reap()
        while self._quiet:
            self._make_ready(self._quiet.pop())

    def _work_on_ready_rings(self) -> None:
        for ring in tuple(self._ready):
            self._ready.remove(ring)
            try:
                if ring.queue.running and self._work_on(ring):
                    self._ready.append(ring)
            except (QueueError, GuestMemoryError) as error:
                self._fail(ring, error)
            except MemoryError:  # the longest chains on the largest queue take 300 MiB
                self._fail(ring, QueueError(f"queue {ring.queue.index} asks for more memory than there is"))
            completed = ring.queue.progress
            if completed != ring.counted:
                self._page.count_completed(completed - ring.counted)
                ring.counted = completed

    def _fail(self, ring: Ring, error: ChannelError) -> None:
        self.session.rings.fail(ring)
        self._state_changed()
        self._report(f"{error.message}; the queue rests until the guest resets the device")

    def _work_on(self, ring: Ring) -> bool:
        """Handle what is available on a queue; True when there is more, but others must have their turn."""
        queue, device = ring.queue, self.device
        queue.disable_notifications()
        if self._poll_ns and time.perf_counter_ns() - self._idle_since_ns < self._poll_ns:
            self._window_ns = self._poll_ns  # the guest came back within the time that we would have waited
        for _ in range(ROUNDS_PER_TURN):
            chains = queue.pop()
            if chains:
                device.handle(queue, chains)
                queue.publish()
            elif not device.needs_kicks(queue.index):
                if ring not in self._quiet:
                    self._quiet.append(ring)
                return False
            elif not self._watch_queue(queue) and not queue.enable_notifications():
                self._idle_since_ns = time.perf_counter_ns() if self._poll_ns else 0
                return False
        return True

    def _watch_queue(self, queue: Virtqueue) -> bool:
        """Look at an idle queue for a moment instead of sleeping; True when a chain came.

        The moment halves each time nothing came, down to nothing, and is whole again when the guest comes
        back in time. Nothing is watched while requests are in flight elsewhere: their threads need the
        interpreter.
        """
        if not self._window_ns or queue.in_flight:
            return False
        now = time.perf_counter_ns
        deadline = now() + self._window_ns
        while now() < deadline:
            if queue.has_available():
                self._window_ns = self._poll_ns
                return True
        self._window_ns //= 2
        return False


def _take_connection(snapshot: Snapshot) -> socket.socket:
    """The front end's socket; raises ``ChannelError`` when it is none."""
    descriptor = snapshot.connection
    if descriptor is None:
        raise ChannelError("the snapshot was used before")
    try:
        connected = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ChannelError(f"the connection in a snapshot is no socket: {error.strerror}") from error
    snapshot.connection = None
    if (connected.family, connected.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        connected.close()
        raise ChannelError("the connection in a snapshot is no Unix stream socket")
    return connected
