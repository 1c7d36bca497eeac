"""A storage killed with -9 anywhere in a volume's life leaves nothing that the next cannot put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.unit.killing import run_program

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.storage.killed_storage /tmp/k 1 1``."""
    outcome = run_program("tests.unit.storage.killed_storage", tmp_path, "7", "23")
    assert outcome["violations"] == []
    assert outcome["killed"] > 6
    assert set(outcome["kinds"]) & {"finished", "rolled_back", "removed"}
