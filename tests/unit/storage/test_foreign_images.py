"""Images of other platforms, by every maker in Debian, become the very disk that they were made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.foreign_images import MAKERS, OF_SEVERAL_FILES, build_disk

from duovisor.controlling.storage.errors import VolumeContentError
from duovisor.controlling.storage.heads import find_options, identify
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat
from duovisor.controlling.storage.uploads import Upload

if TYPE_CHECKING:
    from pathlib import Path

    from tests.foreign_images import Maker
    from tests.unit.storage.conftest import Host


def make(maker: Maker, disk: Path) -> Path:
    """An image of a disk; skips where its maker is not."""
    if reason := maker.why_not():
        pytest.skip(f"{reason}: apt install {maker.package}")
    target = disk.with_name("image")
    maker.make(disk, target)
    return target


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(build_disk("the end"))
    return path


@pytest.mark.parametrize("name", MAKERS)
async def test_an_image_is_the_disk_that_it_was_made_of(host: Host, disk: Path, name: str) -> None:
    image = make(MAKERS[name], disk)
    assert identify(image, None, image.stat().st_size) is ImageFormat(name.partition("-")[0])
    await host.upload("a", image.read_bytes(), Upload(to=VolumeFormat.RAW))
    content, wanted = (host.folder / "a.raw").read_bytes(), disk.read_bytes()
    assert len(content) == len(wanted)
    assert content == wanted


async def test_an_image_of_several_files_is_refused(host: Host, disk: Path) -> None:
    image = make(OF_SEVERAL_FILES, disk)
    with pytest.raises(VolumeContentError, match="consists of several files") as caught:
        await host.upload("a", image.read_bytes())
    assert "monolithicSparse" in caught.value.remedy
    assert host.files == []


@pytest.mark.parametrize(
    ("creator", "counts"),
    [(b"vpc ", "cylinders"), (b"qemu", "cylinders"), (b"vbox", "bytes"), (b"win ", "bytes")],
)
def test_whose_word_a_vhd_s_size_is(tmp_path: Path, creator: bytes, counts: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(
        bytes(1024) + (b"conectix" + bytes(20) + creator + bytes(28) + b"\0\0\0\2").ljust(512, b"\0")
    )
    assert identify(path, None, path.stat().st_size) is ImageFormat.VHD
    options = find_options(path, ImageFormat.VHD, path.stat().st_size)
    assert options == ({} if counts == "cylinders" else {"force_size_calc": "current_size"})
    assert find_options(path, ImageFormat.RAW, path.stat().st_size) == {}
