"""Every operation of the OpenAPI document under schemathesis, against the running service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from tests.api.document import DOCUMENT, check_reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import RunningService

ANSWER_S = 10.0
EXAMPLES = 25

# a host check runs programs, a stream never ends, a build would download a kernel
APART = "^/v1/(host|events/stream|images)"
schema = schemathesis.openapi.from_dict(DOCUMENT).exclude(path_regex=APART)


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
def test_no_request_breaks_the_service(case: schemathesis.Case[Any], client: httpx.Client) -> None:
    """No 5xx, no hang, no reply that is not in the document, and no VM that cannot be read back."""
    request = case.as_transport_kwargs(base_url="http://duovisord")
    response = client.send(client.build_request(**_for_httpx(request)))
    assert response.status_code < 500, response.text
    check_reply(response)
    if case.method == "POST" and response.status_code == 201 and "record" in response.json():
        made = client.get(response.headers["location"])
        assert made.json() == response.json()


def _for_httpx(request: dict[str, Any]) -> dict[str, Any]:
    """What requests takes, as httpx takes it."""
    request = {key: value for key, value in request.items() if value is not None}
    if "data" in request:
        request["content"] = request.pop("data")
    headers = request.get("headers")
    if isinstance(headers, Mapping):
        request["headers"] = {name: value.strip() for name, value in headers.items()}
    return request
