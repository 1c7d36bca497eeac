"""The event loop of a back end: one thread, one connection, one device.

It waits for the connection, the queues' kicks, the device's completions and the order to stop. Kick
descriptors are watched edge-triggered and never read: one system call less per kick, and a descriptor of
any kind is harmless.
"""

from __future__ import annotations

import os
import select
import time

from duovisor.channel.connection import Connection
from duovisor.channel.errors import GuestMemoryError, PeerClosedError, QueueError
from duovisor.channel.session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.rings import Ring
    from duovisor.channel.virtqueue import Virtqueue

# A guest that never stops submitting must not keep the loop from its other duties.
ROUNDS_PER_TURN = 16


def _ignore(_: str) -> None:
    """Report nothing."""


class Backend:
    """Serves one device on one connected vhost-user socket, which it closes at the end.

    ``poll_us`` bounds how long it watches a queue after its last chain, to spare the guest a kick and
    itself a system call; 0 never does. ``report`` is told in one line of each queue that a guest broke.
    """

    def __init__(
        self,
        connected: socket.socket,
        device: VirtioDevice,
        *,
        poll_us: int = 0,
        report: Callable[[str], None] = _ignore,
    ) -> None:
        self.connection = Connection(connected)
        self.session = Session(self.connection, device, self)
        self.device = device
        self._poll_ns = poll_us * 1000
        self._window_ns = self._poll_ns
        self._idle_since_ns = 0
        self._report = report
        self._ready: list[Ring] = []
        self._ends = False
        self._epoll = select.epoll()
        self._wake_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._watch(self.connection.fileno(), self._serve_messages, select.EPOLLIN)
        self._watch(self._wake_descriptor, lambda: None, select.EPOLLIN)
        if device.completion_descriptor is not None:
            self._watch(device.completion_descriptor, self._reap, select.EPOLLIN | select.EPOLLET)

    def stop(self) -> None:
        """Let ``run`` return after finishing what is in flight; may be called from a signal handler."""
        self._ends = True
        os.eventfd_write(self._wake_descriptor, 1)

    def run(self) -> None:
        """Serve until the front end closes the connection or ``stop`` is called.

        Raises ``ChannelError`` when the front end breaks the protocol.
        """
        callbacks, poll = self._callbacks, self._epoll.poll
        try:
            while not self._ends:
                for descriptor, _ in poll(0 if self._ready else -1):
                    callback = callbacks.get(descriptor)
                    if callback is not None:  # an earlier event of this round may have removed it
                        callback()
                self._work_on_ready_rings()
            self.session.rings.stop_all()
        except PeerClosedError:
            self.device.abandon()
        except BaseException:
            self.device.abandon()
            raise
        finally:
            self._close()

    def queue_started(self, ring: Ring) -> None:
        """Called by the session: wait for kicks, and look at once for what came before."""
        if ring.kick_descriptor is not None:
            self._watch(ring.kick_descriptor, lambda: self._make_ready(ring), select.EPOLLIN | select.EPOLLET)
        self._make_ready(ring)

    def queue_stopping(self, ring: Ring) -> None:
        """Called by the session: forget the kick descriptor, finish what is in flight."""
        descriptor = ring.kick_descriptor
        if descriptor is not None and self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
        if ring in self._ready:
            self._ready.remove(ring)
        self.device.drain()

    def _watch(self, descriptor: int, callback: Callable[[], None], events: int) -> None:
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, events)

    def _make_ready(self, ring: Ring) -> None:
        if ring not in self._ready and not ring.failed:
            self._ready.append(ring)

    def _serve_messages(self) -> None:
        message = self.connection.receive()
        if message is not None:
            self.session.serve_message(message)

    def _reap(self) -> None:
        self.device.reap()

    def _work_on_ready_rings(self) -> None:
        for ring in tuple(self._ready):
            self._ready.remove(ring)
            try:
                if ring.queue.running and self._work_on(ring):
                    self._ready.append(ring)
            except (QueueError, GuestMemoryError) as error:
                self.session.rings.fail(ring)
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

    def _close(self) -> None:
        self._epoll.close()
        self.session.close()
        self.connection.close()
        os.close(self._wake_descriptor)
