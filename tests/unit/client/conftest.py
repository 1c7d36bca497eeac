"""A running service over the fake VM manager, and a client of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.api.running import start_service

from duovisor.client.endpoint import Endpoint
from duovisor.client.service import ServiceClient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import RunningService

    from duovisor.client.connection import Call


@pytest.fixture
def service() -> Iterator[RunningService]:
    with start_service() as running:
        yield running


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def client(service: RunningService, calls: list[Call]) -> Iterator[ServiceClient]:
    made = ServiceClient(Endpoint(service.socket), calls.append)
    yield made
    made.close()
