"""Images over REST."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.running import Api, RunningService

DESCRIPTION = {
    "name": "small",
    "description": "made by hand",
    "kernel": "vmlinuz",
    "initrd": "initrd",
    "command_line": "quiet",
    "kernel_version": "6.1",
    "source": "test",
    "recipe": "none",
    "built_at": "2026-01-01T00:00:00Z",
    "sha256": {"vmlinuz": "0" * 64, "initrd": "0" * 64},
}


@pytest.fixture
def image(service: RunningService) -> Path:
    folder = service.folder / "state/images/small"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vmlinuz", "initrd"):
        (folder / name).write_text("content")
    (folder / "image.json").write_text(json.dumps(DESCRIPTION))
    return folder


def test_an_image_is_listed_shown_verified_and_deleted(api: Api, image: Path) -> None:
    assert [each["name"] for each in api.get("/v1/images").json()["items"]] == ["small"]
    assert api.get("/v1/images/small").json()["damaged"] is None
    damaged = api.get("/v1/images/small", params={"verify": True}).json()["damaged"]
    assert damaged == ["vmlinuz", "initrd"]
    assert api.delete("/v1/images/small").status_code == 204
    assert not image.exists()
    assert api.get("/v1/images/small").json()["code"] == "image-not-found"
    assert api.delete("/v1/images/small").json()["code"] == "image-not-found"


def test_a_broken_image_is_listed_as_that(api: Api, image: Path) -> None:
    (image / "vmlinuz").unlink()
    (listed,) = api.get("/v1/images").json()["items"]
    assert "lacks its file" in listed["broken"]
    shown = api.get("/v1/images/small")
    assert (shown.status_code, shown.json()["code"]) == (409, "image-broken")


def test_a_recipe_that_is_not_there_is_refused(api: Api) -> None:
    reply = api.post("/v1/images", json={"recipe": "windows"})
    assert (reply.status_code, reply.json()["field"]) == (422, "recipe")
