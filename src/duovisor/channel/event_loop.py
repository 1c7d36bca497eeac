"""One epoll for everything that a driver's single thread waits for."""

from __future__ import annotations

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class EventLoop:
    """Calls back for each descriptor that is readable or whose peer hung up."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._wake_descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake_descriptor, lambda: None, edge=True)

    def watch(self, descriptor: int, callback: Callable[[], None], *, edge: bool = False) -> None:
        """Call ``callback`` while the descriptor is readable, or with ``edge`` each time it becomes so."""
        events = select.EPOLLIN | select.EPOLLET if edge else select.EPOLLIN
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Forget a descriptor, if it was watched; do it before the descriptor is closed.

        What another process also holds would otherwise go on reporting.
        """
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait once, for ever without ``timeout_s``, and call back."""
        callbacks = self._callbacks
        for descriptor, _ in self._epoll.poll(timeout_s):
            callback = callbacks.get(descriptor)
            if callback is not None:  # an earlier event of this turn may have removed it
                callback()

    def wake(self) -> None:
        """End the wait of ``turn``; may be called from a signal handler, also after ``close``."""
        if self._wake_descriptor >= 0:
            os.eventfd_write(self._wake_descriptor, 1)

    def close(self) -> None:
        """Forget everything; the watched descriptors stay open."""
        self._epoll.close()
        self._callbacks.clear()
        descriptor, self._wake_descriptor = self._wake_descriptor, -1
        os.close(descriptor)
