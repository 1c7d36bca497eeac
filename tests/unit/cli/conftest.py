"""The real ``duovisor`` program, with folders of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from duovisor.cli.main import main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Outcome(NamedTuple):
    """What a command came to."""

    exit_code: int
    output: str
    errors: str


class Program:
    """``duovisor`` as a user starts it; ``environment`` is added to this process's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            f"DUOVISOR_{name.upper()}_DIR": str(folder / name) for name in ("state", "runtime", "cache")
        }

    def run(self, *arguments: str | Path, timeout_s: float = 60) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "duovisor", *map(str, arguments)],
            env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def refuse(self, *arguments: str | Path, exit_code: int) -> str:
        """Run a command that must fail with this code, one line of error and at most one of remedy."""
        return check_refusal(self.run(*arguments), exit_code)


def check_refusal(outcome: Outcome, exit_code: int) -> str:
    """What a refused command said on standard error; it must be the designed one or two lines."""
    assert outcome.exit_code == exit_code, outcome
    assert outcome.output == ""
    lines = outcome.errors.splitlines()
    assert lines[0].startswith("error: ")
    assert [line[:7] for line in lines[1:]] in ([], ["  try: "]), outcome.errors
    return outcome.errors


@pytest.fixture
def duovisor() -> Iterator[Program]:
    """No service outlives the test."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        program = Program(Path(name))
        yield program
        if (program.folder / "runtime/duovisord.sock").exists():  # a command of the test has started it
            outcome = program.run("service", "stop")
            assert outcome.exit_code == 0, outcome


@pytest.fixture
def run_here(
    duovisor: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """The program's entry point in this process: ten times faster, for the many wrong command lines."""

    def run(*arguments: str | Path) -> Outcome:
        for name, value in duovisor.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["duovisor", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return Outcome(int(caught.value.code or 0), *capsys.readouterr())

    return run
