"""Killed with -9 anywhere while a VM on clones is made: afterwards the VM is there, or no volume of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.unit.killing import run_program

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.controlling.killed_cloner /tmp/k 1 1``."""
    outcome = run_program("tests.unit.controlling.killed_cloner", tmp_path, "5", "31")
    assert outcome["violations"] == []
    assert outcome["killed"] > 3
