"""virtio-console with one port: what the guest prints goes to a log and to whoever is connected.

Source: virtio 1.2, section 5.3. The log has everything; a viewer that does not read misses what its socket
has no room for, for a guest waits until its output is taken and must never wait for a person. A successor of
a driver that died prints again what was not yet acknowledged.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque

from duovisor.channel.device import VirtioDevice
from duovisor.channel.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

DEVICE_ID = 3
RECEIVE, TRANSMIT = 0, 1
# Nobody may be there to keep the log short; then it ends here until somebody does.
LOG_BYTES_MAX = 64 << 20
_GONE = select.EPOLLHUP | select.EPOLLERR


class ConsoleDevice(VirtioDevice):
    """Appends to ``log``, a descriptor or ``None``; ``viewers`` is a listening socket, or a connected one.

    One viewer at a time is served; the next one waits in the socket's queue.
    """

    device_id = DEVICE_ID
    queues = 2

    def __init__(self, viewers: socket.socket, log: int | None) -> None:
        viewers.setblocking(False)
        self.log = log
        self.printed_bytes = 0
        self.missed_bytes = 0
        self.typed_bytes = 0
        self._events = select.epoll()
        self.completion_descriptor = self._events.fileno()
        self._posted: deque[Chain] = deque()
        self._receive_queue: Virtqueue | None = None
        listens = viewers.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        self._listener = viewers if listens else None
        self._viewer = None if listens else viewers
        self._events.register(viewers, select.EPOLLIN)

    def read_config(self) -> bytes:
        """Columns, rows, ports and the register for emergencies, of which no feature is offered (5.3.4)."""
        return bytes(12)

    def holds_buffers(self, queue: int) -> bool:
        """Empty buffers wait for somebody to type."""
        return queue == RECEIVE

    def statistics(self) -> dict[str, object]:
        """Bytes in each direction, and those that a viewer had no room for."""
        return {"printed": self.printed_bytes, "missed": self.missed_bytes, "typed": self.typed_bytes}

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Print, or keep empty buffers and fill them with what was typed."""
        if queue.index == TRANSMIT:
            for chain in chains:
                self._print(chain.readable)
                queue.complete(chain, 0)
            return
        for chain in chains:
            if chain.readable:
                raise QueueError("a buffer for what is typed has a part that a device would read")
            self._posted.append(chain)
        self._receive_queue = queue
        self._type()

    def reap(self) -> None:
        """Somebody came, typed or left."""
        for descriptor, events in self._events.poll(0):
            if self._listener is not None and descriptor == self._listener.fileno():
                self._accept()
            elif events & _GONE and not self._posted:
                self._drop_viewer()
        queue = self._receive_queue
        if queue is not None:
            self._type()
            queue.publish()

    def stop_queue(self, queue: Virtqueue) -> None:
        """Give the empty buffers back."""
        if queue.index == RECEIVE:
            queue.give_back(list(self._posted))
            self.abandon()

    def abandon(self) -> None:
        """The front end is gone, and its buffers with it."""
        self._posted.clear()
        self._receive_queue = None

    def close(self) -> None:
        """Let go of log and viewers."""
        self._events.close()
        for each in (self._viewer, self._listener):
            if each is not None:
                each.close()
        if self.log is not None:
            os.close(self.log)
            self.log = None

    # From the guest

    def _print(self, pieces: list[memoryview]) -> None:
        """Write to both; what fails on one side is no matter of the other's, and none of the guest's."""
        for piece in pieces:
            self.printed_bytes += len(piece)
            self._append(piece)
            self._show(piece)

    def _append(self, piece: memoryview) -> None:
        try:
            if self.log is not None and os.fstat(self.log).st_size < LOG_BYTES_MAX:
                os.write(self.log, piece)
        except OSError:
            pass  # a full disk

    def _show(self, piece: memoryview) -> None:
        if self._viewer is None:
            return
        try:
            shown = self._viewer.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # no room, or a viewer that has left, which is noticed elsewhere
            shown = 0
        self.missed_bytes += len(piece) - shown

    # To the guest

    def _accept(self) -> None:
        """Take the next viewer, and no other before it has left."""
        if self._listener is None or self._viewer is not None:
            return
        try:
            self._viewer, _ = self._listener.accept()
        except OSError:
            return  # whoever came has left already
        self._viewer.setblocking(False)
        self._events.unregister(self._listener)
        self._events.register(self._viewer, select.EPOLLIN)

    def _drop_viewer(self) -> None:
        if self._viewer is not None:
            self._events.unregister(self._viewer)
            self._viewer.close()
            self._viewer = None
            if self._listener is not None:
                self._events.register(self._listener, select.EPOLLIN)
                self._accept()

    def _type(self) -> None:
        """Fill empty buffers with what was typed, as long as there are both."""
        while self._posted and self._viewer is not None:
            chain = self._posted[0]
            try:
                size = os.readv(self._viewer.fileno(), chain.writable)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._drop_viewer()
                continue
            self.typed_bytes += size
            chain.queue.complete(self._posted.popleft(), size)


class DroppingConsole(VirtioDevice):
    """A stand-in for drivers that kept dying: nobody sees what the guest prints, and it need not wait."""

    device_id = DEVICE_ID
    queues = 2

    def read_config(self) -> bytes:
        """As the device's."""
        return bytes(12)

    def holds_buffers(self, queue: int) -> bool:
        """Nobody types."""
        return queue == RECEIVE

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        """Take what is printed; leave empty buffers to the in-flight log."""
        if queue.index == TRANSMIT:
            for chain in chains:
                queue.complete(chain, 0)
