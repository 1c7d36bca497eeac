"""Numbers and names as a person reads them."""

from __future__ import annotations

import re

from duovisor.spec.vm import Design

SHORT = {Design.MONOLITHIC: "monolithic", Design.MICROKERNELIZED: "microkernelized"}


def format_number(value: float) -> str:
    """Three digits that matter: 12,345 · 123 · 12.3 · 0.123."""
    size = abs(value)
    if size >= 100 or value == 0:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def format_value(value: float, unit: str) -> str:
    """A number with its unit; times in the unit that fits."""
    if unit == "µs" and value >= 1000:
        return f"{format_number(value / 1000)} ms"
    if unit == "s" and value < 1:
        return f"{format_number(value * 1000)} ms"
    return f"{format_number(value)}{'' if unit.startswith('/') else ' '}{unit}"


def format_span(low: float, high: float, unit: str, *, bare: bool = False) -> str:
    """Two numbers with their unit, once if it is the same: ``3.1 … 3.4 s``; not at all if it is ``bare``."""
    (first, own), (last, same) = (_split(format_value(each, unit)) for each in (low, high))
    if own != same:
        return f"{first}{own} … {last}{same}"
    return f"{first} … {last}{'' if bare else own}"


def _split(value: str) -> tuple[str, str]:
    """A number and its unit, with what is between them."""
    number = re.match(r"[-0-9.,e]+", value)
    end = number.end() if number else 0
    return value[:end], value[end:]


def format_p(p: float) -> str:
    """A p-value: ``p = 0.032``, or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def format_duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def count(number: int, noun: str, plural: str = "") -> str:
    """``1 sample``, ``2 samples``."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def join(words: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
