"""What a comparison does with its time: what no longer fits is left out, the least important first.

A *block* is what is measured together in a round: its figures, or what is tried rarely (updates and faults).
Once everything, then as many rounds of figures as a test needs, then further tries, then further rounds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from duovisor.comparison.plan import is_rare
from duovisor.comparison.statistics import SAMPLES_MIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duovisor.comparison.plan import Estimate, Step

REASON = "the time was up"
MARGIN = 1.05  # of an estimate, so that what comes last need not be broken off


class Block(NamedTuple):
    """Steps that are done or left out together."""

    round: int
    is_rare: bool

    @property
    def rank(self) -> int:
        """0 is done first of all, whatever its place in the plan."""
        if self.round == 1:
            return 0
        if self.is_rare:
            return 2
        return 1 if self.round <= SAMPLES_MIN else 3


class Budget:
    """The time that is left of ``budget_s`` (None: without end), ``spent_s`` of which are gone."""

    def __init__(
        self, budget_s: float | None, spent_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._ends_at = None if budget_s is None else clock() + budget_s - spent_s
        self._begun: set[Block] = set()
        self._cut: set[Block] = set()

    def left_s(self) -> float | None:
        """Seconds, at least 0; None without end."""
        return None if self._ends_at is None else max(0.0, self._ends_at - self._clock())

    def allows(self, step: Step, left: Sequence[Step], estimate: Estimate) -> bool:
        """Whether there is time for a step, ``left`` being it and all behind it that are not done.

        Decided once for each block, when its first step comes; afterwards only the end of all time cuts it.
        """
        left_s, block = self.left_s(), find_block(step)
        if left_s is None:
            return True
        if left_s <= 0 or block in self._cut:
            return False
        if block not in self._begun and block.rank > 0:
            wanted = [each for each in left if self._comes_before(find_block(each), block)]
            if MARGIN * estimate.left_s(wanted) > left_s:
                self._cut.add(block)
                return False
        self._begun.add(block)
        return True

    def _comes_before(self, other: Block, block: Block) -> bool:
        """Whether another block's time is spoken for before this one's; its own is, too."""
        return other == block or (other.rank < block.rank and other not in self._cut)


def find_block(step: Step) -> Block:
    """The block that a step belongs to."""
    return Block(step.round, is_rare(step))
