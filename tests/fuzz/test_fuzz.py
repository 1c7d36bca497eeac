"""Each target replays its corpus under every Python; where there is atheris, it is fuzzed for a while."""

from __future__ import annotations

import importlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fuzz.engine import CORPORA, MAX_INPUT_BYTES, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = 4
RANDOM_INPUTS = 150
TARGET = pytest.mark.parametrize("name", TARGETS)


def load_target(name: str) -> Callable[[bytes], None]:
    run_one: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.target_{name}").run_one
    return run_one


@TARGET
def test_every_input_that_was_ever_interesting(name: str) -> None:
    run_one = load_target(name)
    inputs = sorted((CORPORA / name).iterdir())
    assert inputs
    for path in inputs:
        run_one(path.read_bytes())


@TARGET
def test_random_inputs(name: str) -> None:
    run_one = load_target(name)
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    for number in range(RANDOM_INPUTS):
        data = chance.randbytes(chance.randrange(MAX_INPUT_BYTES))
        try:
            run_one(data)
        except BaseException as error:
            error.add_note(f"input {number} of seed {seed}: {data.hex()}")
            raise


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="there is no atheris for this Python")
@TARGET
def test_coverage_guided(name: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name(f"fuzz_{name}.py")
    options = (f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", str(tmp_path))
    done = subprocess.run(
        [sys.executable, str(script), *options],
        capture_output=True, text=True, timeout=60 + SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done " in done.stderr
