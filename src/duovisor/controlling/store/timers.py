"""The clock that leases run by; an event loop is one, and so is ``ManualTimers``."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """A call that was put off."""

    def cancel(self) -> None:
        """Do not call; nothing happens when it was called already."""
        ...


class Timers(Protocol):
    """Whatever can call a function later, ``asyncio.AbstractEventLoop`` above all."""

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        """Call a function after ``delay`` seconds."""
        ...


class _ManualTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualTimers:
    """Timers whose time passes only when ``advance`` says so, for tests and demonstrations."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, _ManualTimer]] = []

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._due, (self.now_s + delay, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Let time pass and make the calls that fall due, in their order."""
        end_s = self.now_s + seconds
        while self._due and self._due[0][0] <= end_s:
            self.now_s, _, timer = heapq.heappop(self._due)
            if timer.callback is not None:
                timer.callback()
        self.now_s = end_s
