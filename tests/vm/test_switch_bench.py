"""The switch benchmark, short: switches in a row under load lose and leave nothing; time is not judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.networks import why_no_namespace

if TYPE_CHECKING:
    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories

pytestmark = pytest.mark.vm

BENCH = Path(__file__).parents[2] / "bench/switch.py"
TIMES = 12


def test_switches_in_a_row_are_not_noticed(folders: Directories, probe_image: Image) -> None:
    figures = folders.state / "figures.json"
    (folders.state / "images").symlink_to(probe_image.folder.parent)
    words = ["--times", str(TIMES), "--memory", "256", "--quiet-seconds", "1", "--json", str(figures)]
    places = {"DUOVISOR_STATE_DIR": str(folders.state), "DUOVISOR_RUNTIME_DIR": str(folders.runtime)}
    done = subprocess.run(
        [sys.executable, str(BENCH), *words], env=os.environ | places, capture_output=True, text=True,
        check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert (found["switches"], found["errors"]) == (2 * TIMES, 0)
    assert found["downtime_ms"].keys() == {"p50", "p99", "max"}
    loaded = found["by_memory"]["256"]["loaded_guest"]
    assert set(loaded["grown"].values()) == {0}
    assert loaded["verified_rounds"] > 0
    if not why_no_namespace():
        assert min(loaded[name] for name in ("pings", "questions", "streamed_bytes")) > 0
