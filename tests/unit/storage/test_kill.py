"""A storage killed with -9 anywhere in a volume's life leaves nothing that the next cannot put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.killing import run_program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("module", "every"), [("killed_storage", "23"), ("killed_thin_pool", "19")])
def test_killed_at_a_step(module: str, every: str, tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.storage.killed_storage /tmp/k 1 1``."""
    outcome = run_program(f"tests.unit.storage.{module}", tmp_path, "7", every)
    assert outcome["violations"] == []
    assert outcome["killed"] > 6
    assert set(outcome["kinds"]) & {"finished", "rolled_back", "removed"}
