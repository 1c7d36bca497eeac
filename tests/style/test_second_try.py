"""What ``./test`` makes of tests that fail, on a tree of its own with tests that fail as wanted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.style.source_tree import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = f"""#!/bin/sh
case "$2" in ruff | mypy) exit 0 ;; esac
exec {sys.executable} "$@"
"""
UNSTEADY = """
import pathlib

import pytest

@pytest.mark.parametrize("number", range({number}))
def test_fails_once(number):
    marker = pathlib.Path(f"tried-{{number}}")
    tried = marker.exists()
    marker.touch()
    assert tried

def test_passes():
    with open("passed", "a") as file:
        file.write("once ")
"""
WRONG = "def test_fails():\n    assert False\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A clone in which lint and types are always right."""
    shutil.copy(ROOT / "test", tmp_path)
    for path, text in ((".venv/bin/python", PYTHON), ("setup/prepare", "#!/bin/sh\n")):
        file = tmp_path / path
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    return tmp_path


def run(tree: Path, **variables: str) -> tuple[int, list[str]]:
    """The exit code of ``./test``, and the names that it says are unsteady."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DUOVISOR")}
    environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}  # less to start
    done = subprocess.run(
        [str(tree / "test")], env=environ | variables, capture_output=True, text=True, check=False
    )
    told = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("UNSTEADY")]
    return done.returncode, sorted(told)


def test_what_failed_once_is_named_and_passes(tree: Path) -> None:
    (tree / "test_some.py").write_text(UNSTEADY.format(number=3))
    assert run(tree) == (0, [f"test_some.py::test_fails_once[{number}]" for number in range(3)])
    assert (tree / "passed").read_text() == "once "  # nobody repeats what passed


@pytest.mark.parametrize(
    ("number", "variables"), [(4, {}), (1, {"DUOVISOR_TRIES": "1"})], ids=["too-many", "strict"]
)
def test_there_is_no_second_try(tree: Path, number: int, variables: dict[str, str]) -> None:
    (tree / "test_some.py").write_text(UNSTEADY.format(number=number))
    assert run(tree, **variables) == (1, [])


def test_what_fails_twice_fails(tree: Path) -> None:
    (tree / "test_some.py").write_text(UNSTEADY.format(number=1))
    (tree / "test_wrong.py").write_text(WRONG)
    assert run(tree) == (1, [])


def test_what_cannot_be_collected_fails(tree: Path) -> None:
    (tree / "test_some.py").write_text(UNSTEADY.format(number=1))
    (tree / "test_wrong.py").write_text("import nothing_of_this_name\n")
    assert run(tree) == (1, [])
