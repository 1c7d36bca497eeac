"""Which code a driver runs: a digest of its sources, to be compared with what is on disk."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from duovisor.controlling.python_runtime import PACKAGE

if TYPE_CHECKING:
    from pathlib import Path

_FOLDERS = ("channel", "controlling/drivers")
_DIGITS = 12


def read_code_digest(package: Path = PACKAGE) -> str:
    """12 hexadecimal digits over the sources of channel and drivers, as they are on disk now."""
    digest = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((package / folder).glob("*.py")):
            digest.update(f"{folder}/{path.name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:_DIGITS]
