"""What a driver says it has counted is not trusted."""

from __future__ import annotations

from typing import Any

import pytest

from duovisor.controlling.supervision.device import COUNTERS_MAX, parse_counters


def test_numbers_are_taken() -> None:
    assert parse_counters({"statistics": {"device": {"sent_frames": 7}}}) == {"sent_frames": 7}


@pytest.mark.parametrize("statistics", [None, 5, [], {}, {"device": None}, {"device": [1]}])
def test_nothing_is_made_of_nonsense(statistics: Any) -> None:
    assert parse_counters({"statistics": statistics}) == {}


def test_what_is_no_count_is_left_out() -> None:
    odd = {"a": "1", "b": True, "c": -1, "d": 1.5, "e": 1 << 63, "f" * 100: 3}
    assert parse_counters({"statistics": {"device": odd}}) == {"f" * 40: 3}
    many = {str(number): number for number in range(1000)}
    assert len(parse_counters({"statistics": {"device": many}})) == COUNTERS_MAX
