"""Images that start from a disk: how they come to be, are used and go, over real volumes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.unit.storage.conftest import Host, feeding

from duovisor.controlling.images import debian, store
from duovisor.controlling.images.download import Wanted
from duovisor.controlling.images.errors import DownloadError, ImageExistsError, ImageNotFoundError
from duovisor.controlling.images.library import About, Library
from duovisor.controlling.storage.errors import VolumeContentError, VolumeInUseError
from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import VolumeRef
from duovisor.controlling.storage.uploads import Upload
from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.vms.records import ignore_progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from duovisor.controlling.vms.records import Progress

CONTENT = bytes(range(256)) * 8192
ABOUT = About("made by hand", "here", user="ada")
REF = VolumeRef(pool="images", name="small")


@pytest_asyncio.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with open_memory_store() as opened:
        yield Host(tmp_path, opened)


@pytest.fixture
def library(host: Host) -> Library:
    return Library(host.storage, host.directories)


async def receive(library: Library, upload: Upload | None = None) -> None:
    inbox = Inbox(len(CONTENT))
    async with feeding(inbox, CONTENT):
        await library.receive("small", upload or Upload(), inbox, ABOUT, ignore_progress)


async def test_an_image_is_a_read_only_volume_with_a_description(library: Library, host: Host) -> None:
    await receive(library)
    image = library.load_template("small")
    assert (image.volume, image.user, image.kernel) == ("images/small", "ada", None)
    assert (await host.storage.volumes.get(REF)).document.read_only
    with pytest.raises(ImageExistsError):
        await receive(library)
    await library.delete("small")
    assert await host.storage.volumes.find(REF) is None
    with pytest.raises(ImageNotFoundError):
        library.load_template("small")


async def test_one_that_has_clones_stays(library: Library, host: Host) -> None:
    await receive(library)
    clone = VolumeRef(pool="default", name="web")
    await host.storage.clone(REF, clone, linked=True)
    with pytest.raises(VolumeInUseError, match="linked clones"):
        await library.delete("small")
    assert library.load_template("small").name == "small"
    await host.storage.delete(clone)
    await library.delete("small")


async def test_a_wrong_checksum_leaves_nothing(library: Library, host: Host) -> None:
    with pytest.raises(VolumeContentError):
        await receive(library, Upload(sha256="0" * 64))
    assert store.list_names(host.directories) == []
    assert await host.storage.volumes.find(REF) is None


async def test_a_volume_that_a_killed_build_left_is_replaced(library: Library, host: Host) -> None:
    await receive(library)
    store.delete_image("small", host.directories)
    await receive(library)
    assert library.load_template("small").volume == "images/small"


async def test_a_disk_that_went_away_does_not_keep_the_image(library: Library, host: Host) -> None:
    await receive(library)
    await host.storage.delete(REF)
    await library.delete("small")
    assert store.list_names(host.directories) == []


async def test_pull(library: Library, host: Host, tmp_path: Path) -> None:
    (tmp_path / "image.raw").write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    wanted = Wanted(f"file://{tmp_path}/image.raw", sha256, 1 << 30)
    with pytest.raises(DownloadError, match="sha256"):
        await library.pull("small", wanted._replace(sha256="0" * 64), "", ignore_progress)
    assert store.list_names(host.directories) == []
    seen: list[int] = []
    await library.pull("small", wanted, "ada", lambda percent, said: seen.append(percent))
    assert library.load_template("small").source == wanted.url
    assert (seen, seen[-1]) == (sorted(seen), 100)
    assert list((host.directories.cache / "downloads").iterdir()) == []


async def build_fake(recipe: str, folder: Path, progress: Progress) -> None:
    """A builder that is done at once."""
    assert recipe == debian.NAME
    progress(10, "building")
    (folder / debian.DISK).write_bytes(CONTENT)
    for name in (debian.KERNEL, debian.INITRD):
        (folder / name).write_bytes(name.encode())


async def test_build(library: Library, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "check_host", lambda: None)
    await library.build("mine", build_fake, ignore_progress)
    image = library.load_template("mine")
    assert image.initrd_path.read_bytes() == b"initrd.img"
    assert store.find_damage(image) == []
    assert image.user == "debian"
    assert list((host.directories.state / "image-builds").iterdir()) == []
    assert json.loads((image.folder / "image.json").read_text())["recipe"] == "debian-12"


async def test_a_build_that_is_cancelled_leaves_nothing(
    library: Library, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "check_host", lambda: None)
    begun = asyncio.Event()

    async def hang(recipe: str, folder: Path, progress: Progress) -> None:
        (folder / "root").mkdir()
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(library.build("mine", hang, ignore_progress))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list((host.directories.state / "image-builds").iterdir()) == []
    assert store.list_names(host.directories) == []
