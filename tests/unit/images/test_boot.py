"""What an image decides of a specification, and what the specification decides itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.image import Image


def build(**fields: object) -> Image:
    base = {
        "name": "debian", "description": "", "source": "", "recipe": "", "volume": "images/debian",
        "built_at": datetime(2026, 1, 1, tzinfo=UTC), "sha256": {}, "folder": Path("/images/debian"),
    }  # fmt: skip
    return Image.model_validate({**base, **fields})


@pytest.mark.parametrize(
    ("has_agent", "document", "expected"),
    [
        (True, {"name": "web"}, {"name": "web", "guest_agent": True}),
        (True, {"name": "web", "guest_agent": False}, {"name": "web", "guest_agent": False}),
        (False, {"name": "web"}, {"name": "web"}),
    ],
)
def test_an_image_with_an_agent_gets_its_port(
    *, has_agent: bool, document: dict[str, object], expected: dict[str, object]
) -> None:
    given = dict(document)
    assert add_image(given, build(guest_agent=has_agent)) == expected
    assert given == document
