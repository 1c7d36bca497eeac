"""From a guest's log of read latencies and the moments of the kills to what the guest felt of each; pure."""

from __future__ import annotations

import statistics
from typing import NamedTuple

BEFORE_S = 0.050  # the clocks are compared to within some hundredths of a second
WINDOW_S = 0.200


class Read(NamedTuple):
    """The longest of the reads that ended about ``ended_at``, seconds of the guest's clock."""

    ended_at: float
    seconds: float


class Clock:
    """The guest's clock as a line over ours, through comparisons that each take a moment."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float, float]] = []  # how long it took, ours, the guest's

    def add(self, before: float, after: float, guest: float) -> None:
        """The guest said ``guest`` at some time between ``before`` and ``after``."""
        self._points.append((after - before, (before + after) / 2, guest))

    def to_guest(self, ours: float) -> float:
        """The guest's time at our time ``ours``."""
        (_, first, first_guest), (_, last, last_guest) = self._best()
        if last == first:
            return first_guest + ours - first
        return first_guest + (ours - first) * (last_guest - first_guest) / (last - first)

    def _best(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """The shortest comparison near the begin, and the one near the end."""
        middle = (self._points[0][1] + self._points[-1][1]) / 2
        early = [point for point in self._points if point[1] <= middle]
        late = [point for point in self._points if point[1] >= middle]
        return min(early), min(late)


def parse_latency_log(text: str) -> list[Read]:
    """fio's latency log: ``milliseconds since 1970, nanoseconds, direction, block, offset`` in each line."""
    reads = []
    for line in text.splitlines():
        fields = line.split(",")
        if len(fields) >= 2 and fields[0].strip().isdigit():
            reads.append(Read(int(fields[0]) / 1e3, int(fields[1]) / 1e9))
    return reads


def find_pause(reads: list[Read], moment: float) -> float:
    """The longest read, in seconds, that was under way in the ``WINDOW_S`` after ``moment``.

    Raises ``ValueError`` when there is none: a guest that does not read feels no pause.
    """
    return max(
        read.seconds
        for read in reads
        if read.ended_at >= moment - BEFORE_S and read.ended_at - read.seconds <= moment + WINDOW_S
    )


def find_pauses(reads: list[Read], moments: list[float]) -> list[float]:
    """``find_pause`` for each of the moments, which are in order, in milliseconds."""
    longest = max((read.seconds for read in reads), default=0.0)
    pauses, first = [], 0
    for moment in moments:
        while first < len(reads) and reads[first].ended_at < moment - BEFORE_S:
            first += 1
        last = first
        while last < len(reads) and reads[last].ended_at <= moment + WINDOW_S + longest:
            last += 1
        pauses.append(find_pause(reads[first:last], moment) * 1e3)
    return pauses


def summarize(milliseconds: list[float]) -> dict[str, float]:
    """p50, p99 and the longest."""
    if not milliseconds:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    ordered = sorted(milliseconds)
    return {
        "p50": round(statistics.median(ordered), 1),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 1),
        "max": round(ordered[-1], 1),
    }
