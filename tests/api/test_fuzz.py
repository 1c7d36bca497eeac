"""Every operation of the OpenAPI document under schemathesis, against the running service."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from tests.api.document import DOCUMENT, check_reply
from tests.api.running import start_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.api.running import RunningService

ANSWER_S = 10.0
EXAMPLES = 12  # beside those that schemathesis derives from the document's limits
TARGET = "target"

schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """One that finds no program, so that a build ends soon instead of downloading a kernel."""
    with start_service(environment={"PATH": "/nowhere"}) as running:
        yield running


@pytest.fixture(scope="module")
def folder(service: RunningService) -> Path:
    """Where the service may make folders."""
    return service.folder


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(service.socket))
    with httpx.Client(transport=transport, base_url="http://duovisord", timeout=ANSWER_S) as opened:
        yield opened


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_service(
    case: schemathesis.Case[Any], client: httpx.Client, folder: Path
) -> None:
    """No 5xx, no hang, no reply that is not in the document, and no VM that cannot be read back."""
    if zlib.crc32(str(case.path_parameters).encode()) % 2:
        _aim(case, client)
    if case.path == "/v1/pools" and isinstance(case.body, dict):
        path = case.body.get("path")
        if isinstance(path, str):
            case.body["path"] = path.replace("/", f"{folder}/", 1)  # no folders elsewhere
    request = case.as_transport_kwargs(base_url="http://duovisord")
    response = client.send(client.build_request(**_for_httpx(request)), stream=True)
    with contextlib.closing(response):
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            return  # it would never end
        response.read()
    assert response.status_code < 500, response.text
    check_reply(response)
    if case.method == "POST" and response.status_code == 201 and "record" in response.json():
        made = client.get(response.headers["location"])
        assert made.json() == response.json()


def _aim(case: schemathesis.Case[Any], client: httpx.Client) -> None:
    """At a VM, volume or network that is there; or was there already."""
    if case.path.startswith("/v1/vms/{name}"):
        client.post("/v1/vms", json={"spec": {"name": TARGET}})
        case.path_parameters["name"] = TARGET
    if case.path.startswith("/v1/networks/{name}"):
        client.post("/v1/networks", json={"name": TARGET, "kind": "isolated", "dhcp": False})
        case.path_parameters["name"] = TARGET
    if case.path.startswith("/v1/volumes/{pool}"):
        client.post("/v1/volumes", json={"name": TARGET, "size_bytes": 1 << 20, "format": "raw"})
        case.path_parameters.update(pool="default", name=TARGET)


def _for_httpx(request: dict[str, Any]) -> dict[str, Any]:
    """What requests takes, as httpx takes it."""
    request = {key: value for key, value in request.items() if value is not None}
    if "data" in request:
        request["content"] = request.pop("data")
    headers = request.get("headers")
    if isinstance(headers, Mapping):
        request["headers"] = {name: value.strip() for name, value in headers.items()}
    return request
