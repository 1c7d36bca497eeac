"""The command answers at once."""

from __future__ import annotations

import subprocess
import sys
import time

HELP_LIMIT_S = 0.150
TRIES = 10


def test_help_answers_within_150_ms() -> None:
    best_s = HELP_LIMIT_S
    for _ in range(TRIES):  # the best of some: what counts is our work, not what else the machine does
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "duovisor", "--help"], capture_output=True, check=True)
        best_s = min(best_s, time.perf_counter() - started)
        if best_s < HELP_LIMIT_S:
            break
    assert b"Usage: duovisor" in done.stdout
    assert best_s < HELP_LIMIT_S
