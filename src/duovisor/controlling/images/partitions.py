"""Where the partitions of a disk begin: GPT, else MBR, else the whole disk.

Sources: UEFI specification 2.10, chapter 5. Sectors have 512 bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duovisor.controlling.images.disk_reader import DiskReader

SECTOR_BYTES = 512
ENTRIES_MAX, ENTRY_BYTES_MAX = 128, 4096
_MBR_AT, _MBR_ENTRY_BYTES = 446, 16


def find_partitions(disk: DiskReader) -> list[int]:
    """The first byte of each partition, in the table's order. Raises what ``disk.read`` raises."""
    sector = disk.read(0, SECTOR_BYTES)
    header = disk.read(SECTOR_BYTES, 92)
    if header[:8] == b"EFI PART":
        return _read_gpt(disk, header)
    if sector[510:] == b"\x55\xaa":
        places = (_MBR_AT + number * _MBR_ENTRY_BYTES + 8 for number in range(4))
        found = [int.from_bytes(sector[place : place + 4], "little") * SECTOR_BYTES for place in places]
        if any(found):
            return [start for start in found if start]
    return [0]


def _read_gpt(disk: DiskReader, header: bytes) -> list[int]:
    table, count, size = struct.unpack_from("<QII", header, 72)
    if not 128 <= size <= ENTRY_BYTES_MAX:
        return []
    data = disk.read(table * SECTOR_BYTES, min(count, ENTRIES_MAX) * size)
    entries = (data[place : place + 40] for place in range(0, len(data), size))
    return [int.from_bytes(entry[32:40], "little") * SECTOR_BYTES for entry in entries if any(entry[:16])]
