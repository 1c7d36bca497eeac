"""The command answers at once."""

from __future__ import annotations

import resource
import subprocess
import sys

HELP_LIMIT_S = 0.150
TRIES = 5


def read_children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_answers_within_150_ms() -> None:
    """By its own processor time: the machine may be busy with something else."""
    best_s = HELP_LIMIT_S
    for _ in range(TRIES):
        before = read_children_s()
        done = subprocess.run([sys.executable, "-m", "duovisor", "--help"], capture_output=True, check=True)
        best_s = min(best_s, read_children_s() - before)
        if best_s < HELP_LIMIT_S:
            break
    assert b"Usage: duovisor" in done.stdout
    assert best_s < HELP_LIMIT_S
