"""The partition table, read back by a reader of its own, from the specification's offsets."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

import pytest

from duovisor.controlling.images.gpt import (
    BIOS_BOOT,
    LINUX_ROOT_X86_64,
    SECTOR_BYTES,
    Partition,
    build_tables,
)

DISK = UUID("00112233-4455-6677-8899-aabbccddeeff")
SECTORS = 1 << 20
ROOT = Partition(1, LINUX_ROOT_X86_64, UUID(int=1), "root", 4096, SECTORS - 100)
BIOS = Partition(14, BIOS_BOOT, UUID(int=2), "bios", 2048, 4095)


def read_header(sector: bytes) -> tuple[int, int, int, int, bytes, int]:
    """Own sector, other, first and last usable, the disk's UUID, the table's sector."""
    assert sector[:8] == b"EFI PART"
    (size,) = struct.unpack_from("<I", sector, 12)
    (said,) = struct.unpack_from("<I", sector, 16)
    assert zlib.crc32(sector[:16] + bytes(4) + sector[20:size]) == said
    own, other, first, last = struct.unpack_from("<QQQQ", sector, 24)
    return own, other, first, last, sector[56:72], struct.unpack_from("<Q", sector, 72)[0]


def test_both_tables_say_the_same() -> None:
    head, tail = build_tables(DISK, SECTORS, (ROOT, BIOS))
    first, second = head[SECTOR_BYTES : 2 * SECTOR_BYTES], tail[-SECTOR_BYTES:]
    assert read_header(first) == (1, SECTORS - 1, 34, SECTORS - 34, DISK.bytes_le, 2)
    assert read_header(second) == (SECTORS - 1, 1, 34, SECTORS - 34, DISK.bytes_le, SECTORS - 33)
    table = head[2 * SECTOR_BYTES :]
    assert table == tail[:-SECTOR_BYTES]
    assert struct.unpack_from("<I", first, 88)[0] == zlib.crc32(table)


def test_entries_are_at_their_numbers() -> None:
    table = build_tables(DISK, SECTORS, (ROOT, BIOS)).head[2 * SECTOR_BYTES :]
    entry = table[13 * 128 : 14 * 128]
    assert entry[:16] == BIOS_BOOT.bytes_le
    assert struct.unpack_from("<QQ", entry, 32) == (2048, 4095)
    assert entry[56:].decode("utf-16-le").rstrip("\0") == "bios"
    assert table[:16] == LINUX_ROOT_X86_64.bytes_le
    assert not any(table[128 : 13 * 128])


def test_the_first_sector_is_protective() -> None:
    sector = build_tables(DISK, SECTORS, ()).head[:SECTOR_BYTES]
    assert sector[510:] == b"\x55\xaa"
    assert sector[446 + 4] == 0xEE
    assert struct.unpack_from("<II", sector, 446 + 8) == (1, SECTORS - 1)


@pytest.mark.parametrize(
    "wrong",
    [
        BIOS._replace(number=0),
        BIOS._replace(number=129),
        BIOS._replace(first=33),
        BIOS._replace(last=4096),
        ROOT._replace(number=2, last=SECTORS - 33),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(wrong: Partition) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        build_tables(DISK, SECTORS, (ROOT, wrong) if wrong.number != 2 else (BIOS, wrong))
