"""The families of tests, and the rule that none of them may be skipped as a whole unnoticed."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

OUTCOMES = ("passed", "failed", "skipped")


class Families:
    """Counts outcomes per family; a test's family is the folder under ``tests`` that it is in."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Counter[str]] = {}
        self._reasons: dict[str, str] = {}

    def add(self, node_id: str, outcome: str, reason: str = "") -> None:
        """Count one test; ``reason`` says why it was skipped."""
        family = node_id.removeprefix("tests/").partition("/")[0]
        self._outcomes.setdefault(family, Counter())[outcome] += 1
        if reason:
            self._reasons.setdefault(family, reason)

    def list_skipped(self) -> list[str]:
        """The families of which nothing ran."""
        return [
            family
            for family, outcomes in sorted(self._outcomes.items())
            if outcomes["skipped"] == outcomes.total()
        ]

    def build_lines(self) -> list[str]:
        """A table for the end of a run, one line per family."""
        lines = [f"{'family':<10}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES)]
        for family, outcomes in sorted(self._outcomes.items()):
            counts = "".join(f"{outcomes[outcome]:>9}" for outcome in OUTCOMES)
            lines.append(f"{family:<10}{counts}")
        lines += [f"{family}: nothing ran: {self._reasons.get(family, '')}" for family in self.list_skipped()]
        return lines


def is_skipping_a_failure(environ: Mapping[str, str]) -> bool:
    """Whether a family that was skipped as a whole fails the run: in CI, and where it is asked for."""
    return environ.get("CI") == "true" or environ.get("DUOVISOR_REQUIRE_VM") == "1"
