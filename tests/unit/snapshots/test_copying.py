"""Copies keep holes, stop when nobody waits, and say what is wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.snapshots.copying import (
    GRAIN_BYTES,
    PART_BYTES,
    copy_content,
    copy_data,
    count_allocated,
    find_data,
    run_copies,
)
from duovisor.controlling.snapshots.errors import SnapshotExistsError, SnapshotNotFoundError
from duovisor.controlling.snapshots.folder import SnapshotFolder, list_folders

if TYPE_CHECKING:
    from duovisor.controlling.snapshots.copying import Follow

MIB = 1 << 20


def write_sparse(path: Path) -> bytes:
    """A file of 8 MiB with data at 1, 4 and 7 MiB, and its content."""
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for place in (1, 4, 7):
            file.seek(place * MIB)
            file.write(os.urandom(5000))
    return path.read_bytes()


@pytest.mark.parametrize("copy", [copy_content, copy_data])
def test_a_copy_has_the_content_and_the_holes(tmp_path: Path, copy: object) -> None:
    content = write_sparse(tmp_path / "a")
    counted: list[int] = []
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        copy(source.fileno(), target.fileno(), counted.append)  # type: ignore[operator]  # both are functions
        assert sum(counted) in (3 * GRAIN_BYTES, len(content))  # of those with data, or shared as a whole
    assert (tmp_path / "b").read_bytes() == content
    assert (tmp_path / "b").stat().st_blocks * 512 < MIB


def test_data_is_found_in_grains_and_parts(tmp_path: Path) -> None:
    size = 3 * PART_BYTES + 100
    with (tmp_path / "a").open("w+b") as file:
        file.truncate(size)
        assert list(find_data(file.fileno(), size)) == []
        for place in (0, 2 * GRAIN_BYTES - 1, 5 * GRAIN_BYTES, size - 1):
            os.pwrite(file.fileno(), b"x", place)
        grains = [(0, 2 * GRAIN_BYTES), (5 * GRAIN_BYTES, 6 * GRAIN_BYTES), (3 * PART_BYTES, size)]
        assert list(find_data(file.fileno(), size)) == grains
        os.pwrite(file.fileno(), b"x" * size, 0)
        parts = [(start, start + PART_BYTES) for start in range(0, 3 * PART_BYTES, PART_BYTES)]
        assert list(find_data(file.fileno(), size)) == [*parts, (3 * PART_BYTES, size)]
        assert count_allocated(file.fileno()) >= size


def test_a_copy_of_nothing_but_a_hole(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w+b") as source, (tmp_path / "b").open("wb") as target:
        source.truncate(3 * PART_BYTES)
        assert copy_data(source.fileno(), target.fileno(), lambda count: None) == 0
    assert (tmp_path / "b").stat().st_size == 3 * PART_BYTES


async def test_a_copy_that_is_cancelled_stops_before_that_is_raised() -> None:
    began, told = asyncio.Event(), []
    parts = 0

    def work(follow: Follow) -> None:
        nonlocal parts
        while True:
            parts += 1
            follow(1)

    def tell(done: int) -> None:
        told.append(done)
        began.set()

    task = asyncio.create_task(run_copies(work, tell))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    stopped_at = parts
    await asyncio.sleep(0.05)
    assert parts == stopped_at


async def test_what_a_copy_raises_is_raised() -> None:
    def work(follow: Follow) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        await run_copies(work, lambda done: None)


def test_what_was_half_done_is_swept(tmp_path: Path) -> None:
    root = tmp_path / "snapshots"
    for name in (".half-a", ".gone-b", "c"):
        (root / "uuid" / name).mkdir(parents=True)
        (root / "uuid" / name / "memory").touch()
    (root / "other" / ".half-a").mkdir(parents=True)
    removed = [path for folder in list_folders(root) for path in folder.sweep()]
    assert {Path(path).name for path in removed} == {".half-a", ".gone-b"}
    assert [path.name for path in root.glob("*/*")] == ["c"]
    assert not (root / "other").exists()


def test_a_folder_that_is_not_finished_is_removed(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "snapshots", "uuid")
    with folder.making("one") as half:
        (half / "memory").touch()
    assert not folder.path.exists()
    (folder.path / "one").mkdir(parents=True)
    with pytest.raises(SnapshotExistsError):
        folder.require_absent("one")
    folder.require_absent("two")
    for name in ("two", "../uuid", ".half-one", ""):
        with pytest.raises(SnapshotNotFoundError):
            folder.remove(name)
    folder.remove("one")
    assert not folder.path.exists()
