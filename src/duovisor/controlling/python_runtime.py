"""The Python of driver partitions and the thin VMM: the interpreter itself, and where our package lies."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

import duovisor
from duovisor.controlling.errors import PartitionError

PACKAGE = Path(duovisor.__file__).parent


def interpreter() -> Path:
    """The interpreter itself, without the virtual environment around it."""
    return Path(os.path.realpath(sys.executable))


def find_standard_library() -> tuple[Path, ...]:
    """The folders of the interpreter's own modules."""
    folders = (Path(os.path.realpath(sysconfig.get_path(name))) for name in ("stdlib", "platstdlib"))
    return tuple(dict.fromkeys(folders))


def find_package_folders(*names: str) -> list[Path]:
    """Where importable packages or modules lie. Raises ``PartitionError`` for one that is not installed."""
    found = []
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise PartitionError(f"the Python package {name} is missing", remedy=f"pip install {name}")
        origin = Path(spec.origin)
        found.append(origin.parents[1] if spec.submodule_search_locations else origin.parent)
    return list(dict.fromkeys(found))
