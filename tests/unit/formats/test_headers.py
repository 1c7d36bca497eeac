"""What image headers say, and what they must not make us do."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duovisor.controlling.formats.headers import (
    HEAD_BYTES,
    Backing,
    HeaderError,
    guess_format,
    parse_backing,
    parse_qcow2,
    parse_vmdk,
)
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

needs_qemu_img = pytest.mark.skipif(
    shutil.which("qemu-img") is None, reason="qemu-img is not installed (qemu-utils)"
)
FORMATS = [each for each in DiskFormat if each is not DiskFormat.RAW]


def create(path: Path, *words: str) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", *words[:-1], str(path), *words[-1:]], check=True)
    return path.read_bytes()[:HEAD_BYTES]


def build_qcow2(
    *, version: int = 3, features: int = 0, name: bytes = b"", kind: bytes = b"", encryption: int = 0
) -> bytearray:
    """A head as the specification lays it out (docs/interop/qcow2.txt)."""
    extension = b"\xe2\x79\x2a\xca" + len(kind).to_bytes(4) + kind.ljust(-(-len(kind) // 8) * 8, b"\0")
    head = bytearray(4096)
    head[:4] = b"QFI\xfb"
    head[4:8] = version.to_bytes(4)
    if name:
        head[8:16] = (1024).to_bytes(8)
        head[16:20] = len(name).to_bytes(4)
        head[1024 : 1024 + len(name)] = name
    head[32:36] = encryption.to_bytes(4)
    start = 104 if version == 3 else 72
    if version == 3:
        head[72:80] = features.to_bytes(8)
        head[100:104] = (104).to_bytes(4)
    if kind:
        head[start : start + len(extension)] = extension
    return head


@needs_qemu_img
@pytest.mark.parametrize("disk_format", FORMATS)
def test_what_qemu_img_makes_is_known(tmp_path: Path, disk_format: DiskFormat) -> None:
    head = create(tmp_path / "image", "-f", disk_format, "1M")
    assert guess_format(head) is disk_format
    assert parse_backing(head, disk_format) is None


@needs_qemu_img
@pytest.mark.parametrize("options", [(), ("-o", "compat=0.10"), ("-o", "cluster_size=512")])
def test_backing_of_qcow2(tmp_path: Path, options: tuple[str, ...]) -> None:
    create(tmp_path / "base", "-f", "raw", "1M")
    head = create(tmp_path / "top", "-f", "qcow2", *options, "-b", "base", "-F", "raw", "1M")
    assert parse_qcow2(head) == Backing("base", "raw")


@needs_qemu_img
def test_backing_of_vmdk(tmp_path: Path) -> None:
    create(tmp_path / "base.vmdk", "-f", "vmdk", "1M")
    head = create(tmp_path / "top", "-f", "vmdk", "-b", str(tmp_path / "base.vmdk"), "-F", "vmdk", "1M")
    assert parse_vmdk(head) == Backing(str(tmp_path / "base.vmdk"), "vmdk")


@needs_qemu_img
@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"])
def test_a_vmdk_of_several_files(tmp_path: Path, kind: str) -> None:
    head = create(tmp_path / "image.vmdk", "-f", "vmdk", "-o", f"subformat={kind}", "1M")
    with pytest.raises(HeaderError, match="is a VMDK that consists of several files") as caught:
        parse_backing(head, DiskFormat.VMDK)
    assert "subformat=monolithicSparse" in caught.value.remedy


@needs_qemu_img
def test_a_vmdk_of_one_file_and_compressed(tmp_path: Path) -> None:
    head = create(tmp_path / "image.vmdk", "-f", "vmdk", "-o", "subformat=streamOptimized", "1M")
    assert parse_vmdk(head) is None


@needs_qemu_img
def test_a_vmdk_that_leads_to_other_files_by_its_descriptor(tmp_path: Path) -> None:
    """Without a capacity QEMU takes the extents from the text, whatever files those are."""
    head = bytearray(create(tmp_path / "image.vmdk", "-f", "vmdk", "1M"))
    head[12:20] = bytes(8)
    with pytest.raises(HeaderError, match="is a VMDK of kind monolithicSparse, which"):
        parse_vmdk(bytes(head))


@needs_qemu_img
@pytest.mark.parametrize("found", FORMATS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_one_format_in_place_of_another(tmp_path: Path, found: DiskFormat, wanted: DiskFormat) -> None:
    head = create(tmp_path / "image", "-f", found, "1M")
    if found is not wanted:
        with pytest.raises(HeaderError, match=f"is no {wanted} image: it begins as {found} does"):
            parse_backing(head, wanted)
    with pytest.raises(HeaderError, match="it bears no signature"):
        parse_backing(bytes(512), wanted)
    assert parse_backing(head, DiskFormat.RAW) is None


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (build_qcow2(features=1 << 2), "keeps its data in another file"),
        (build_qcow2(features=1 << 1), "is marked as corrupt"),
        (build_qcow2(version=4), "is qcow2 of version 4"),
        (build_qcow2(encryption=2), "is encrypted"),
        (build_qcow2()[:50], "ends in the middle of its header"),
        (build_qcow2(name=b"x" * 1024), "names its backing file in 1024 bytes"),
    ],
)
def test_qcow2_that_is_refused(head: bytearray, said: str) -> None:
    with pytest.raises(HeaderError, match=said):
        parse_backing(bytes(head), DiskFormat.QCOW2)


def test_qcow2_that_names_its_backing_file_outside() -> None:
    head = build_qcow2(name=b"base")
    head[8:16] = (1 << 63).to_bytes(8)
    with pytest.raises(HeaderError, match="where no name can be"):
        parse_qcow2(bytes(head))


def test_qcow2_without_a_backing_format() -> None:
    assert parse_qcow2(bytes(build_qcow2(name=b"base"))) == Backing("base", "")


@pytest.mark.parametrize("version", [2, 3])
def test_qcow2_with_other_extensions_before_the_format(version: int) -> None:
    head = build_qcow2(version=version, name=b"base", kind=b"qcow2")
    start = 104 if version == 3 else 72
    head[start + 13 : start + 13] = b""
    other = (0x6803F857).to_bytes(4) + (5).to_bytes(4) + b"other\0\0\0"
    head[start + 16 : start + 32] = head[start : start + 16]
    head[start : start + 16] = other
    assert parse_qcow2(bytes(head)) == Backing("base", "qcow2")


@pytest.mark.parametrize("disk_format", FORMATS)
@given(st.binary(max_size=600))
def test_any_bytes(disk_format: DiskFormat, noise: bytes) -> None:
    magic = {"qcow2": b"QFI\xfb\0\0\0\3", "vmdk": b"KDMV", "vhdx": b"vhdxfile", "vdi": b""}[disk_format]
    for head in (noise, magic + noise):
        try:
            backing = parse_backing(head, disk_format)
        except HeaderError:
            continue
        assert backing is None or isinstance(backing.name, str)
