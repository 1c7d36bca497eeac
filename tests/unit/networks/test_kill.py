"""Networks killed with -9 anywhere in their lives leave nothing that the next cannot put right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.networks import why_no_namespace
from tests.unit.killing import run_program

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")
def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.networks.killed_networks /tmp/k 1 1``."""
    tmp_path.chmod(0o755)
    outcome = run_program("tests.unit.networks.killed_networks", tmp_path, "7", "41")
    assert outcome["violations"] == []
    assert outcome["killed"] > 4
    assert outcome["kinds"]
