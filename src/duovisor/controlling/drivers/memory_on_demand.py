"""A driver's part in memory that comes on demand: what it holds for that goes when all is there."""

from __future__ import annotations

import os
import socket

from duovisor.channel.errors import GuestMemoryError
from duovisor.channel.on_demand import DONE, OnDemand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.event_loop import EventLoop


class MemoryOnDemand(OnDemand):
    """Lets go of everything when the pager says that it is done; of nothing when the pager just ends."""

    def __init__(self, maker: int, pager: int, loop: EventLoop) -> None:
        super().__init__(maker, pager)
        self._loop = loop
        loop.watch(pager, lambda: self._let_go() if self._hears() else None)

    def register(self, view: memoryview, offset: int) -> None:
        """The same, until all is there; the pager ends soon after it has said so."""
        if not self._hears():
            try:
                super().register(view, offset)
            except GuestMemoryError:
                if not self._hears():
                    raise
        if self.is_done:
            self._let_go()

    def _hears(self) -> bool:
        """Whether all is there, as far as the pager has said by now."""
        if self.held and not self.is_done:
            try:
                self.is_done = self.pager.recv(1, socket.MSG_DONTWAIT) == DONE
                self._loop.unwatch(self.pager.fileno())  # it says nothing else, or has ended
            except BlockingIOError:
                pass
            except OSError:
                self._loop.unwatch(self.pager.fileno())
        return self.is_done

    def _let_go(self) -> None:
        if self.held:
            self._loop.unwatch(self.pager.fileno())
            self.pager.close()
        while self.held:
            os.close(self.held.pop())
