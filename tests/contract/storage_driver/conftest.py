"""Fixtures of the storage driver's contract: an image, and drivers that must end well."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from tests.contract.storage_driver.driver_process import DriverProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE_BYTES = 4 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 4 MiB with random content."""
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(IMAGE_BYTES))
    return path


@pytest.fixture
def start_driver(image: Path) -> Iterator[Callable[..., DriverProcess]]:
    """Start drivers on the image; those that the test did not end must end in order, without a word."""
    started: list[DriverProcess] = []

    def start(*options: str, **settings: int) -> DriverProcess:
        started.append(DriverProcess(image, options, **settings))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.returncode is None:
            assert driver.finish() == (0, "")
