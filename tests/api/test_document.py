"""The committed OpenAPI document is what the code says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.api.document import DOCUMENT, FILE

from duovisor.controlling.service.app import ROUTERS
from duovisor.controlling.service.gate import PUBLIC, Require
from duovisor.controlling.service.openapi import build_document

if TYPE_CHECKING:
    from fastapi.routing import APIRoute, APIWebSocketRoute

ROUTES = [route for module in ROUTERS for route in module.router.routes]


def test_the_committed_document_is_the_current_one() -> None:
    """Write it anew with ``python -m duovisor.controlling.service.openapi > docs/api/openapi.json``."""
    assert FILE.read_text() == build_document()


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.name}")
def test_every_route_names_the_role_it_takes(route: APIRoute | APIWebSocketRoute) -> None:
    requirements = [d.call for d in route.dependant.dependencies if isinstance(d.call, Require)]
    assert len(requirements) == (0 if route.path in PUBLIC else 1)


def test_every_object_in_the_document_is_closed() -> None:
    """A reply with a field that is not in the document would fail the tests that read it."""
    free = {"HostView"}  # its sections are the hardware layer's
    open_ones = [
        name
        for name, schema in DOCUMENT["components"]["schemas"].items()
        if schema.get("type") == "object" and schema.get("additionalProperties", True) is not False
    ]
    assert set(open_ones) - free == {"Anatomy", "ProcessAnatomy"}  # dataclasses of the layer below
