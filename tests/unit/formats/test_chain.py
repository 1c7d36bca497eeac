"""Chains of backing files: read to the end, and refused with what to do about it."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.unit.formats.test_headers import build_qcow2, needs_qemu_img

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.formats.chain import CHAIN_MAX, read_chain
from duovisor.hypervisor.qemu.images import ImageFile, build_image_nodes
from duovisor.spec.vm import CacheMode, DiskFormat

if TYPE_CHECKING:
    from pathlib import Path

QCOW2, RAW = DiskFormat.QCOW2, DiskFormat.RAW


def write(path: Path, name: str = "", kind: str = "qcow2") -> Path:
    path.write_bytes(build_qcow2(name=name.encode(), kind=kind.encode()))
    return path


def refuse(path: Path, disk_format: DiskFormat = QCOW2) -> str:
    with pytest.raises(DiskFileError) as caught:
        read_chain(str(path), disk_format)
    return str(caught.value)


@needs_qemu_img
def test_as_qemu_img_makes_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    commands = [
        ["-f", "raw", "below/base", "1M"],
        ["-f", "qcow2", "-b", "base", "-F", "raw", "below/middle"],
        ["-f", "qcow2", "-b", "below/middle", "-F", "qcow2", "top"],
    ]
    for words in commands:
        subprocess.run(["qemu-img", "create", "-q", *words], check=True, cwd=tmp_path)
    assert read_chain(f"{tmp_path}/top", QCOW2) == (
        ImageFile(f"{tmp_path}/top", QCOW2),
        ImageFile(f"{tmp_path}/below/middle", QCOW2),
        ImageFile(f"{tmp_path}/below/base", RAW),
    )


def test_a_raw_image_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "image", "never-looked-at")
    assert read_chain(str(path), RAW) == (ImageFile(str(path), RAW),)


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver": "file", "filename": "/etc/shadow"}', "nbd://host/export", "http://host/image",
        "file:base", "fat:/etc", "ssh://host/x", "a\nb",
    ],
)  # fmt: skip
def test_what_is_no_path(tmp_path: Path, name: str) -> None:
    assert "as its backing file, which is no path of a file" in refuse(write(tmp_path / "top", name))


def test_a_colon_behind_a_slash_is_part_of_a_name(tmp_path: Path) -> None:
    write(tmp_path / "12:30")
    top = write(tmp_path / "top", "./12:30")
    assert [image.path for image in read_chain(str(top), QCOW2)][1] == f"{tmp_path}/./12:30"


@pytest.mark.parametrize(("kind", "said"), [("", "without its format"), ("luks", "of format 'luks'")])
def test_a_backing_format_is_needed(tmp_path: Path, kind: str, said: str) -> None:
    write(tmp_path / "base")
    text = refuse(write(tmp_path / "top", "base", kind))
    assert f"names its backing file base {said}; formats are raw, qcow2" in text
    assert f"qemu-img rebase -u -F FORMAT -b base {tmp_path}/top" in text


def test_what_is_below_is_checked_too(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(4096))
    top = write(tmp_path / "top", "base")
    assert f"disk image {tmp_path}/base is no qcow2 image" in refuse(top)
    (tmp_path / "base").unlink()
    assert f"cannot read backing file {tmp_path}/base of {top}: No such file" in refuse(top)
    os.mkfifo(tmp_path / "base")
    assert "is neither a file nor a block device" in refuse(top)


def test_loops(tmp_path: Path) -> None:
    assert f"comes back to {tmp_path}/self" in refuse(write(tmp_path / "self", "self"))
    write(tmp_path / "one", "two")
    (tmp_path / "link").symlink_to("one")
    assert f"comes back to {tmp_path}/two" in refuse(write(tmp_path / "two", "link"))


def test_too_many(tmp_path: Path) -> None:
    write(tmp_path / "0")
    for number in range(1, CHAIN_MAX + 1):
        write(tmp_path / str(number), str(number - 1))
    assert len(read_chain(str(tmp_path / str(CHAIN_MAX - 1)), QCOW2)) == CHAIN_MAX
    assert f"has more than {CHAIN_MAX} images in its chain" in refuse(tmp_path / str(CHAIN_MAX))


def test_nodes_of_a_chain() -> None:
    chain = (
        ImageFile("/top", QCOW2),
        ImageFile("/middle", DiskFormat.VMDK),
        ImageFile("/dev/base", RAW, True),
    )
    nodes = build_image_nodes("disk0", chain, cache=CacheMode.NONE, read_only=False, aio="threads")
    brief = [
        (each["node-name"], each["driver"], each["read-only"], each.get("backing", "-")) for each in nodes
    ]
    assert brief == [
        ("disk0-backing2-file", "host_device", True, "-"),
        ("disk0-backing2", "raw", True, "-"),
        ("disk0-backing1-file", "file", True, "-"),
        ("disk0-backing1", "vmdk", True, "disk0-backing2"),
        ("disk0-file", "file", False, "-"),
        ("disk0", "qcow2", False, "disk0-backing1"),
    ]
    assert all(each["cache"]["direct"] for each in nodes if "cache" in each)
    assert [each["filename"] for each in nodes if "filename" in each] == ["/dev/base", "/middle", "/top"]


def test_the_last_of_a_chain_has_nothing_below() -> None:
    """Left out, QEMU would open what the header names."""
    for disk_format, expected in ((QCOW2, True), (DiskFormat.VMDK, True), (DiskFormat.VDI, False)):
        nodes = build_image_nodes(
            "d", [ImageFile("/x", disk_format)], cache=CacheMode.WRITEBACK, read_only=True, aio="threads"
        )
        assert ("backing" in nodes[-1]) is expected
        assert nodes[-1].get("backing") is None
        assert nodes[-1]["read-only"]
