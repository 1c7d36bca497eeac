"""The statistics, on samples with known answers."""

from __future__ import annotations

import random

import pytest

from duovisor.comparison import statistics
from duovisor.comparison.statistics import (
    Verdict,
    adjust,
    bootstrap_ratio,
    compare_all,
    mann_whitney,
    summarize,
)


def draw(chance: random.Random, mean: float, spread: float, number: int) -> list[float]:
    return [chance.gauss(mean, spread) for _ in range(number)]


def test_fully_separate_samples_have_the_smallest_p_there_is() -> None:
    assert mann_whitney([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == pytest.approx(2 / 252)
    assert mann_whitney([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == pytest.approx(2 / 252)


def test_a_published_example() -> None:
    """U = 17 of 5 and 4 samples; the exact two-sided p-value that tables and SciPy's manual give."""
    assert mann_whitney([19, 22, 16, 29, 24], [20, 11, 17, 12]) == pytest.approx(0.1111111111111111)


def test_equal_samples_are_no_evidence() -> None:
    assert mann_whitney([5.0] * 5, [5.0] * 5) == 1.0
    assert mann_whitney([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == 1.0


def test_ties_share_their_ranks() -> None:
    """Of the 20 ways to deal 1 2 2 | 2 3 3, six are at least as uneven as this one."""
    assert mann_whitney([1, 2, 2], [2, 3, 3]) == pytest.approx(0.3)


def test_many_samples_are_near_the_exact_value(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(3)
    for shift in (0.0, 0.4, 0.9):
        first, second = draw(chance, 10, 1, 20), draw(chance, 10 + shift, 1, 20)
        exact = mann_whitney(first, second)
        with monkeypatch.context() as patch:
            patch.setattr(statistics, "EXACT_MAX", 10)
            assert mann_whitney(first, second) == pytest.approx(exact, abs=0.01)


def test_many_equal_samples_are_no_evidence() -> None:
    assert mann_whitney([1.0] * 30, [1.0] * 30) == 1.0


def test_chance_alone_is_rarely_called_a_difference() -> None:
    chance = random.Random(1)
    p_values = [mann_whitney(draw(chance, 100, 10, 6), draw(chance, 100, 10, 6)) for _ in range(3000)]
    assert sum(p <= 0.05 for p in p_values) / 3000 == pytest.approx(0.0411, abs=0.01)


def test_p_values_after_benjamini_and_hochberg() -> None:
    assert adjust([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert adjust([0.9]) == [0.9]
    assert adjust([]) == []


def test_quartiles() -> None:
    assert summarize([1, 2, 3, 4, 5]) == (5, 3, 2, 4)
    assert summarize([7.0]) == (1, 7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_the_ratio_and_its_interval() -> None:
    ratio, low, high = bootstrap_ratio([9.9, 10, 10.1, 10.2, 9.8], [19.8, 20, 20.2, 20.4, 19.6])
    assert ratio == pytest.approx(2.0)
    assert low is not None
    assert high is not None
    assert 1.9 < low <= 2.0 <= high < 2.1
    assert bootstrap_ratio([0, 0, 0], [1, 2, 3]) == (None, None, None)


def test_verdicts() -> None:
    chance = random.Random(5)
    same, other = draw(chance, 100, 1, 6), draw(chance, 100, 1, 6)
    more = draw(chance, 130, 1, 6)
    noisy, noisier = draw(chance, 100, 60, 6), draw(chance, 110, 60, 6)
    found = compare_all([(same, other), (same, more), (noisy, noisier), (same[:3], more[:3])])
    assert [each.verdict for each in found] == [
        Verdict.NO_DIFFERENCE, Verdict.DIFFERENT, Verdict.NO_DIFFERENCE, Verdict.TOO_FEW,
    ]  # fmt: skip
    assert found[3].p is None
    assert found[1].adjusted_p == pytest.approx(3 * 2 / 924)


def test_one_real_difference_among_many_quantities_is_found_with_six_rounds() -> None:
    chance = random.Random(2)
    pairs = [(draw(chance, 100, 3, 6), draw(chance, 100, 3, 6)) for _ in range(18)]
    pairs.append((draw(chance, 100, 3, 6), draw(chance, 150, 3, 6)))
    assert [each.verdict for each in compare_all(pairs)][-1] is Verdict.DIFFERENT


def test_equal_medians_are_no_difference_whatever_else_differs() -> None:
    first, second = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 5.0, 5.0]
    (found,) = compare_all([(first, second)])
    assert found.verdict is Verdict.NO_DIFFERENCE
