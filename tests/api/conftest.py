"""One service for all tests of a module, and a fresh name for each VM."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
from tests.api.running import start_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import Api, RunningService


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with start_service() as running:
        yield running


@pytest.fixture
def api(service: RunningService) -> Iterator[Api]:
    with service.connect() as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A VM's name that only this test has."""
    return f"vm-{zlib.crc32(request.node.nodeid.encode()):08x}"
