"""A drawing as PNG, through Pillow.

With DejaVu Sans where the host has it; else with the typeface that comes with Pillow, which lacks some signs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from duovisor.comparison.report.drawing import PAPER, Dot, Line, Rect, Text

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.comparison.report.drawing import Drawing, Shape

SCALE = 2
REGULAR, BOLD = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}
_PLAIN = str.maketrans({"×": "x", "–": "-", "→": ">", "µ": "u", "≥": ">", "≤": "<", "÷": "/"})
_DASH, _GAP = 4, 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_png(drawing: Drawing, path: Path) -> None:
    """Write the drawing, two pixels for each of its units. Raises ``OSError``."""
    size = (round(drawing.width * SCALE), round(drawing.height * SCALE))
    image = Image.new("RGB", size, PAPER)
    canvas = ImageDraw.Draw(image)
    for shape in drawing.shapes:
        _draw(canvas, shape)
    image.save(path)


def _draw(canvas: ImageDraw.ImageDraw, shape: Shape) -> None:
    match shape:
        case Rect():
            place = _scale(shape.x, shape.y, shape.x + shape.width, shape.y + shape.height)
            canvas.rounded_rectangle(
                place, shape.radius * SCALE, fill=shape.fill, outline=shape.stroke or None, width=SCALE
            )
        case Line():
            _draw_line(canvas, shape)
        case Dot():
            x, y, radius = shape.x, shape.y, shape.radius
            place = _scale(x - radius, y - radius, x + radius, y + radius)
            canvas.ellipse(place, fill=shape.fill, outline=shape.stroke or None)
        case Text():
            font, text = _find_font(shape)
            place = (shape.x * SCALE, shape.y * SCALE)
            canvas.text(place, text, fill=shape.fill, font=font, anchor=_ANCHORS[shape.anchor])


def _draw_line(canvas: ImageDraw.ImageDraw, line: Line) -> None:
    width = max(1, round(line.width * SCALE))
    if not line.dashed:
        canvas.line(_scale(line.x1, line.y1, line.x2, line.y2), fill=line.stroke, width=width)
        return
    length = ((line.x2 - line.x1) ** 2 + (line.y2 - line.y1) ** 2) ** 0.5
    at = 0.0
    while at < length:
        first, last = at / length, min(at + _DASH, length) / length
        x1, y1 = line.x1 + (line.x2 - line.x1) * first, line.y1 + (line.y2 - line.y1) * first
        x2, y2 = line.x1 + (line.x2 - line.x1) * last, line.y1 + (line.y2 - line.y1) * last
        canvas.line(_scale(x1, y1, x2, y2), fill=line.stroke, width=width)
        at += _DASH + _GAP


def _find_font(text: Text) -> tuple[Font, str]:
    """A typeface, and the text with the signs that it has."""
    size = text.size * SCALE
    try:
        return ImageFont.truetype(BOLD if text.bold else REGULAR, size * 0.93), text.text
    except OSError:
        return ImageFont.load_default(size), text.text.translate(_PLAIN)


def _scale(*numbers: float) -> tuple[float, ...]:
    return tuple(number * SCALE for number in numbers)
