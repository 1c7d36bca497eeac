"""The network kill benchmark, short: no stream breaks; how fast they are is not judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench.network_copies import find_sshd
from tests.networks import why_no_namespace

if TYPE_CHECKING:
    from duovisor.directories import Directories

pytestmark = pytest.mark.vm
BENCH = Path(__file__).parents[2] / "bench/kill_network.py"


@pytest.mark.usefixtures("probe_image")
def test_no_stream_breaks(folders: Directories) -> None:
    if reason := why_no_namespace():
        pytest.skip(reason)
    if shutil.which("iperf3") is None:
        pytest.skip("needs iperf3")
    figures = folders.state / "figures.json"
    words = ["--seconds", "2", "--pings", "100", "--mib", "4" if find_sshd() else "0"]
    places = {"DUOVISOR_RUNTIME_DIR": str(folders.runtime)}
    done = subprocess.run(
        [sys.executable, str(BENCH), *words, "--json", str(figures)], env=os.environ | places,
        capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert found["broken"] == 0
    assert found["kills"] >= 6
    assert found["streams"].keys() == {
        "to_guest", "to_guest_4", "from_guest", "from_guest_4", "to_other_guest", "from_other_guest",
    }  # fmt: skip
    assert all(stream["intervals"] and stream["mbit_s"] for stream in found["streams"].values())
    assert all(copy["broken"] == "" for copy in found["copies"].values())
    assert {pings["sent"] for pings in found["pings"].values()} == {100}
