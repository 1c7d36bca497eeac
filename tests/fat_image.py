"""A small FAT12 file system with files in its root, made without any program (Microsoft's fatgen103)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

SECTOR = 512
SECTORS = 2880  # a 1.44 MB diskette's: firmware knows them without a partition table
ROOT_ENTRIES, FAT_SECTORS = 224, 9
FIRST_DATA = 1 + 2 * FAT_SECTORS + ROOT_ENTRIES * 32 // SECTOR
END_OF_CHAIN = 0xFFF


def build_fat(files: Mapping[str, bytes]) -> bytes:
    """The image of a diskette with these files, whose names are of the form ``NAME.EXT``."""
    clusters = [0xFF0, END_OF_CHAIN]
    root, data = b"", b""
    for name, content in files.items():
        first, count = len(clusters), max(1, -(-len(content) // SECTOR))
        clusters += [*range(first + 1, first + count), END_OF_CHAIN]
        stem, _, extension = name.upper().partition(".")
        root += f"{stem:8}{extension:3}".encode() + struct.pack("<B14xHI", 0x20, first, len(content))
        data += content.ljust(count * SECTOR, b"\0")
    assert FIRST_DATA + len(data) // SECTOR <= SECTORS, "more than a diskette holds"
    table = _pack(clusters).ljust(FAT_SECTORS * SECTOR, b"\0")
    image = _boot_sector() + table + table + root.ljust(ROOT_ENTRIES * 32, b"\0") + data
    return image.ljust(SECTORS * SECTOR, b"\0")


def _boot_sector() -> bytes:
    geometry = struct.pack(
        "<HBHBHHBHHHII", SECTOR, 1, 1, 2, ROOT_ENTRIES, SECTORS, 0xF0, FAT_SECTORS, 18, 2, 0, 0
    )
    label = struct.pack("<BBBI11s8s", 0x80, 0, 0x29, 0x1234, b"TEST       ", b"FAT12   ")
    return (b"\xeb\x3c\x90DUOVISOR"[:11] + geometry + label).ljust(510, b"\0") + b"\x55\xaa"


def _pack(clusters: list[int]) -> bytes:
    """Twelve bits each, two in three bytes."""
    packed = b""
    for first, second in zip(clusters[::2], [*clusters[1::2], 0], strict=False):
        packed += struct.pack("<I", first | second << 12)[:3]
    return packed
