"""Holds every reply against the committed OpenAPI document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs/api/openapi.json"
DOCUMENT: dict[str, Any] = json.loads(FILE.read_text())

_TEMPLATES = {
    re.compile(re.sub(r"\{\w+\}", "[^/]+", template)): template
    # a path without parameters goes first: /v1/host/check is no /v1/host/{name}
    for template in sorted(DOCUMENT["paths"], key=lambda path: path.count("{"))
}


def find_template(path: str) -> str | None:
    """The path of the document that a request's path is one of."""
    return next((template for pattern, template in _TEMPLATES.items() if pattern.fullmatch(path)), None)


def find_response(template: str, method: str, status: int) -> dict[str, Any]:
    """What the document says of a reply; an assertion fails when it says nothing."""
    responses = DOCUMENT["paths"][template][method.lower()]["responses"]
    for key in (str(status), f"{status // 100}XX"):
        if key in responses:
            found = responses[key]
            assert isinstance(found, dict)
            return found
    raise AssertionError(f"{method} {template} says nothing of the status {status}")


def check_reply(response: httpx.Response) -> None:
    """Assert that a reply is what the document says: status, content type, and body."""
    request = response.request
    template = find_template(request.url.path)
    if template is None or request.method.lower() not in DOCUMENT["paths"][template]:
        assert response.status_code in (401, 404, 405)  # nothing to hold it against, but for its shape
        check_body({"$ref": "#/components/schemas/ErrorReply"}, response.json())
        return
    content = find_response(template, request.method, response.status_code).get("content")
    if content is None:
        assert response.content == b""
        return
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in content
    if media_type == "application/json":
        check_body(content[media_type]["schema"], response.json())


def check_body(schema: dict[str, Any], body: Any) -> None:
    """Assert that a JSON body fits a schema of the document."""
    jsonschema_rs.validate({**schema, "components": DOCUMENT["components"]}, body)
