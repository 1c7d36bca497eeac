"""Networks killed with -9 anywhere in their lives leave nothing that the next cannot put right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.networks import why_no_namespace

TESTS = Path(__file__).parents[3]


@pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")
def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.networks.killed_networks /tmp/k 1 1``."""
    tmp_path.chmod(0o755)
    command = [sys.executable, "-m", "tests.unit.networks.killed_networks", str(tmp_path), "7", "41"]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["violations"] == []
    assert outcome["killed"] > 4
    assert outcome["kinds"]
