"""The PVH way in: an ELF kernel with a note that says where it begins in 32-bit protected mode.

Sources: Xen docs/misc/pvh.pandoc and xen/include/public/arch-x86/hvm/start_info.h; ELF-64, gABI 4.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from duovisor.hypervisor.thin import layout
from duovisor.hypervisor.thin.boot_file import MemoryRange, find_room, read_into
from duovisor.hypervisor.thin.errors import BootImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

XEN_ELFNOTE_PHYS32_ENTRY = 18
START_INFO_MAGIC = 0x336E_C578

_PT_LOAD, _PT_NOTE = 1, 4
_PROGRAM_HEADERS_MAX = 64
_NOTES_BYTES_MAX = 64 << 10
_ELF64 = struct.Struct("<16sHHIQQQIHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE = struct.Struct("<III")
_START_INFO = struct.Struct("<IIIIQQQQII")
_MODULE = struct.Struct("<QQQQ")
_MEMORY_ENTRY = struct.Struct("<QQII")


class _Segment(NamedTuple):
    """A program header, as far as it matters here."""

    kind: int
    offset: int
    address: int
    file_bytes: int
    memory_bytes: int


def load_kernel(low: memoryview, kernel: int) -> tuple[int, int]:
    """Put the kernel's segments where they belong; the end of the highest, and the entry's address.

    Raises ``BootImageError`` or ``OSError``.
    """
    segments = list(_read_segments(kernel))
    entry = _find_entry(kernel, segments)
    end = layout.KERNEL
    for segment in segments:
        if segment.kind == _PT_LOAD:
            room = find_room(low, segment.address, segment.memory_bytes, "the kernel")
            if segment.address < layout.KERNEL or segment.file_bytes > segment.memory_bytes:
                raise BootImageError("the kernel's segments make no sense")
            read_into(kernel, room[: segment.file_bytes], segment.offset)
            room[segment.file_bytes :] = bytes(segment.memory_bytes - segment.file_bytes)
            end = max(end, segment.address + segment.memory_bytes)
    return end, entry


def write_start_info(low: memoryview, initrd: int, initrd_bytes: int, ranges: Sequence[MemoryRange]) -> None:
    """Write struct hvm_start_info, version 1, with one module (the initial RAM disk) and the memory map."""
    modules = layout.START_INFO + _START_INFO.size
    table = modules + _MODULE.size
    info = _START_INFO.pack(
        START_INFO_MAGIC, 1, 0, 1 if initrd_bytes else 0, modules, layout.COMMAND_LINE, layout.ACPI_TABLES,
        table, len(ranges), 0,
    )  # fmt: skip
    info += _MODULE.pack(initrd, initrd_bytes, 0, 0)
    info += b"".join(_MEMORY_ENTRY.pack(*entry, 0) for entry in ranges)
    low[layout.START_INFO : layout.START_INFO + len(info)] = info


def _read_segments(kernel: int) -> Iterator[_Segment]:
    data = os.pread(kernel, _ELF64.size, 0)
    if len(data) < _ELF64.size or data[4] != 2 or data[5] != 1:
        raise BootImageError("the kernel is no 64-bit ELF file")
    header = _ELF64.unpack(data)
    offset, size, count = header[5], header[9], header[10]
    if size != _PROGRAM_HEADER.size or count > _PROGRAM_HEADERS_MAX:
        raise BootImageError("the kernel's ELF header makes no sense")
    table = os.pread(kernel, size * count, offset)
    if len(table) < size * count:
        raise BootImageError("the kernel is cut off")
    for kind, _, start, _, address, file_bytes, memory_bytes, _ in _PROGRAM_HEADER.iter_unpack(table):
        yield _Segment(kind, start, address, file_bytes, memory_bytes)


def _find_entry(kernel: int, segments: Sequence[_Segment]) -> int:
    for segment in segments:
        if segment.kind == _PT_NOTE:
            notes = os.pread(kernel, min(segment.file_bytes, _NOTES_BYTES_MAX), segment.offset)
            for name, kind, description in _parse_notes(notes):
                if (name, kind) == (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) and len(description) in (4, 8):
                    return int.from_bytes(description, "little")
    raise BootImageError("the ELF kernel has no PVH entry", remedy="use its bzImage")


def _parse_notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    place = 0
    while place + _NOTE.size <= len(data):
        name_bytes, description_bytes, kind = _NOTE.unpack_from(data, place)
        name = place + _NOTE.size
        description = name + -(-name_bytes // 4) * 4
        yield data[name : name + name_bytes], kind, data[description : description + description_bytes]
        place = description + -(-description_bytes // 4) * 4
