"""The scripts with which a clone is set up."""

from __future__ import annotations

import subprocess

import pytest
from tests.style.source_tree import ROOT

SCRIPTS = ("demo", "test", "setup/prepare", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_is_sound_and_strict_bash(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("name", ["packages-run.txt", "packages-test.txt"])
def test_each_package_has_a_reason(name: str) -> None:
    lines = (ROOT / "setup" / name).read_text().splitlines()
    packages = [line.split(maxsplit=1) for line in lines if not line.startswith("#")]
    assert packages
    assert all(len(words) == 2 for words in packages)


def test_prepare_refuses_a_call_that_it_does_not_know() -> None:
    done = subprocess.run([str(ROOT / "setup/prepare")], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr == b"usage: setup/prepare run|test\n"
