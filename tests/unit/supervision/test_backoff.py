"""When the next driver may start, and when there is none."""

from __future__ import annotations

import pytest

from duovisor.controlling.supervision.backoff import DEATHS_IN_WINDOW_MAX, FRUITFUL_REQUESTS, Backoff


def test_waits_double_until_patience_ends() -> None:
    backoff = Backoff()
    waits = [backoff.died(float(n), lived_s=0.1, requests=0) for n in range(6)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, None]
    assert "6 times in a row" in backoff.describe()


@pytest.mark.parametrize(("lived_s", "requests"), [(10.0, 0), (0.01, FRUITFUL_REQUESTS)])
def test_who_got_somewhere_begins_a_new_row(lived_s: float, requests: int) -> None:
    backoff = Backoff()
    for n in range(5):
        backoff.died(float(n), lived_s=0.0, requests=0)
    assert backoff.died(5.0, lived_s=lived_s, requests=requests) == 0.0
    assert backoff.died(6.0, lived_s=0.0, requests=FRUITFUL_REQUESTS - 1) == 0.1


def test_ten_kills_count_as_one_death() -> None:
    backoff = Backoff()
    waits = [backoff.died(float(n), lived_s=0.1, requests=0, killed=True) for n in range(60)]
    assert waits[:19] == [0.0] * 19
    assert waits[19] == 0.1
    assert waits[58] == 0.8
    assert waits[59] is None


def test_dying_all_the_time_is_too_much_even_if_it_gets_somewhere() -> None:
    backoff = Backoff()
    step = 9.0 / DEATHS_IN_WINDOW_MAX
    waits = [backoff.died(n * step, lived_s=step, requests=500) for n in range(DEATHS_IN_WINDOW_MAX)]
    assert waits[:-1] == [0.0] * (DEATHS_IN_WINDOW_MAX - 1)
    assert waits[-1] is None
    assert "within 10 s" in backoff.describe()
    slow = Backoff()
    assert all(slow.died(n * 0.15, lived_s=0.15, requests=500) == 0.0 for n in range(1000))


def test_forgiven() -> None:
    backoff = Backoff(deaths_max=1)
    assert backoff.died(0.0, lived_s=0.0, requests=0) is None
    backoff.forgive()
    assert backoff.deaths == 0
