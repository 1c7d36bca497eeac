"""A build in a process of its own: its errors come back, and it can be stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images import store
from duovisor.controlling.service.image_builder import build_image
from duovisor.directories import find_directories
from duovisor.errors import DuovisorError

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.directories import Directories


@pytest.fixture
def directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Directories:
    for name in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"DUOVISOR_{name}_DIR", str(tmp_path / name.lower()))
    return find_directories()


async def test_the_builders_error_is_the_operations_error(
    directories: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DuovisorError) as failed:
        await build_image("probe", lambda percent, message: None, force=False)
    assert failed.value.code != "program-failed"  # the builder's own error, not that it failed
    assert failed.value.remedy
    assert store.list_names(directories) == []


async def test_a_cancelled_build_ends_its_process_and_leaves_nothing(directories: Directories) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    with store.lock(directories):  # so that the build waits
        build = asyncio.create_task(
            build_image("probe", lambda percent, message: said.put_nowait(message), force=False)
        )
        async with asyncio.timeout(20):
            assert await said.get() == "waiting for another build to end"
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(build, 20)
    with store.lock(directories):  # nobody else holds it
        assert [path.name for path in directories.images.iterdir()] == [".lock"]
