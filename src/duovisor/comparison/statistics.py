"""What samples of the two designs allow to be said; pure, standard library.

The test is the Mann-Whitney U test (H. B. Mann, D. R. Whitney, Annals of Mathematical Statistics 18, 1947):
it asks whether one design's samples tend to be larger, whatever their distribution, outliers included. For
up to ``EXACT_MAX`` samples it is exact, ties too, by counting all ways to deal the ranks; beyond, the normal
approximation with its correction for ties. Many quantities are tested in one comparison, so their p-values
are adjusted (Y. Benjamini, Y. Hochberg, Journal of the Royal Statistical Society B 57, 1995): of the
differences that are claimed, at most 5 % are expected to be none.
"""

from __future__ import annotations

import math
import random
import statistics
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

TEST_NAME = "Mann-Whitney U test"
SIGNIFICANT_P = 0.05
SAMPLES_MIN = 4  # with three of each the smallest possible p is 0.1
EXACT_MAX = 40
RESAMPLES = 1000
CONFIDENCE = 0.95


class Verdict(StrEnum):
    """What can be said of two sets of samples."""

    TOO_FEW = "too few samples"
    NO_DIFFERENCE = "no difference shown"
    DIFFERENT = "different"


class Summary(NamedTuple):
    """Samples in three numbers and how many they are; the quartiles are the spread."""

    n: int
    median: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Two sets of samples against each other; the ratio is second ÷ first.

    ``ratio`` and its interval are None where a median is 0; ``p`` is None with too few samples.
    """

    first: Summary
    second: Summary
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    p: float | None
    adjusted_p: float | None
    verdict: Verdict


def summarize(samples: Sequence[float]) -> Summary:
    """Median and quartiles (inclusive: a median of each half). Raises ``ValueError`` without samples."""
    if not samples:
        raise ValueError("there are no samples")
    if len(samples) == 1:
        return Summary(1, samples[0], samples[0], samples[0])
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(len(samples), statistics.median(samples), low, high)


def compare_all(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Comparison]:
    """Compare each pair of sample sets, with p-values adjusted for their number."""
    compared = [_compare(first, second) for first, second in pairs]
    adjusted = iter(adjust([each.p for each in compared if each.p is not None]))
    done = []
    for each in compared:
        if each.p is not None:
            p = next(adjusted)
            differs = p <= SIGNIFICANT_P and each.first.median != each.second.median
            verdict = Verdict.DIFFERENT if differs else Verdict.NO_DIFFERENCE
            each = each._replace(adjusted_p=p, verdict=verdict)
        done.append(each)
    return done


def _compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    enough = min(len(first), len(second)) >= SAMPLES_MIN
    ratio, low, high = bootstrap_ratio(first, second)
    return Comparison(
        first=summarize(first),
        second=summarize(second),
        ratio=ratio,
        ratio_low=low if enough else None,
        ratio_high=high if enough else None,
        p=mann_whitney(first, second) if enough else None,
        adjusted_p=None,
        verdict=Verdict.TOO_FEW,
    )


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value: how often chance alone deals ranks at least as uneven as these."""
    ranks = _rank_twice([*first, *second])
    observed, count, total = sum(ranks[: len(first)]), len(first), len(ranks)
    if total > EXACT_MAX:
        return _approximate(observed / 2, ranks, count)
    mean = count * (total + 1)
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(count))]
    for rank in ranks:
        for chosen in range(count, 0, -1):
            for value, number in ways[chosen - 1].items():
                ways[chosen][value + rank] = ways[chosen].get(value + rank, 0) + number
    uneven = sum(number for value, number in ways[count].items() if abs(value - mean) >= abs(observed - mean))
    return uneven / math.comb(total, count)


def _rank_twice(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value, 1 being the smallest; equal ones share the mean of theirs."""
    order = sorted(values)
    first = {value: index for index, value in reversed(list(enumerate(order, start=1)))}
    last = {value: index for index, value in enumerate(order, start=1)}
    return [first[value] + last[value] for value in values]


def _approximate(rank_sum: float, twice: Sequence[int], count: int) -> float:
    total, other = len(twice), len(twice) - count
    ties = [twice.count(rank) for rank in set(twice)]
    correction = sum(tie**3 - tie for tie in ties) / (total * (total - 1))
    deviation = math.sqrt(count * other / 12 * (total + 1 - correction))
    if deviation == 0:
        return 1.0
    distance = abs(rank_sum - count * (total + 1) / 2)
    return math.erfc(max(0.0, distance - 0.5) / deviation / math.sqrt(2))


def adjust(p_values: Sequence[float]) -> list[float]:
    """The p-values after Benjamini and Hochberg, in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index], reverse=True)
    adjusted, least = [1.0] * len(p_values), 1.0
    for place, index in enumerate(order):
        least = min(least, p_values[index] * len(p_values) / (len(p_values) - place))
        adjusted[index] = least
    return adjusted


def bootstrap_ratio(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float | None, float | None, float | None]:
    """The ratio of medians, second ÷ first, and its 95 % interval by resampling; None where it has none.

    The same samples give the same interval: the generator has a fixed seed.
    """
    if not first or not second or statistics.median(first) == 0:
        return None, None, None
    chance = random.Random(1)
    ratios = []
    for _ in range(RESAMPLES):
        below = statistics.median(chance.choices(first, k=len(first)))
        if below:
            ratios.append(statistics.median(chance.choices(second, k=len(second))) / below)
    ratios.sort()
    edge = (1 - CONFIDENCE) / 2
    low, high = ratios[int(edge * len(ratios))], ratios[min(len(ratios) - 1, int((1 - edge) * len(ratios)))]
    return statistics.median(second) / statistics.median(first), low, high
