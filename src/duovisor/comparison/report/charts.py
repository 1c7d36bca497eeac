"""Two kinds of charts, both with horizontal bars and axes from zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.report.drawing import (
    COLOURS,
    FAINT,
    INK,
    MUTED,
    OTHER_PART,
    PAPER,
    PARTS,
    Dot,
    Drawing,
    Line,
    Rect,
    Text,
    find_ticks,
    measure_text,
    wrap,
)
from duovisor.comparison.report.wording import SHORT, format_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.comparison.report.drawing import Shape
    from duovisor.spec.vm import Design

WIDTH = 500.0
LEFT, RIGHT, TOP = 12.0, 98.0, 62.0
PLOT = WIDTH - LEFT - RIGHT
STACK_PLOT = WIDTH - LEFT - 170.0  # the bars carry their design's name
BAR, BAR_GAP, GROUP_GAP, LABEL = 16.0, 4.0, 14.0, 18.0
AXIS = 20.0
LEGEND_ROW = 18.0


class Bar(NamedTuple):
    """One design's figure, the spread about it (None: none known) and the samples behind it."""

    design: Design
    value: float
    low: float | None = None
    high: float | None = None
    samples: tuple[float, ...] = ()
    note: str = ""


class Group(NamedTuple):
    """Bars that are compared with each other."""

    label: str
    bars: tuple[Bar, ...]


class Stack(NamedTuple):
    """One bar that is made of parts, in order."""

    label: str
    design: Design
    parts: tuple[tuple[str, float], ...]


def draw_bars(name: str, title: str, unit: str, groups: Sequence[Group]) -> Drawing:
    """Bars in groups, each figure at the right; whiskers are the spread, dots the samples."""
    reach = [value for group in groups for bar in group.bars
             for value in (bar.value, bar.high or 0.0, *bar.samples)]  # fmt: skip
    ticks = find_ticks(max(reach, default=0.0))
    shapes: list[Shape] = []
    y = TOP
    for group in groups:
        shapes += _draw_label(group.label, y)
        y += LABEL
        for bar in group.bars:
            shapes += _draw_bar(bar, y, ticks[-1])
            y += BAR + BAR_GAP
        y += GROUP_GAP
    designs = list(dict.fromkeys(bar.design for group in groups for bar in group.bars))
    shapes = [*_draw_axis(ticks, TOP, y, unit), *shapes, *_draw_heading(title, unit, designs)]
    return Drawing(name, title, _describe_bars(unit, groups), WIDTH, y + AXIS, tuple(shapes))


def _draw_label(text: str, y: float) -> list[Shape]:
    """What a group is of, on white, so that no line of the grid runs through it."""
    return [Rect(LEFT + 3, y + 1, measure_text(text, 13) + 4, 15, PAPER), Text(LEFT + 5, y + 13, text, 13)]


def _draw_bar(bar: Bar, y: float, most: float) -> list[Shape]:
    middle = y + BAR / 2
    end = LEFT + bar.value / most * PLOT
    shapes: list[Shape] = [Rect(LEFT, y, max(end - LEFT, 1.0), BAR, COLOURS[bar.design])]
    if bar.low is not None and bar.high is not None:
        low, high = (LEFT + edge / most * PLOT for edge in (bar.low, bar.high))
        shapes += [Line(low, middle, high, middle, INK, 1.5)]
        shapes += [Line(edge, middle - 4, edge, middle + 4, INK, 1.5) for edge in (low, high)]
    shapes += [Dot(LEFT + sample / most * PLOT, middle, 2.2, PAPER, INK) for sample in bar.samples]
    text = bar.note or format_number(bar.value)
    shapes.append(Text(WIDTH - 4, middle + 4.5, text, 12, "end"))
    return shapes


def _draw_axis(
    ticks: Sequence[float], top: float, bottom: float, unit: str, length: float = PLOT
) -> list[Shape]:
    shapes: list[Shape] = []
    for tick in ticks:
        x = LEFT + tick / ticks[-1] * length
        shapes.append(Line(x, top - 6, x, bottom - GROUP_GAP / 2, INK if tick == 0 else FAINT))
        label = f"{tick:,.10g}"
        anchor = "start" if tick == 0 else "middle"
        shapes.append(Text(x, bottom + 8, label, 11, anchor, MUTED))
    shapes.append(Text(WIDTH - 4, bottom + 8, unit, 11, "end", MUTED))
    return shapes


def _draw_heading(title: str, unit: str, designs: Sequence[Design]) -> list[Shape]:
    shapes: list[Shape] = [Text(LEFT, 20, f"{title}, {unit}", 15, bold=True)]
    x = LEFT
    for design in designs:
        shapes += [Rect(x, 32, 12, 12, COLOURS[design]), Text(x + 17, 42.5, SHORT[design], 12, fill=MUTED)]
        x += 17 + measure_text(SHORT[design], 12) + 18
    return shapes


def _describe_bars(unit: str, groups: Sequence[Group]) -> str:
    return ". ".join(
        f"{group.label}: "
        + ", ".join(f"{bar.design} {bar.note or f'{format_number(bar.value)} {unit}'}" for bar in group.bars)
        for group in groups
    )


def draw_stacks(name: str, title: str, unit: str, stacks: Sequence[Stack]) -> Drawing:
    """Bars made of parts, with a legend of the parts."""
    parts = list(dict.fromkeys(part for stack in stacks for part, _ in stack.parts))
    fills = {part: PARTS.get(part, OTHER_PART) for part in parts}
    legend = _draw_legend(fills)
    top = TOP + LEGEND_ROW * (len(legend) - 1)
    ticks = find_ticks(max((sum(value for _, value in stack.parts) for stack in stacks), default=0.0))
    shapes: list[Shape] = []
    y, last = top, ""
    for stack in stacks:
        if stack.label != last:
            y += GROUP_GAP if last else 0.0
            shapes += _draw_label(stack.label, y)
            y, last = y + LABEL, stack.label
        x = LEFT
        for part, value in stack.parts:
            width = value / ticks[-1] * STACK_PLOT
            shapes.append(Rect(x, y, width, BAR, fills[part]))
            x += width
        total = format_number(sum(value for _, value in stack.parts))
        shapes.append(Text(x + 7, y + 12.5, f"{SHORT[stack.design]}: {total}", 12))
        y += BAR + BAR_GAP
    y += GROUP_GAP
    axis = _draw_axis(ticks, top, y, unit, STACK_PLOT)
    heading = Text(LEFT, 20, f"{title}, {unit}", 15, bold=True)
    rows = [shape for row in legend for shape in row]
    description = ". ".join(
        f"{stack.label}, {stack.design}: "
        + ", ".join(f"{p} {format_number(v)} {unit}" for p, v in stack.parts)
        for stack in stacks
    )
    return Drawing(name, title, description, WIDTH, y + AXIS, (*axis, *shapes, heading, *rows))


def _draw_legend(fills: dict[str, str]) -> list[list[Shape]]:
    rows: list[list[Shape]] = [[]]
    x = LEFT
    for part, fill in fills.items():
        width = 17 + measure_text(part, 12) + 18
        if rows[-1] and x + width > WIDTH:
            rows.append([])
            x = LEFT
        y = 32 + LEGEND_ROW * (len(rows) - 1)
        rows[-1] += [Rect(x, y, 12, 12, fill), Text(x + 17, y + 10.5, part, 12, fill=MUTED)]
        x += width
    return rows


def draw_paragraph(text: str, x: float, y: float, width: float, size: float, fill: str) -> list[Text]:
    """A text in lines, the first one's baseline at ``y``."""
    return [
        Text(x, y + index * size * 1.3, line, size, fill=fill)
        for index, line in enumerate(wrap(text, size, width))
    ]
