"""A drawing as SVG, to stand in a page or in a file."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from duovisor.comparison.report.drawing import PAPER, Dot, Line, Rect, Text

if TYPE_CHECKING:
    from duovisor.comparison.report.drawing import Drawing, Shape

FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


def render_svg(drawing: Drawing) -> str:
    """The drawing; it is as wide as the place where it stands."""
    name = f"t-{drawing.name}"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width:g} {drawing.height:g}" '
        f'role="img" aria-labelledby="{name} d-{drawing.name}" font-family="{escape(FONT)}" '
        f'data-plot="{escape(drawing.name)}">',
        f'<title id="{name}">{escape(drawing.title)}</title>',
        f'<desc id="d-{drawing.name}">{escape(drawing.description)}</desc>',
        f'<rect width="{drawing.width:g}" height="{drawing.height:g}" fill="{PAPER}"/>',
        *(_render(shape) for shape in drawing.shapes),
        "</svg>",
    ])  # fmt: skip


def _render(shape: Shape) -> str:
    match shape:
        case Rect():
            stroke = f' stroke="{shape.stroke}"' if shape.stroke else ""
            radius = f' rx="{shape.radius:g}"' if shape.radius else ""
            return (
                f'<rect x="{shape.x:.1f}" y="{shape.y:.1f}" width="{shape.width:.1f}" '
                f'height="{shape.height:.1f}" fill="{shape.fill}"{stroke}{radius}/>'
            )
        case Line():
            dashes = ' stroke-dasharray="4 3"' if shape.dashed else ""
            return (
                f'<line x1="{shape.x1:.1f}" y1="{shape.y1:.1f}" x2="{shape.x2:.1f}" y2="{shape.y2:.1f}" '
                f'stroke="{shape.stroke}" stroke-width="{shape.width:g}"{dashes}/>'
            )
        case Dot():
            stroke = f' stroke="{shape.stroke}"' if shape.stroke else ""
            place = f'cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}"'
            return f'<circle {place} fill="{shape.fill}"{stroke}/>'
        case Text():
            anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
            weight = ' font-weight="600"' if shape.bold else ""
            return (
                f'<text x="{shape.x:.1f}" y="{shape.y:.1f}" font-size="{shape.size:g}" fill="{shape.fill}"'
                f"{anchor}{weight}>{escape(shape.text)}</text>"
            )
