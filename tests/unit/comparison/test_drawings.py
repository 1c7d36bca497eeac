"""Drawings: axes from zero, nothing beyond the edge, the same in both kinds of picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image
from tests.unit.comparison.synthetic import build_store

from duovisor.comparison.report import png
from duovisor.comparison.report.charts import Bar, Group, draw_bars
from duovisor.comparison.report.drawing import Drawing, Rect, Text, find_ticks, measure_text, wrap
from duovisor.comparison.report.figure import draw_figure
from duovisor.comparison.report.plots import build_plots
from duovisor.comparison.report.png import SCALE, write_png
from duovisor.comparison.report.result import build_result
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("most", [0.0, 0.003, 0.9, 1.0, 7.0, 99.0, 101.0, 4049.0, 8.1e6])
def test_ticks_begin_at_zero_and_reach_beyond(most: float) -> None:
    ticks = find_ticks(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 6
    assert most == 0 or ticks[-1] <= 2.6 * most


def test_a_bar_is_as_long_as_its_value() -> None:
    groups = [Group("g", (Bar(Design.MONOLITHIC, 100.0), Bar(Design.MICROKERNELIZED, 50.0)))]
    drawing = draw_bars("n", "t", "u", groups)
    bars = [shape for shape in drawing.shapes if isinstance(shape, Rect) and shape.height == 16.0]
    assert bars[0].width == pytest.approx(2 * bars[1].width)
    assert bars[0].x == bars[1].x


def list_drawings(tmp_path: Path, factors: dict[str, float]) -> list[Drawing]:
    result = build_result(build_store(tmp_path, factors=factors))
    drawings = [drawing for each in build_plots(result).values() for drawing in each]
    return drawings + [figure for design in Design if (figure := draw_figure(result, design))]


@pytest.mark.parametrize("factor", [0.001, 1.0, 1000.0])
def test_nothing_reaches_beyond_the_edge(tmp_path: Path, factor: float) -> None:
    factors = {"storage.read_4k_qd1.iops": factor, "idle.pss_mib:vmm": factor, "boot.boot_s": factor}
    for drawing in list_drawings(tmp_path, factors):
        for shape in drawing.shapes:
            if isinstance(shape, Rect):
                assert shape.x >= 0, drawing.name
                assert shape.x + shape.width <= drawing.width + 0.01, (drawing.name, shape)
                assert shape.y + shape.height <= drawing.height + 0.01, (drawing.name, shape)
            elif isinstance(shape, Text):
                width = measure_text(shape.text, shape.size)
                left = shape.x - {"start": 0.0, "middle": width / 2, "end": width}[shape.anchor]
                assert left >= -1, (drawing.name, shape)
                assert left + width <= drawing.width + 1, (drawing.name, shape)
                assert 0 < shape.y < drawing.height, (drawing.name, shape)


def test_lines_are_broken_between_words() -> None:
    lines = wrap("image scratch.raw (read-write), guest memory", 12, 150)
    assert " ".join(lines) == "image scratch.raw (read-write), guest memory"
    assert len(lines) > 1
    assert wrap("", 12, 100) == []
    assert wrap("unbreakable" * 9, 12, 100) == ["unbreakable" * 9]


@pytest.mark.parametrize("has_font", [True, False])
def test_a_png_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_font: bool) -> None:
    """Also on a host without fonts."""
    if not has_font:
        monkeypatch.setattr(png, "REGULAR", "no-such-typeface.ttf")
        monkeypatch.setattr(png, "BOLD", "no-such-typeface.ttf")
    for drawing in list_drawings(tmp_path, {})[::6]:
        path = tmp_path / f"{drawing.name}.png"
        write_png(drawing, path)
        with Image.open(path) as image:
            assert image.size == (round(drawing.width * SCALE), round(drawing.height * SCALE))
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None
            assert len(colours) > 10
