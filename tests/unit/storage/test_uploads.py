"""Uploads of every format become volumes; what names another file, is damaged or too large does not."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
from tests.unit.storage.conftest import MIB, Host, feeding, ref, refuse_online
from tests.unit.storage.images import CONTENT, make_image, qemu_img, read_image

from duovisor.controlling.storage.errors import PoolFullError, VolumeContentError, VolumeRefusedError
from duovisor.controlling.storage.inbox import Inbox
from duovisor.controlling.storage.records import ImageFormat, VolumeFormat
from duovisor.controlling.storage.uploads import Upload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duovisor.controlling.storage.storage import Storage

OPTIONS = {
    "vmdk": ("vmdk", "-o", "subformat=monolithicSparse"),
    "vmdk-stream": ("vmdk", "-o", "subformat=streamOptimized"),
    "vhd": ("vpc", "-o", "force_size=on"),
    "vhd-fixed": ("vpc", "-o", "subformat=fixed,force_size=on"),
    "vhdx": ("vhdx",),
    "vdi": ("vdi",),
    "qcow2": ("qcow2",),
    "qcow2-compressed": ("qcow2", "-c"),
}


@pytest.mark.parametrize("kind", OPTIONS)
async def test_every_format_becomes_a_volume(host: Host, tmp_path: Path, kind: str) -> None:
    content = make_image(tmp_path / "image", *OPTIONS[kind])
    said = ImageFormat.VHD if kind == "vhd-fixed" else None
    await host.upload("a", content, Upload(format=said))
    view = await host.view("a")
    assert (view.format, view.size_bytes) == (VolumeFormat.QCOW2, len(CONTENT))
    assert read_image(host.folder / "a.qcow2", "qcow2") == CONTENT
    await host.upload("b", content, Upload(to=VolumeFormat.RAW))
    assert (host.folder / "b.raw").read_bytes() == CONTENT


async def test_a_raw_upload_stays_as_it_is_and_keeps_its_holes(host: Host) -> None:
    await host.upload("a", CONTENT, Upload(sha256=hashlib.sha256(CONTENT).hexdigest()))
    assert (host.folder / "a.raw").read_bytes() == CONTENT
    view = await host.view("a")
    assert view.allocated_bytes is not None
    assert view.allocated_bytes < len(CONTENT)


async def test_an_iso_is_read_only(host: Host, storage: Storage) -> None:
    await host.upload("iso", CONTENT, Upload(read_only=True))
    assert (await host.view("iso")).read_only
    with pytest.raises(VolumeRefusedError, match="read-only"):
        await storage.resize(ref("iso"), 8 * MIB, refuse_online)


async def test_another_checksum(host: Host) -> None:
    with pytest.raises(VolumeContentError, match="the upload's sha256 is"):
        await host.upload("a", CONTENT, Upload(sha256="0" * 64))
    assert host.files == []


async def test_an_upload_that_breaks_off(host: Host, storage: Storage) -> None:
    inbox = Inbox(2 * len(CONTENT))
    async with feeding(inbox, CONTENT):
        with pytest.raises(VolumeContentError, match="broke off"):
            await storage.receive(ref("a"), Upload(), inbox)
    assert host.files == []


async def test_an_upload_that_is_larger_than_the_pool(host: Host, storage: Storage) -> None:
    with pytest.raises(PoolFullError):
        await storage.receive(ref("a"), Upload(), Inbox(1 << 50))
    assert host.files == []


async def test_a_small_file_that_is_a_large_disk(host: Host, tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", tmp_path / "huge", "900T")
    with pytest.raises(PoolFullError):
        await host.upload("a", (tmp_path / "huge").read_bytes())
    assert host.files == []


def make_based_qcow2(path: Path) -> bytes:
    qemu_img("create", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", path, "4M")
    return path.read_bytes()


def make_json_qcow2(path: Path) -> bytes:
    backing = 'json:{"driver":"file","filename":"/etc/shadow"}'
    qemu_img("create", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "4M")
    return path.read_bytes()


def make_qcow2_with_data_file(path: Path) -> bytes:
    data = path.with_name("data")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", path, "4M")
    return path.read_bytes()


def make_based_vmdk(path: Path) -> bytes:
    base = path.with_name("base.vmdk")
    qemu_img("create", "-f", "vmdk", base, "4M")
    qemu_img("create", "-f", "vmdk", "-b", base, "-F", "vmdk", path)
    return path.read_bytes()


def make_flat_vmdk(path: Path) -> bytes:
    qemu_img("create", "-f", "vmdk", "-o", "subformat=monolithicFlat", path.with_name("flat.vmdk"), "4M")
    return path.with_name("flat.vmdk").read_text().replace("flat-flat.vmdk", "/etc/passwd").encode()


def make_vmdk_without_size(path: Path) -> bytes:
    """QEMU would read extents, and so files, from its descriptor."""
    content = bytearray(make_image(path, "vmdk"))
    content[12:20] = bytes(8)
    return bytes(content)


def make_differencing_vhd(path: Path) -> bytes:
    content = bytearray(make_image(path, "vpc"))
    content[60:64] = content[-452:-448] = (4).to_bytes(4)
    return bytes(content)


def make_cut_qcow2(path: Path) -> bytes:
    return make_image(path, "qcow2")[:70000]


def make_odd_raw(path: Path) -> bytes:
    return b"not a disk"


def make_empty(path: Path) -> bytes:
    return b""


@pytest.mark.parametrize(
    "make",
    [
        make_based_qcow2,
        make_json_qcow2,
        make_qcow2_with_data_file,
        make_based_vmdk,
        make_flat_vmdk,
        make_vmdk_without_size,
        make_differencing_vhd,
        make_cut_qcow2,
        make_odd_raw,
        make_empty,
    ],
)
async def test_an_image_that_is_refused(host: Host, tmp_path: Path, make: Callable[[Path], bytes]) -> None:
    with pytest.raises(VolumeContentError):
        await host.upload("a", make(tmp_path / "image"))
    assert host.files == []


async def test_an_image_of_another_format_than_was_said(host: Host, tmp_path: Path) -> None:
    content = make_image(tmp_path / "image", "vmdk")
    for said in (ImageFormat.QCOW2, ImageFormat.VHD, ImageFormat.VHDX):
        with pytest.raises(VolumeContentError, match="is no"):
            await host.upload("a", content, Upload(format=said))


async def test_a_raw_disk_whose_guest_wrote_a_header(host: Host, tmp_path: Path) -> None:
    """Said to be raw, it is that: nobody looks at what its guest wrote."""
    content = make_based_qcow2(tmp_path / "image")
    content += bytes(-len(content) % 512)
    await host.upload("a", content, Upload(format=ImageFormat.RAW, to=VolumeFormat.QCOW2))
    assert read_image(host.folder / "a.qcow2", "qcow2") == content
