"""One bootable disk, and images of it in other platforms' formats, by every maker that Debian packages.

qemu-img; Bochs' ``bximage`` (VMDK, VHD); ``xmount`` (VHD, through FUSE); ``python3-vmdkstream`` (a VMDK as it
is streamed). libvmdk and libvhdi only read, and VHDX nobody makes but qemu-img.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

SECTOR_BYTES = 512
# 18 cylinders of Bochs' geometry, and a few sectors more than what other makers' geometries come to
SECTORS = 18 * 16 * 63
VMDK_STREAM = Path("/usr/lib/python3/dist-packages/VMDKstream.py")
FUSE = Path("/dev/fuse")
# reads the disk's last sector (int 0x13, its number follows the program), prints it on the serial port, stops
_PROGRAM = bytes.fromhex(
    "31c0 8ed8 b442 be1c7c cd13 baf803 be007e ac 84c0 7403 ee ebf8 f4 ebfd 1000 0100 007e 0000"
)


def build_disk(says: str) -> bytes:
    """A raw disk that a BIOS starts, and which then says what its very last sector holds."""
    first = (_PROGRAM + (SECTORS - 1).to_bytes(8, "little")).ljust(510, b"\0") + b"\x55\xaa"
    last = f"{says}\r\n".encode().ljust(SECTOR_BYTES, b"\0")
    numbers = b"".join(number.to_bytes(8, "little") * 64 for number in range(1, SECTORS - 1))
    hole = slice(4 << 20, 6 << 20)  # sparse formats leave out what is zero
    whole = bytearray(first + numbers + last)
    whole[hole] = bytes(hole.stop - hole.start)
    return bytes(whole)


class Maker(NamedTuple):
    """Who makes an image ``target`` of the raw disk ``source``; ``why_not`` says what is missing here."""

    make: Callable[[Path, Path], None]
    why_not: Callable[[], str]
    package: str


def run(*words: str | Path) -> None:
    subprocess.run(list(map(str, words)), check=True, stdout=subprocess.DEVNULL, timeout=120)


def by_qemu(driver: str, options: str = "") -> Maker:
    def make(source: Path, target: Path) -> None:
        run(
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            driver,
            *(("-o", options) if options else ()),
            source,
            target,
        )

    return Maker(make, lambda: _lacking("qemu-img"), "qemu-utils")


def by_bochs(mode: str) -> Maker:
    def make(source: Path, target: Path) -> None:
        run("bximage", "-q", "-func=convert", f"-imgmode={mode}", source, target)

    return Maker(make, lambda: _lacking("bximage"), "bximage")


def by_xmount(kind: str, suffix: str) -> Maker:
    def make(source: Path, target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as folder:
            run("xmount", "--in", "raw", source, "--out", kind, folder)
            try:
                shutil.copyfile(Path(folder, source.stem).with_suffix(suffix), target)
            finally:
                run("umount", folder)

    def why_not() -> str:
        if os.geteuid() != 0 or not FUSE.exists():
            return "xmount needs root and FUSE"
        return _lacking("xmount")

    return Maker(make, why_not, "xmount")


def make_stream(source: Path, target: Path) -> None:
    run("/usr/bin/python3", VMDK_STREAM, source, target)


def _lacking(program: str) -> str:
    return "" if shutil.which(program) else f"{program} is not installed"


MAKERS = {
    "vmdk-by-qemu-img": by_qemu("vmdk", "subformat=monolithicSparse"),
    "vmdk-stream-by-qemu-img": by_qemu("vmdk", "subformat=streamOptimized"),
    "vmdk-by-bochs": by_bochs("vmware4"),
    "vmdk-stream-by-vmdkstream": Maker(
        make_stream,
        lambda: "" if VMDK_STREAM.exists() else "VMDKstream is not installed",
        "python3-vmdkstream",
    ),
    "vhd-by-qemu-img": by_qemu("vpc", "force_size=on"),
    "vhd-fixed-by-qemu-img": by_qemu("vpc", "subformat=fixed,force_size=on"),
    "vhd-by-bochs": by_bochs("vpc"),
    "vhd-fixed-by-xmount": by_xmount("vhd", ".vhd"),
    "vhdx-by-qemu-img": by_qemu("vhdx"),
}
OF_SEVERAL_FILES = by_xmount("vmdk", ".vmdk")
