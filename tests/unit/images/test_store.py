"""Images on the disk: found, refused, deleted, and put in place whole or not at all."""

from __future__ import annotations

import os
import queue
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.images import store
from duovisor.controlling.images.errors import ImageBrokenError, ImageBuildError, ImageNotFoundError
from duovisor.controlling.images.image import Image, ImageDisk
from duovisor.directories import find_directories

if TYPE_CHECKING:
    from pathlib import Path

    from duovisor.directories import Directories


FILES = ("vmlinuz", "initrd.img", "tools.raw")


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return find_directories({"DUOVISOR_STATE_DIR": str(tmp_path / "a state")})


def put_image(directories: Directories, name: str, content: bytes = b"x") -> Image:
    with store.lock(directories), store.start_folder(name, directories) as folder:
        for file in FILES:
            (folder / file).write_bytes(content)
        image = Image(
            name=name, description="d", kernel="vmlinuz", initrd="initrd.img", command_line="quiet",
            disks=(ImageDisk(file="tools.raw", read_only=True, serial="s"),), kernel_version="6.1",
            source="test", recipe="r", built_at=datetime(2026, 1, 2, tzinfo=UTC), folder=folder,
            sha256={file: store.compute_sha256(folder / file) for file in FILES},
        )  # fmt: skip
        store.write_description(image)
    return store.load_image(name, directories)


def test_an_image_is_loaded_with_absolute_paths(directories: Directories) -> None:
    image = put_image(directories, "probe")
    assert image.kernel_path == directories.images / "probe/vmlinuz"
    assert image.disk_paths == (directories.images / "probe/tools.raw",)
    assert all(path.is_absolute() for path in image.file_paths)
    assert store.find_damage(image) == []


def test_images_are_listed_by_name(directories: Directories) -> None:
    assert store.list_images(directories) == []
    put_image(directories, "b")
    put_image(directories, "a")
    assert [image.name for image in store.list_images(directories)] == ["a", "b"]


@pytest.mark.parametrize("name", ["nope", "", "a/b", "..", ".lock", "x" * 300])
def test_what_is_no_image_is_not_found(directories: Directories, name: str) -> None:
    put_image(directories, "probe")
    with pytest.raises(ImageNotFoundError):
        store.load_image(name, directories)
    with pytest.raises(ImageNotFoundError):
        store.delete_image(name, directories)


def test_missing_probe_has_the_build_as_remedy(directories: Directories) -> None:
    with pytest.raises(ImageNotFoundError) as caught:
        store.load_image("probe", directories)
    assert caught.value.remedy == "duovisor image build probe"


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"format_version": 2}', '{"kernel": "../../etc/passwd"}'],
    ids=["empty", "list", "cut", "newer", "outside"],
)
def test_unreadable_description_is_broken(directories: Directories, text: str) -> None:
    image = put_image(directories, "probe")
    (image.folder / "image.json").write_text(text)
    with pytest.raises(ImageBrokenError):
        store.load_image("probe", directories)
    assert store.list_images(directories) == []
    assert store.list_names(directories) == ["probe"]


def test_a_name_that_leads_out_of_the_folder_is_refused(directories: Directories) -> None:
    image = put_image(directories, "probe")
    path = image.folder / "image.json"
    path.write_text(path.read_text().replace('"vmlinuz"', '"../vmlinuz"', 1))
    with pytest.raises(ImageBrokenError, match="kernel"):
        store.load_image("probe", directories)


def test_missing_file_is_named(directories: Directories) -> None:
    image = put_image(directories, "probe")
    image.disk_paths[0].unlink()
    with pytest.raises(ImageBrokenError, match=r"tools\.raw"):
        store.load_image("probe", directories)


def test_changed_file_is_damage(directories: Directories) -> None:
    image = put_image(directories, "probe")
    image.initrd_path.write_bytes(b"y")
    assert store.find_damage(image) == ["initrd.img"]


def test_broken_image_can_be_deleted(directories: Directories) -> None:
    image = put_image(directories, "probe")
    (image.folder / "image.json").unlink()
    store.delete_image("probe", directories)
    assert store.list_names(directories) == []
    assert os.listdir(directories.images) == [".lock"]


def test_new_build_takes_the_place_of_the_old(directories: Directories) -> None:
    put_image(directories, "probe", b"old")
    assert put_image(directories, "probe", b"new").kernel_path.read_bytes() == b"new"
    assert sorted(os.listdir(directories.images)) == [".lock", "probe"]


def test_failed_build_leaves_the_old_image(directories: Directories) -> None:
    put_image(directories, "probe", b"old")

    def fail() -> None:
        with store.lock(directories), store.start_folder("probe", directories) as folder:
            (folder / "vmlinuz").write_bytes(b"half")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert store.load_image("probe", directories).kernel_path.read_bytes() == b"old"
    assert sorted(os.listdir(directories.images)) == [".lock", "probe"]


def test_what_a_killed_build_left_goes_with_the_next_lock(directories: Directories) -> None:
    (directories.images / ".building-probe-x").mkdir(parents=True)
    (directories.images / ".deleting-probe-1").mkdir()
    with store.lock(directories):
        assert os.listdir(directories.images) == [".lock"]


def test_a_second_build_waits_for_the_first(directories: Directories) -> None:
    said: queue.Queue[str] = queue.Queue()

    def build() -> None:
        with store.lock(directories, on_wait=lambda: said.put("waiting")):
            said.put("locked")

    second = threading.Thread(target=build, daemon=True)  # flock(2) locks the open file, not the process
    with store.lock(directories):
        second.start()
        assert said.get(timeout=60) == "waiting"
        assert said.empty()
    assert said.get(timeout=60) == "locked"
    second.join(timeout=60)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    directories = find_directories({"DUOVISOR_STATE_DIR": str(tmp_path / "file")})
    with pytest.raises(ImageBuildError, match="cannot write to"), store.lock(directories):
        pass
