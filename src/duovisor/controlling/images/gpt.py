"""Writes a GUID partition table: pure functions over bytes, no device and no program.

Source: UEFI specification 2.10, chapter 5. Sectors have 512 bytes; the table has 128 entries.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Sequence

SECTOR_BYTES = 512
ENTRIES, ENTRY_BYTES = 128, 128
TABLE_SECTORS = ENTRIES * ENTRY_BYTES // SECTOR_BYTES
HEADER_BYTES = 92
MBR_CODE_BYTES = 440  # what comes after it is the disk's signature and the protective partition

BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_ROOT_X86_64 = UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


class Partition(NamedTuple):
    """A partition: its number from 1, its type, its own UUID, its name, first and last sector."""

    number: int
    type: UUID
    uuid: UUID
    name: str
    first: int
    last: int


class Tables(NamedTuple):
    """What goes to the disk's beginning (from sector 0), and to its last sectors."""

    head: bytes
    tail: bytes


def build_tables(disk_uuid: UUID, sectors: int, partitions: Sequence[Partition]) -> Tables:
    """The tables of a disk of ``sectors``. Raises ``ValueError`` for partitions that do not fit."""
    first, last = 2 + TABLE_SECTORS, sectors - 2 - TABLE_SECTORS
    end = first - 1
    for partition in sorted(partitions, key=lambda each: each.first):
        if not (end < partition.first <= partition.last <= last and 1 <= partition.number <= ENTRIES):
            raise ValueError(f"partition {partition.name} does not fit the disk, or lies on another")
        end = partition.last
    entries = bytearray(ENTRIES * ENTRY_BYTES)
    for partition in partitions:
        start = (partition.number - 1) * ENTRY_BYTES
        entries[start : start + ENTRY_BYTES] = _build_entry(partition)
    table = bytes(entries)
    primary = _build_header(disk_uuid, table, own=1, other=sectors - 1, table_at=2, usable=(first, last))
    backup = _build_header(
        disk_uuid, table, own=sectors - 1, other=1, table_at=last + 1, usable=(first, last)
    )
    return Tables(_build_protective(sectors) + primary + table, table + backup)


def _build_entry(partition: Partition) -> bytes:
    name = partition.name.encode("utf-16-le").ljust(72, b"\0")
    span = struct.pack("<QQQ", partition.first, partition.last, 0)
    return partition.type.bytes_le + partition.uuid.bytes_le + span + name


def _build_header(
    disk: UUID, table: bytes, *, own: int, other: int, table_at: int, usable: tuple[int, int]
) -> bytes:
    def pack(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART", 0x00010000, HEADER_BYTES, checksum, 0, own, other, *usable,
            disk.bytes_le, table_at, ENTRIES, ENTRY_BYTES, zlib.crc32(table),
        )  # fmt: skip

    return pack(zlib.crc32(pack(0))).ljust(SECTOR_BYTES, b"\0")


def _build_protective(sectors: int) -> bytes:
    """The MBR that keeps old programs off; its boot code is empty."""
    # status, first sector as C/H/S, type, last sector as C/H/S, first sector, number of sectors
    entry = struct.pack(
        "<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF)
    )
    return bytes(MBR_CODE_BYTES) + bytes(6) + entry + bytes(48) + b"\x55\xaa"
