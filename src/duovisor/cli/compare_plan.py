"""What a comparison would do, and how long that may take: ``duovisor compare --plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.plan import SECTIONS, Estimate, find_section
from duovisor.comparison.report.wording import count, format_duration
from duovisor.comparison.samples import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from duovisor.comparison.plan import Scale, Step
    from duovisor.comparison.samples import Record


class PlannedSection(NamedTuple):
    """``rounds``: how often it is measured in each design."""

    section: str
    measures: list[str]
    rounds: int
    steps: int
    seconds: float


class Plan(NamedTuple):
    """``seconds``: an estimate; ``limit_seconds``: the end whatever is left, None without one."""

    sections: list[PlannedSection]
    steps: int
    seconds: float
    limit_seconds: float | None
    is_measured: bool


def build_plan(scale: Scale, steps: Sequence[Step], records: Sequence[Record]) -> Plan:
    """The steps by section; their time from what ``records`` say, or as it usually is; pure."""
    estimate = Estimate()
    for record in records:
        if record.outcome is Outcome.DONE:
            estimate.add(record.measure, record.seconds)
    pace = estimate.find_pace(steps)
    sections = []
    for section in SECTIONS:
        own = [step for step in steps if find_section(step) == section]
        if own:
            measures = list(dict.fromkeys(step.measure for step in own))
            rounds = len({step.round for step in own})
            seconds = estimate.left_s(own, pace)
            sections.append(PlannedSection(section, measures, rounds, len(own), round(seconds, 1)))
    limit_s = None
    if scale.budget_s is not None:
        limit_s = max(0.0, scale.budget_s - sum(record.seconds for record in records))
    total_s = round(estimate.left_s(steps, pace), 1)
    return Plan(sections, len(steps), total_s, limit_s, bool(records))


def show_plan(console: Console, plan: Plan) -> None:
    """Print it as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for title in ("section", "rounds", "steps", "about", "measured"):
        table.add_column(title, justify="right" if title in ("rounds", "steps", "about") else "left")
    for each in plan.sections:
        words = ", ".join(measure.removeprefix(f"{each.section}.") for measure in each.measures)
        row = (str(each.rounds), str(each.steps), format_duration(each.seconds), words)
        table.add_row(each.section, *row)
    console.print(table)
    how = "as its steps took so far" if plan.is_measured else "as on two processors without KVM"
    console.print(f"{count(plan.steps, 'step')}, about {format_duration(plan.seconds)} {how}")
    if plan.limit_seconds is not None:
        end = format_duration(plan.limit_seconds)
        console.print(f"ends within {end}: what does not fit is left out, further rounds first")
