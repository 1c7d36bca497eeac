"""The Linux/x86 boot protocol: a bzImage entered in 64-bit mode.

Source: Linux Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header", "64-bit Boot Protocol"),
Documentation/arch/x86/zero-page.rst, arch/x86/include/uapi/asm/bootparam.h.
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
    from collections.abc import Sequence

ENTRY_64 = 0x200
SECTOR = 512
VERSION_NEEDED = 0x20C  # 2.12: xloadflags, Linux 3.8
XLF_KERNEL_64 = 1
TYPE_OF_LOADER = 0xFF  # none of the registered ones

# offsets in the file's first sectors and in the zero page alike
_HEADER = 0x1F1
_JUMP = 0x200
_MAGIC = 0x202
# in the zero page alone
_ACPI_RSDP = 0x070
_E820_ENTRIES = 0x1E8
_E820_TABLE = 0x2D0
_E820_ENTRY = struct.Struct("<QQI")


class Header(NamedTuple):
    """What the kernel says of itself; ``raw`` is the setup header as it lies in the file."""

    raw: bytes
    setup_bytes: int
    kernel_bytes: int
    load_address: int
    room_bytes: int
    initrd_end: int


def read_header(kernel: int) -> Header:
    """Read the setup header. Raises ``BootImageError`` for what is no 64-bit bzImage, or ``OSError``."""
    start = os.pread(kernel, 2 * SECTOR, 0)
    if len(start) < 0x268 or start[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise BootImageError("the kernel is neither a bzImage nor an ELF file")
    (version,) = struct.unpack_from("<H", start, 0x206)
    (xloadflags,) = struct.unpack_from("<H", start, 0x236)
    if version < VERSION_NEEDED or not xloadflags & XLF_KERNEL_64:
        raise BootImageError("the kernel cannot be started in 64-bit mode", remedy="use the QEMU VMM")
    setup_bytes = ((start[0x1F1] or 4) + 1) * SECTOR
    kernel_bytes = os.fstat(kernel).st_size - setup_bytes
    preferred, init_size = struct.unpack_from("<QI", start, 0x258)
    relocatable = start[0x234]
    (initrd_max,) = struct.unpack_from("<I", start, 0x22C)
    return Header(
        raw=start[_HEADER : _MAGIC + start[_JUMP + 1]],
        setup_bytes=setup_bytes,
        kernel_bytes=kernel_bytes,
        load_address=preferred if preferred >= layout.KERNEL or not relocatable else layout.KERNEL,
        room_bytes=max(init_size, kernel_bytes),
        initrd_end=initrd_max + 1,
    )


def load_kernel(low: memoryview, kernel: int, header: Header) -> tuple[int, int]:
    """Put the protected-mode kernel where it wants to be; where it lies, and where its room ends.

    Raises ``BootImageError`` or ``OSError``.
    """
    start = header.load_address
    find_room(low, start, header.room_bytes, "the kernel")
    if start < layout.KERNEL or header.kernel_bytes <= 0:
        raise BootImageError("the kernel's header makes no sense")
    read_into(kernel, low[start : start + header.kernel_bytes], header.setup_bytes)
    return start, start + header.room_bytes


def write_zero_page(
    low: memoryview, header: Header, initrd: int, initrd_bytes: int, ranges: Sequence[MemoryRange]
) -> None:
    """Write struct boot_params: the header, and what a boot loader fills in."""
    page = bytearray(4096)
    page[_HEADER : _HEADER + len(header.raw)] = header.raw
    page[0x210] = TYPE_OF_LOADER
    struct.pack_into("<II", page, 0x218, initrd, initrd_bytes)
    struct.pack_into("<I", page, 0x228, layout.COMMAND_LINE)
    struct.pack_into("<Q", page, _ACPI_RSDP, layout.ACPI_TABLES)
    page[_E820_ENTRIES] = len(ranges)
    for place, entry in enumerate(ranges):
        _E820_ENTRY.pack_into(page, _E820_TABLE + place * _E820_ENTRY.size, *entry)
    low[layout.ZERO_PAGE : layout.ZERO_PAGE + len(page)] = page
