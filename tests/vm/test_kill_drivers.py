"""The kill benchmark, short: nothing lost, duplicated or corrupt; how long the guest waits is not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from duovisor.directories import Directories

BENCH = Path(__file__).parents[2] / "bench/kill_drivers.py"


@pytest.mark.parametrize("disk_format", ["qcow2"])  # test_driver_recovery does raw
def test_a_few_kills_are_not_noticed(folders: Directories, disk_format: str) -> None:
    figures = folders.state / "figures.json"
    words = ["--kills", "5", "--depth", "32", "--format", disk_format]
    words += ["--noise-seconds", "2", "--json", str(figures)]
    places = {"DUOVISOR_STATE_DIR": str(folders.state), "DUOVISOR_RUNTIME_DIR": str(folders.runtime)}
    done = subprocess.run(
        [sys.executable, str(BENCH), *words], env=os.environ | places, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert (found["kills"], found["lost"], found["duplicated"], found["corrupt"]) == (5, 0, 0, 0)
    assert found["pause_ms"].keys() == {"p50", "p99", "max"}
