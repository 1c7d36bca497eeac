"""Manual time."""

from __future__ import annotations

from duovisor.controlling.store.timers import ManualTimers


def test_calls_are_made_in_the_order_in_which_they_fall_due() -> None:
    timers, made = ManualTimers(), []
    timers.call_later(3, lambda: made.append(("three", timers.now_s)))
    timers.call_later(1, lambda: made.append(("one", timers.now_s)))
    timers.call_later(1, lambda: made.append(("one again", timers.now_s)))
    timers.advance(0.5)
    assert made == []
    timers.advance(2.5)
    assert made == [("one", 1), ("one again", 1), ("three", 3)]


def test_a_cancelled_call_is_not_made() -> None:
    timers, made = ManualTimers(), []
    timers.call_later(1, lambda: made.append("cancelled")).cancel()
    timers.call_later(1, lambda: made.append("kept"))
    timers.advance(1)
    assert made == ["kept"]


def test_a_call_may_ask_for_another_within_the_same_advance() -> None:
    timers, made = ManualTimers(), []

    def again() -> None:
        made.append(timers.now_s)
        timers.call_later(1, again)

    timers.call_later(1, again)
    timers.advance(3)
    assert made == [1, 2, 3]
