"""What an image decides of a specification, and what the specification decides itself."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.errors import ImageUseError
from duovisor.controlling.images.image import Image

KERNEL = {"kernel": "vmlinuz", "initrd": "initrd.img", "command_line": "root=UUID=1 ro"}


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


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"name": "web"}, {}),
        ({"firmware": "direct-kernel"}, {"kernel": {"disk": 0}}),
        ({"vmm": "thin"}, {"firmware": "direct-kernel", "kernel": {"disk": 0}}),
        ({"vmm": "thin", "firmware": "bios"}, {}),
        (
            {"firmware": "direct-kernel", "kernel": {"command_line": "quiet"}},
            {"kernel": {"disk": 0, "command_line": "quiet"}},
        ),
        ({"firmware": "direct-kernel", "kernel": {"path": "/boot/mine"}}, {}),
    ],
)
def test_a_clone_starts_from_the_kernel_on_it(
    document: dict[str, object], expected: dict[str, object]
) -> None:
    assert add_image(document, build(**KERNEL)) == {**document, **expected}


def test_an_image_without_a_kernel_has_none_for_its_clones() -> None:
    with pytest.raises(ImageUseError, match="no kernel on its disk"):
        add_image({"firmware": "direct-kernel"}, build())
    assert add_image({"firmware": "bios"}, build()) == {"firmware": "bios"}
