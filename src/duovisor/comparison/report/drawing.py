"""Drawings as data: rectangles, lines, dots and text; ``svg`` and ``png`` make pictures of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from duovisor.spec.vm import Design

INK, MUTED, FAINT, PAPER = "#1f2933", "#5b6875", "#d5dbe1", "#ffffff"
# also told apart without colour: one is much lighter
COLOURS = {Design.MONOLITHIC: "#e0963a", Design.MICROKERNELIZED: "#1f5f99"}
PARTS = {
    "VMM": "#8c6bb1",
    "storage driver": "#2a9d8f",
    "network driver": "#e76f51",
    "spare drivers": "#f2c9a1",
    "partition factory": "#7f8c99",
}
OTHER_PART = "#c2b280"
CHARACTER_WIDTH = 0.58  # of a letter's height, for a sans-serif typeface


class Rect(NamedTuple):
    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str = ""
    radius: float = 0.0


class Line(NamedTuple):
    x1: float
    y1: float
    x2: float
    y2: float
    stroke: str
    width: float = 1.0
    dashed: bool = False


class Dot(NamedTuple):
    x: float
    y: float
    radius: float
    fill: str
    stroke: str = ""


class Text(NamedTuple):
    """``anchor``: ``start``, ``middle`` or ``end``; ``y`` is the baseline."""

    x: float
    y: float
    text: str
    size: float = 13.0
    anchor: str = "start"
    fill: str = INK
    bold: bool = False


Shape = Rect | Line | Dot | Text


class Drawing(NamedTuple):
    """``name`` is that of its file, ``description`` for who cannot see it."""

    name: str
    title: str
    description: str
    width: float
    height: float
    shapes: tuple[Shape, ...]


def measure_text(text: str, size: float) -> float:
    """About how wide a text is."""
    return len(text) * size * CHARACTER_WIDTH


def wrap(text: str, size: float, width: float) -> list[str]:
    """The text in lines of at most this width; a word that is wider has a line of its own."""
    lines: list[str] = []
    for word in text.split():
        if lines and measure_text(f"{lines[-1]} {word}", size) <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return lines


def find_ticks(most: float, wanted: int = 4) -> list[float]:
    """Round numbers from zero to beyond ``most``, about so many."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(most / wanted))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power * wanted >= most)
    ticks = math.ceil(most / step - 1e-9)
    return [index * step for index in range(ticks + 1)]
