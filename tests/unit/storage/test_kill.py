"""A storage killed with -9 anywhere in a volume's life leaves nothing that the next cannot put right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[3]


def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.storage.killed_storage /tmp/k 1 1``."""
    command = [sys.executable, "-m", "tests.unit.storage.killed_storage", str(tmp_path), "7", "23"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["violations"] == []
    assert outcome["killed"] > 6
    assert set(outcome["kinds"]) & {"finished", "rolled_back", "removed"}
