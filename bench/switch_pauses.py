"""From the questions that a guest was asked to what a switch cost it; pure.

A guest's own clock does not see that it stood still: QEMU stops the guest's clocks with its processors. So a
pause is how long a question stood open, by the host's clock; and how far the guest's clock has fallen behind
tells, independently, how long its processors were stopped.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from typing import NamedTuple

NS, DAY_MS = 10**6, 24 * 3600 * 1000  # of a millisecond; the guest's answers count from midnight
AFTER_NS = 100 * NS
COMPARED_NS = 300 * NS


class Question(NamedTuple):
    """Sent and answered at ``ns`` since 1970, and the guest's clock then, in ms since midnight; or lost."""

    sent_ns: int
    answered_ns: int | None = None
    guest_ms: int = 0


class Window(NamedTuple):
    """When a switch began to touch the guest, and when it had let it go on, in ns since 1970."""

    start_ns: int
    end_ns: int


def parse_questions(text: str) -> list[Question]:
    """The lines that ``switch_questions.py`` writes, in the order of asking."""
    return [Question(*map(int, line.split())) for line in text.splitlines()]


def count_lost(questions: list[Question]) -> int:
    """The questions that were never answered."""
    return sum(question.answered_ns is None for question in questions)


def find_waits(questions: list[Question], windows: list[Window]) -> list[float]:
    """For each window, the longest time a question stood open then or just after, in ms."""
    sent = [question.sent_ns for question in questions]
    return [_find_wait(_select(questions, sent, *window), window) for window in windows]


def _find_wait(questions: list[Question], window: Window) -> float:
    longest = max(
        (
            answered - sent
            for sent, answered, _ in questions
            if answered is not None and answered >= window.start_ns
        ),
        default=0,
    )
    return longest / NS


def find_lags(questions: list[Question], windows: list[Window]) -> list[float]:
    """How far the guest's clock fell behind the host's in each window where that can be told, in ms."""
    sent = [question.sent_ns for question in questions]
    found = []
    for start, end in windows:
        before = _compare(
            questions[bisect_left(sent, start - AFTER_NS - COMPARED_NS) : bisect_left(sent, start)]
        )
        after = _compare(_select(questions, sent, end + AFTER_NS, end + COMPARED_NS))
        if before is not None and after is not None:
            found.append((before - after + DAY_MS / 2) % DAY_MS - DAY_MS / 2)
    return found


def _select(questions: list[Question], sent: list[int], start_ns: int, end_ns: int) -> list[Question]:
    """The questions that were sent in this time, or open at its start."""
    return questions[bisect_left(sent, start_ns - AFTER_NS) : bisect_left(sent, end_ns + AFTER_NS)]


def _compare(questions: list[Question]) -> float | None:
    """The guest's clock minus ours, in ms, from the quick half of the answers."""
    looks = sorted(
        (answered - sent, (guest - (sent + answered) / 2 / NS) % DAY_MS)
        for sent, answered, guest in questions
        if answered is not None
    )
    quick = [difference for _, difference in looks[: len(looks) // 2]]
    if not quick:
        return None
    middle = statistics.median(quick)  # of a circle that begins at midnight: no mean before it is cut there
    return middle + statistics.fmean((each - middle + DAY_MS / 2) % DAY_MS - DAY_MS / 2 for each in quick)
