"""The command that does the same comparison again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.plan import SCALES, SECTIONS, find_budget

if TYPE_CHECKING:
    from duovisor.comparison.plan import Scale


def build_command(scale: Scale) -> str:
    """As it is typed."""
    words = ["duovisor compare", f"--{scale.name}"]
    base = SCALES[scale.name]
    if scale.rounds != base.rounds:
        words.append(f"--rounds {scale.rounds}")
    if scale.job_s != base.job_s:
        words.append(f"--seconds {scale.job_s:g}")
    if scale.budget_s is not None and scale.budget_s != find_budget(base, changed=len(words) > 2):
        words.append(f"--minutes {scale.budget_s / 60:g}")
    if scale.sections != SECTIONS:
        words += [f"--only {section}" for section in scale.sections]
    if scale.image != base.image:
        words.append(f"--image {scale.image}")
    return " ".join(words)
