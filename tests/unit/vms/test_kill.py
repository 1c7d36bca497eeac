"""A manager that is killed with -9 anywhere in a VM's life leaves nothing that the next cannot put right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

TESTS = Path(__file__).parents[3]


def run_trials(root: Path, *arguments: str) -> dict[str, Any]:
    command: Sequence[str] = [sys.executable, "-m", "tests.unit.vms.killed_manager", str(root), *arguments]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


@pytest.mark.parametrize("first", [1, 4])
def test_killed_at_a_step(root: Path, first: int) -> None:
    """All steps, from the first on: ``python -m tests.unit.vms.killed_manager /tmp/k steps 1 1``."""
    outcome = run_trials(root, "steps", str(first), "8")
    assert outcome["violations"] == []
    assert outcome["killed"] > 12
    for kind in ("adopted", "finished", "rolled_back", "removed"):
        assert outcome["kinds"][kind] > 0, kind


def test_killed_at_a_moment(root: Path) -> None:
    outcome = run_trials(root, "moments", "15", "0.25")
    assert outcome["violations"] == []
    assert outcome["killed"] > 3
