"""The Python that driver partitions run: the interpreter itself, and where our package lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import duovisor

PACKAGE = Path(duovisor.__file__).parent


def interpreter() -> Path:
    """The interpreter itself, without the virtual environment around it."""
    return Path(os.path.realpath(sys.executable))
