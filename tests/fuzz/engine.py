"""Runs a target under atheris: coverage-guided, for as long as libFuzzer's options say.

A target is a module of this folder with ``run_one(data)``, which must return for any bytes. It needs no
atheris itself, so that its corpus is replayed under every Python.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

CORPORA = Path(__file__).parent / "corpus"
TARGETS = ("messages", "memory", "queues", "streams")
# One input takes a millisecond or two; what takes so much longer is a hang.
TIMEOUT_S = 20
MAX_INPUT_BYTES = 2048


def fuzz(name: str) -> None:
    """Fuzz a target with this process's arguments as libFuzzer's; it ends the process.

    The committed corpus is read. New inputs go to the first folder among the arguments, or a temporary one.
    """
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["duovisor.channel", "duovisor.hypervisor.migration"]):
        target = importlib.import_module(f"tests.fuzz.target_{name}")
    options = [f"-timeout={TIMEOUT_S}", f"-max_len={MAX_INPUT_BYTES}", *sys.argv[1:]]
    if all(option.startswith("-") for option in options):
        options.append(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    atheris.Setup([sys.argv[0], *options, str(CORPORA / name)], target.run_one)
    atheris.Fuzz()
