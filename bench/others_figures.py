"""The ratios of ``others.py``, of figures that were taken in turn."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Figures = dict[str, dict[str, list[float]]]


def build_ratios(
    figures: Mapping[str, Mapping[str, list[float]]], pairs: Iterable[tuple[str, str]]
) -> Figures:
    """``{"a ÷ b": {job: [median, least, most]}}`` of neighbouring measurements; pure.

    A job that one of a pair has no figures of is left out. Of times, below 1 is faster.
    """
    ratios: Figures = {}
    for ours, theirs in pairs:
        each = ratios[f"{ours} ÷ {theirs}"] = {}
        for job, by_name in figures.items():
            if by_name[ours] and by_name[theirs]:
                values = [left / right for left, right in zip(by_name[ours], by_name[theirs], strict=True)]
                each[job] = [round(f(values), 2) for f in (statistics.median, min, max)]
    return ratios
