"""Killed with -9 anywhere while a VM on clones is made: afterwards the VM is there, or no volume of it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.style.source_tree import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_killed_at_a_step(tmp_path: Path) -> None:
    """All steps: ``python -m tests.unit.controlling.killed_cloner /tmp/k 1 1``."""
    command = [sys.executable, "-m", "tests.unit.controlling.killed_cloner", str(tmp_path), "5", "31"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["violations"] == []
    assert outcome["killed"] > 3
