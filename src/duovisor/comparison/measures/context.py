"""What a measure gets to work with, and what it gives back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from duovisor.comparison.plan import Scale
    from duovisor.comparison.rig import Rig
    from duovisor.comparison.sidelined import SidelinedService
    from duovisor.spec.vm import Design


class Figures(NamedTuple):
    """``values`` by name, the unit in the name; ``facts``: what else was seen, as JSON."""

    values: dict[str, float]
    facts: dict[str, Any] | None = None


class Context(NamedTuple):
    """``service`` is the one that may be killed, started when a measure first asks for it."""

    scale: Scale
    rig: Rig
    service: SidelinedService


Measure = Callable[["Context", "Design"], Awaitable[Figures]]
