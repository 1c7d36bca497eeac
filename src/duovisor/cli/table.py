"""Aligned columns and titled values, without rich: a list of VMs must not wait for its import."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

GAP = "  "
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
STATE_COLOURS = {
    "running": "green",
    "done": "green",
    "paused": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
    "pending": "yellow",
    "started": "yellow",
    "crashed": "red",
    "failed": "red",
    "ended": "red",
    "interrupted": "red",
    "cancelled": "red",
}


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[str] = ()) -> str:
    """Columns under a dim header, as wide as their widest cell; ``right``: aligned to the right."""
    cells = [[click.style(title, dim=True) for title in header], *map(list, rows)]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    to_right = {index for index, title in enumerate(header) if title in set(right)}
    lines = []
    for row in cells:
        parts = [_pad(cell, widths[index], index in to_right) for index, cell in enumerate(row)]
        lines.append(GAP.join(parts).rstrip())
    return "\n".join(lines)


def format_values(values: Mapping[str, str]) -> str:
    """One line for each title and its value; further lines of a value are aligned below it."""
    width = max(map(len, values), default=0) + len(GAP)
    lines = []
    for title, value in values.items():
        first, *rest = value.splitlines() or ["-"]
        lines.append(f"{click.style(f'{title:<{width}}', dim=True)}{first}")
        lines += [" " * width + line for line in rest]
    return "\n".join(lines)


def format_state(state: str) -> str:
    """A state in its colour, which click leaves out where there is no terminal."""
    colour = STATE_COLOURS.get(state)
    return click.style(state, fg=colour) if colour else state


def format_time(text: str | None) -> str:
    """A time of the API, in this place's time."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S") if text else "-"


def format_age(text: str | None, now: datetime | None = None) -> str:
    """How long ago a time of the API is."""
    if not text:
        return "-"
    return format_seconds(((now or datetime.now(UTC)) - datetime.fromisoformat(text)).total_seconds())


def format_seconds(seconds: float) -> str:
    """A duration in the largest unit of which there are two, or in seconds."""
    for unit, length in _UNITS:
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(seconds, 0):.0f} s"


def format_mib(mib: float) -> str:
    """An amount of memory in GiB if it is a whole number of them, else in MiB."""
    return f"{mib / 1024:.0f} GiB" if mib >= 1024 and mib % 1024 == 0 else f"{mib:.0f} MiB"


def _width(cell: str) -> int:
    return len(click.unstyle(cell))


def _pad(cell: str, width: int, to_right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if to_right else cell + space
