"""Sizes as people write them: ``512``, ``512M``, ``2G``, ``1.5 GiB``."""

from __future__ import annotations

import re
from fractions import Fraction

KIB = 1 << 10
MIB = 1 << 20
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str | int, *, default_unit: str = "") -> int:
    """Read a size in bytes; units are powers of 1024, as in qemu-img and virsh.

    A bare number counts in ``default_unit`` (``""`` bytes, ``"m"`` MiB …).
    Raises ``ValueError`` for anything else, and for a fraction of a byte.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a size; write for example 512M, 2G or 1.5G")
    number, unit = match.groups()
    size = Fraction(number) * (1 << _UNITS[(unit or default_unit).lower()])
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def format_bytes(size: int) -> str:
    """Write a size in bytes with three significant digits and a binary unit: ``1.5 GiB``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if abs(value) >= 999.5 else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
