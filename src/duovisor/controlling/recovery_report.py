"""How a service's start tells what it found and did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def count_found(*found: tuple[str, Sequence[str]]) -> list[str]:
    """``2 VMs adopted`` for each title with any names; pure."""
    return [f"{len(names)} {title}" for title, names in found if names]
