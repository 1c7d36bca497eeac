"""Fixtures that several families of contract tests share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder with a short path: a Unix socket's may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def folder(run_dir: Path) -> Path:
    """The same, which every user may look into."""
    run_dir.chmod(0o755)
    return run_dir
