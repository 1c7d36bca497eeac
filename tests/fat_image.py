"""A small FAT12 file system, made without any program (Microsoft's fatgen103)."""

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
FOLDER, FILE = 0x10, 0x20


def build_fat(files: Mapping[str, bytes]) -> bytes:
    """The image of a diskette with these files; a path's parts are of the form ``NAME.EXT``."""
    disk = _Clusters()
    root = _build_folder(disk, files, own=0, parent=None)
    assert FIRST_DATA + len(disk.data) // SECTOR <= SECTORS, "more than a diskette holds"
    table = _pack(disk.table).ljust(FAT_SECTORS * SECTOR, b"\0")
    image = _boot_sector() + table + table + root.ljust(ROOT_ENTRIES * 32, b"\0") + disk.data
    return image.ljust(SECTORS * SECTOR, b"\0")


class _Clusters:
    """What is on the disk, a sector a cluster."""

    def __init__(self) -> None:
        self.table = [0xFF0, END_OF_CHAIN]
        self.data = bytearray()

    def add(self, content: bytes) -> int:
        """The first cluster of something new."""
        first, count = len(self.table), max(1, -(-len(content) // SECTOR))
        self.table += [*range(first + 1, first + count), END_OF_CHAIN]
        self.data += content.ljust(count * SECTOR, b"\0")
        return first

    def write(self, cluster: int, content: bytes) -> None:
        """Something else in a single cluster."""
        at = (cluster - 2) * SECTOR
        self.data[at : at + len(content)] = content


def _build_folder(disk: _Clusters, files: Mapping[str, bytes], own: int, parent: int | None) -> bytes:
    entries = b""
    if parent is not None:
        entries = _entry(".", FOLDER, own, 0) + _entry("..", FOLDER, parent, 0)
    inside: dict[str, dict[str, bytes]] = {}
    for path, content in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            inside.setdefault(name, {})[rest] = content
        else:
            entries += _entry(name, FILE, disk.add(content), len(content))
    for name, within in inside.items():
        cluster = disk.add(b"")
        disk.write(cluster, _build_folder(disk, within, cluster, own))
        entries += _entry(name, FOLDER, cluster, 0)
    return entries


def _entry(name: str, kind: int, cluster: int, size: int) -> bytes:
    stem, _, extension = ("", "", "") if name.startswith(".") else name.upper().partition(".")
    return f"{stem or name:8}{extension:3}".encode() + struct.pack("<B14xHI", kind, cluster, size)


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
