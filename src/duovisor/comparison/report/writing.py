"""Writes the report's files into the comparison's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from duovisor.comparison.errors import ComparisonFolderError
from duovisor.comparison.report.figure import draw_figure
from duovisor.comparison.report.limits import list_limits
from duovisor.comparison.report.page import build_page
from duovisor.comparison.report.plots import build_plots
from duovisor.comparison.report.png import write_png
from duovisor.comparison.report.result import to_document
from duovisor.comparison.report.sentences import state
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.comparison.report.result import Result

PAGE, DOCUMENT, PLOTS = "report.html", "report.json", "plots"


def write_report(result: Result, folder: Path) -> None:
    """Write ``report.html``, ``report.json`` and a PNG for each plot. Raises ``ComparisonFolderError``."""
    statements = {row.quantity.key: state(row) for row in result.rows}
    document = to_document(result, statements, list_limits(result))
    drawings = [drawing for each in build_plots(result).values() for drawing in each]
    drawings += [drawing for design in Design if (drawing := draw_figure(result, design))]
    try:
        _write(folder / DOCUMENT, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        _write(folder / PAGE, build_page(result))
        (folder / PLOTS).mkdir(exist_ok=True)
        for drawing in drawings:
            write_png(drawing, folder / PLOTS / f"{drawing.name}.png")
    except OSError as error:
        raise ComparisonFolderError(f"cannot write the report: {error}") from error


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.replace(path)
