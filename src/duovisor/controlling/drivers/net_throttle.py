"""Lets a network card's frames through at a rate: so many bytes a second for the guest, so many from it.

What the guest sends too fast waits in its queue, in flight; what comes too fast waits in the TAP, which drops
what it has no room for. A card without limits has no throttle.
"""

from __future__ import annotations

import time
from collections import deque

from duovisor.controlling.drivers.throttle import Alarm, Bucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.channel.chain import Chain
    from duovisor.channel.event_loop import EventLoop


class NetThrottle:
    """Counts what a card moves; ``wake`` has its device reap, when more may go. ``set_rate`` at any time."""

    def __init__(
        self, loop: EventLoop, wake: Callable[[], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._incoming = self._outgoing = Bucket(0, now())
        self._alarms = Alarm(loop, wake), Alarm(loop, wake)
        self._waiting: deque[Chain] = deque()

    def set_rate(self, incoming: int, outgoing: int) -> None:
        """So many bytes a second for the guest, and from it; 0 is no limit."""
        now_s = self._now()
        self._incoming, self._outgoing = Bucket(incoming, now_s), Bucket(outgoing, now_s)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to limit."""
        return not (self._incoming.rate or self._outgoing.rate or self._waiting)

    # For the guest

    def allow(self) -> int:
        """How many bytes may be read for the guest now."""
        return self._incoming.allow(self._now())

    def count(self, size: int, *, more: bool) -> None:
        """So many bytes were read; the device is woken for ``more`` when that may be."""
        self._incoming.take(size)
        wait_s = self._incoming.wait_s(self._now())
        if more and wait_s:
            self._alarms[0].set(wait_s)

    # From the guest

    def add(self, chains: list[Chain]) -> None:
        """Frames of the guest, behind those that wait."""
        self._waiting.extend(chains)

    def release(self) -> list[Chain]:
        """The frames that may go now; the device is woken when more may."""
        ready: list[Chain] = []
        waiting, bucket, now_s = self._waiting, self._outgoing, self._now()
        while waiting:
            wait_s = bucket.wait_s(now_s)
            if wait_s:
                self._alarms[1].set(wait_s)
                break
            chain = waiting.popleft()
            bucket.take(sum(map(len, chain.readable)))
            ready.append(chain)
        return ready

    def forget(self) -> list[Chain]:
        """The frames that wait, which are the caller's again."""
        left = list(self._waiting)
        self._waiting.clear()
        return left
