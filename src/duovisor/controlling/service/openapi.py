"""Prints the API's OpenAPI document; ``docs/api/openapi.json`` is this, and a test says so.

``python -m duovisor.controlling.service.openapi > docs/api/openapi.json``
"""

from __future__ import annotations

import json

from duovisor.controlling.service.app import build_app


def build_document() -> str:
    """The document as it is committed."""
    return json.dumps(build_app().openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(build_document(), end="")
