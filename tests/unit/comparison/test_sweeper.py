"""What a comparison made is gone, however it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from duovisor.comparison.sweeper import find_mounts, find_processes, sweeping

WAIT_S = 30.0
OWNER = """
import subprocess, sys, time
from pathlib import Path
from duovisor.comparison.sweeper import sweeping
folder = Path(sys.argv[1])
with sweeping(folder):
    subprocess.Popen(["sleep", "600"], stdout=(folder / "log").open("w"), start_new_session=True)
    print("ready", flush=True)
    time.sleep(600)
"""


def wait_gone(folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while folder.exists() or find_processes(folder):
        assert time.monotonic() < deadline, f"{folder} or a process in it is left"
        time.sleep(0.02)


def test_all_is_gone_after_kill_9(tmp_path: Path) -> None:
    folder = tmp_path / "swept"
    folder.mkdir()
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"ready\n"
        assert len(find_processes(folder)) >= 1
        os.kill(owner.pid, signal.SIGKILL)
    wait_gone(folder)


def test_all_is_gone_after_an_end_in_order(tmp_path: Path) -> None:
    folder, other = tmp_path / "swept", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "log").touch()
    bystander = subprocess.Popen(["tail", "-f", str(other / "log")], stderr=subprocess.DEVNULL)
    try:
        with sweeping(folder):
            (folder / "log").touch()
            child = subprocess.Popen(["tail", "-f", str(folder / "log")], stderr=subprocess.DEVNULL)
        assert not folder.exists()
        child.wait(WAIT_S)
        assert bystander.poll() is None
        assert other.exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_mounts_in_the_folder(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "tmpfs /tmp/a/memory tmpfs rw 0 0\nproc /proc proc rw 0 0\ntmpfs /tmp/ab/x tmpfs rw 0 0\n"
    )
    assert find_mounts(Path("/tmp/a"), mounts) == ["/tmp/a/memory"]
