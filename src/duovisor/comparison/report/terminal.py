"""The result as a table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.comparison.report.limits import list_limits
from duovisor.comparison.report.quantities import MAIN
from duovisor.comparison.report.sentences import summarize_result, tell_designs
from duovisor.comparison.report.wording import format_value
from duovisor.comparison.statistics import Verdict
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from rich.console import Console

    from duovisor.comparison.report.result import Result, Row

STYLES = {Design.MONOLITHIC: "yellow", Design.MICROKERNELIZED: "cyan"}


def show_result(console: Console, result: Result) -> None:
    """Print the figures, what happened at failures and updates, and the limits."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    for title in ("", "monolithic", "micro-\nkernelized", "ratio", "better"):
        table.add_column(title, justify="left" if title in ("", "better") else "right", vertical="bottom")
    for row in result.rows:
        if row.quantity.family == MAIN:
            table.add_row(*_build_cells(row))
    if table.row_count:
        console.print(table)
    for event in result.events:
        console.print(f"\n[bold]{event.title}[/]", highlight=False)
        for sentence in tell_designs(event):
            console.print(f"  {sentence}", highlight=False)
    console.print()
    for sentence in summarize_result(result):
        console.print(f"· {sentence[:1].upper()}{sentence[1:]}", highlight=False)
    for sentence in list_limits(result):
        console.print(f"· {sentence}", style="dim", highlight=False)
    for record in result.failures:
        console.print(f"failed: {record.key}: {record.reason}", style="red", highlight=False)
    for measure, reason in result.skipped:
        console.print(f"left out: {measure}: {reason}", style="dim", highlight=False)


def _build_cells(row: Row) -> list[str]:
    compared, unit = row.comparison, row.quantity.unit
    ratio = "" if compared.ratio is None else f"{compared.ratio:.2f}"
    medians = [format_value(each.median, unit) for each in (compared.first, compared.second)]
    return [row.quantity.title, *medians, ratio, _tell_verdict(row)]


def _tell_verdict(row: Row) -> str:
    """The better design; nothing where no difference was shown."""
    if row.winner is not None:
        return f"[{STYLES[row.winner]}]{row.winner}[/]"
    if row.comparison.verdict is Verdict.DIFFERENT:
        return "differs"
    return "[dim]too few[/]" if row.comparison.verdict is Verdict.TOO_FEW else "[dim]–[/]"
