"""A manager that is killed with -9 anywhere in a VM's life leaves nothing that the next cannot put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.killing import run_program

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "tests.unit.vms.killed_manager"


@pytest.mark.parametrize("first", [1, 4])
def test_killed_at_a_step(root: Path, first: int) -> None:
    """All steps, from the first on: ``python -m tests.unit.vms.killed_manager /tmp/k steps 1 1``."""
    outcome = run_program(PROGRAM, root, "steps", str(first), "8")
    assert outcome["violations"] == []
    assert outcome["killed"] > 12
    for kind in ("adopted", "finished", "rolled_back", "removed"):
        assert outcome["kinds"][kind] > 0, kind


def test_killed_at_a_moment(root: Path) -> None:
    outcome = run_program(PROGRAM, root, "moments", "15", "0.25")
    assert outcome["violations"] == []
    assert outcome["killed"] > 3
