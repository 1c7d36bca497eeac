"""One port of a console device: a Unix socket on the host's side, two queues on the guest's.

One client at a time is served, the next one waits in the socket's queue. Nothing is kept here: what a client
sends goes from its socket into the guest's buffers, what the guest sends from its memory into the socket.
So a driver that dies takes the client's connection with it, with what its socket held, and no more.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque

from duovisor.channel.errors import QueueError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.virtqueue import Virtqueue

# Nobody may be there to keep the log short; then it ends here until somebody does.
LOG_BYTES_MAX = 64 << 20
_GONE = select.EPOLLHUP | select.EPOLLERR


class Sockets:
    """What all ports of a device wait for, in one epoll; ``changed`` is told when a client came or left."""

    def __init__(self) -> None:
        self.events = select.epoll()
        self.changed: Callable[[Port], None] = lambda _: None
        self._ports: dict[int, Port] = {}

    def watch(self, sock: socket.socket, port: Port) -> None:
        """Call ``port`` when there is something to read."""
        self.events.register(sock, select.EPOLLIN)
        self._ports[sock.fileno()] = port

    def watch_room(self, sock: socket.socket, *, wanted: bool) -> None:
        """Also when there is room to write, or no longer."""
        self.events.modify(sock, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def forget(self, sock: socket.socket) -> None:
        """Before it is closed, or left waiting."""
        self.events.unregister(sock)
        del self._ports[sock.fileno()]

    def poll(self) -> list[tuple[Port, int]]:
        """Whose sockets have what to tell."""
        return [(self._ports[descriptor], events) for descriptor, events in self.events.poll(0)]


class Port:
    """Port ``number``. ``sock`` listens or is connected; without one, what the guest sends is dropped.

    With ``patient``, what a client has no room for waits, and the guest with it; otherwise the client misses
    it. ``log`` is a descriptor to which all that the guest sends is appended.
    """

    def __init__(
        self,
        number: int,
        name: str,
        sock: socket.socket | None,
        sockets: Sockets,
        *,
        patient: bool,
        log: int | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.ready = False  # the guest knows the port
        self.open = False  # somebody in the guest has opened it
        self.client: socket.socket | None = None
        self.printed_bytes = self.missed_bytes = self.typed_bytes = 0
        self._log = log
        self._patient = patient
        self._sockets = sockets
        self._listener: socket.socket | None = None
        self._posted: deque[Chain] = deque()
        self._unsent: deque[Chain] = deque()
        self._sent = 0  # bytes of the first of them that its client has
        self._waits = False  # for the client to read
        self._queues: dict[int, Virtqueue] = {}
        if sock is not None:
            self._attach(sock)

    def _attach(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._listener = sock
        else:
            self.client = sock
        self._sockets.watch(sock, self)

    def close(self) -> None:
        """Let go of log and sockets."""
        for each in (self.client, self._listener):
            if each is not None:
                each.close()
        self.client = self._listener = None
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def handle(self, queue: Virtqueue, chains: list[Chain], *, from_guest: bool) -> None:
        """Take what the guest sends, or its empty buffers. Raises ``QueueError``."""
        self._queues[queue.index] = queue
        if from_guest:
            self._unsent += chains
            self.send()
            return
        for chain in chains:
            if chain.readable:
                raise QueueError("a buffer for what is typed has a part that a device would read")
            self._posted.append(chain)
        self.fill()

    def stop_queue(self, queue: Virtqueue, *, from_guest: bool) -> None:
        """Give back what waits; of a request that was sent in part, the rest is sent when it comes again."""
        waiting = self._unsent if from_guest else self._posted
        queue.give_back(list(waiting))
        waiting.clear()

    def abandon(self) -> None:
        """The front end is gone, and its buffers with it."""
        self._posted.clear()
        self._unsent.clear()
        self._queues.clear()

    def reset(self) -> None:
        """As before a guest knew it."""
        self.ready = self.open = False
        self._sent = 0

    def wake(self, events: int) -> None:
        """Somebody came, sent, read or left."""
        if self.client is None:
            self._accept()
        elif events & _GONE and not (self._posted and self.open):
            self._drop()
        self.send()
        self.fill()
        for queue in self._queues.values():
            if queue.running:
                queue.publish()

    # Clients

    def _accept(self) -> None:
        if self._listener is None or self.client is not None:
            return
        try:
            self.client, _ = self._listener.accept()
        except OSError:
            return  # whoever came has left already
        self.client.setblocking(False)
        self._sockets.forget(self._listener)
        self._sockets.watch(self.client, self)
        self._sockets.changed(self)

    def _drop(self) -> None:
        if self.client is None:
            return
        self._sockets.forget(self.client)
        self.client.close()
        self.client = None
        self._sent, self._waits = 0, False
        if self._listener is not None:
            self._sockets.watch(self._listener, self)
        self._sockets.changed(self)
        self._accept()

    # From the guest

    def send(self) -> None:
        """Pass on what the guest has sent, as far as it goes."""
        while self._unsent:
            chain = self._unsent[0]
            if self._patient and self.client is not None:
                if not self._send_all(chain.readable):
                    self._wait_for_room(wanted=True)
                    return
            else:
                self._print(chain.readable)
            self._sent = 0
            chain.queue.complete(self._unsent.popleft(), 0)
        self._wait_for_room(wanted=False)

    def _send_all(self, pieces: list[memoryview]) -> bool:
        """Whether the client has all of a request now; ``_sent`` bytes of it were sent before."""
        before = self._sent
        for piece in pieces:
            rest = piece[before:]
            before = max(before - len(piece), 0)
            shown = self._show(rest) if len(rest) else 0
            self._sent += shown
            self.printed_bytes += shown
            if shown < len(rest):
                return False
        return True

    def _print(self, pieces: list[memoryview]) -> None:
        """To the log and, as far as it has room, to the client."""
        for piece in pieces:
            self._append(piece)
            self.printed_bytes += len(piece)
            self.missed_bytes += len(piece) - self._show(piece)

    def _append(self, piece: memoryview) -> None:
        try:
            if self._log is not None and os.fstat(self._log).st_size < LOG_BYTES_MAX:
                os.write(self._log, piece)
        except OSError:
            pass  # a full disk

    def _show(self, piece: memoryview) -> int:
        if self.client is None:
            return 0
        try:
            return self.client.send(piece, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:  # no room, or a client that has left, which ``wake`` is told
            return 0

    def _wait_for_room(self, *, wanted: bool) -> None:
        if self.client is not None and self._waits != wanted:
            self._sockets.watch_room(self.client, wanted=wanted)
            self._waits = wanted

    # To the guest

    def fill(self) -> None:
        """Fill empty buffers with what was sent, as long as there are both and somebody reads."""
        while self.open and self._posted and self.client is not None:
            chain = self._posted[0]
            try:
                size = os.readv(self.client.fileno(), chain.writable)
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._drop()
                continue
            self.typed_bytes += size
            chain.queue.complete(self._posted.popleft(), size)
