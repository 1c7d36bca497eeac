"""When the next driver may start after one has died; pure, times are seconds of a monotonic clock.

A driver that served for a while, or answered requests, died of something that may not come again: its
successor starts at once. One that dies again and again without getting anywhere meets what killed its
predecessors; each wait doubles, and in the end there is no next one. So it is with one that gets somewhere
each time and dies too often all the same. SIGKILL comes from outside, from a person or for want of memory,
and says less: ten such deaths count as one.
"""

from __future__ import annotations

from collections import deque

FRUITFUL_REQUESTS = 16  # a few may be answered beside the one that kills each successor
FRUITFUL_S = 10.0
DEATHS_MAX = 6
FIRST_WAIT_S = 0.1
WINDOW_S = 10.0
DEATHS_IN_WINDOW_MAX = 100
KILLED_WEIGHT = 0.1


class Backoff:
    """The deaths in a row that led nowhere, and those of the last seconds."""

    def __init__(self, *, deaths_max: int = DEATHS_MAX, first_wait_s: float = FIRST_WAIT_S) -> None:
        self.deaths = 0
        self._weight = 0.0
        self._deaths_max = deaths_max
        self._first_wait_s = first_wait_s
        self._times: deque[float] = deque(maxlen=DEATHS_IN_WINDOW_MAX)

    def died(self, now: float, *, lived_s: float, requests: int, killed: bool = False) -> float | None:
        """How long to wait, in seconds, before there is a next driver; ``None``: give up.

        ``lived_s`` and ``requests``: how long the dead one served, and how many requests it completed;
        ``killed``: by SIGKILL.
        """
        if lived_s >= FRUITFUL_S or requests >= FRUITFUL_REQUESTS:
            self._begin_row()
        self.deaths += 1
        self._weight += KILLED_WEIGHT if killed else 1.0
        self._times.append(now)
        too_many = len(self._times) == DEATHS_IN_WINDOW_MAX and now - self._times[0] < WINDOW_S
        weight = int(self._weight + 1e-6)
        if weight >= self._deaths_max or too_many:
            return None
        return 0.0 if weight < 2 else self._first_wait_s * 2.0 ** (weight - 2)

    def describe(self) -> str:
        """Why there is no next one."""
        if self._weight + 1e-6 >= self._deaths_max:
            return f"its drivers died {self.deaths} times in a row without getting anywhere"
        return f"its drivers died {len(self._times)} times within {WINDOW_S:g} s"

    def forgive(self) -> None:
        """A person wants it tried again."""
        self._begin_row()
        self._times.clear()

    def _begin_row(self) -> None:
        """What comes next begins a new row."""
        self.deaths = 0
        self._weight = 0.0
