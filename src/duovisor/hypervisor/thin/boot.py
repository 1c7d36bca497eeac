"""Loads a Linux kernel and says how the first processor begins.

Two ways in: a bzImage by the 64-bit boot protocol (Linux Documentation/arch/x86/boot.rst) and an ELF kernel
with a PVH note (Xen docs/misc/pvh.pandoc). Nothing of the files is trusted: they may come out of an image
that the guest itself wrote.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from duovisor.hypervisor.thin import bzimage, layout, pvh
from duovisor.hypervisor.thin.boot_file import RAM, RESERVED, MemoryRange, read_into
from duovisor.hypervisor.thin.errors import BootImageError
from duovisor.hypervisor.thin.ports import HIGH_MEMORY_START

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.hypervisor.thin.memory import Memory

PAGE_BYTES = 4096
_ELF = b"\x7fELF"


class BootFiles(NamedTuple):
    """The open files and the command line; descriptors stay open, for a reset boots again."""

    kernel: int
    initrd: int | None
    command_line: str


class Entry(NamedTuple):
    """How the first processor begins: at ``address``, in 64-bit mode or (PVH) in 32-bit protected mode."""

    address: int
    info: int
    is_64_bit: bool


def load(memory: Memory, files: BootFiles) -> Entry:
    """Put the kernel, its RAM disk and command line into guest memory. Raises ``BootImageError``."""
    low = memory.low
    command_line = files.command_line.encode() + b"\0"
    if len(command_line) > layout.COMMAND_LINE_BYTES:
        raise BootImageError(f"the command line has more than {layout.COMMAND_LINE_BYTES - 1} bytes")
    low[layout.COMMAND_LINE : layout.COMMAND_LINE + len(command_line)] = command_line
    ranges = build_memory_map(memory.size, len(low))
    try:
        if os.pread(files.kernel, 4, 0) == _ELF:
            kernel_end, address = pvh.load_kernel(low, files.kernel)
            start, size = load_initrd(low, files.initrd, kernel_end, len(low))
            pvh.write_start_info(low, start, size, ranges)
            return Entry(address, layout.START_INFO, is_64_bit=False)
        header = bzimage.read_header(files.kernel)
        address, kernel_end = bzimage.load_kernel(low, files.kernel, header)
        start, size = load_initrd(low, files.initrd, kernel_end, min(header.initrd_end, len(low)))
        bzimage.write_zero_page(low, header, start, size, ranges)
    except OSError as error:
        raise BootImageError(f"a boot file cannot be read: {error.strerror}") from error
    return Entry(address + bzimage.ENTRY_64, layout.ZERO_PAGE, is_64_bit=True)


def build_memory_map(size: int, low_size: int) -> list[MemoryRange]:
    """What lies where, of ``size`` bytes of memory of which ``low_size`` are below 4 GiB."""
    ranges = [
        MemoryRange(0, layout.LOW_MEMORY_END, RAM),
        MemoryRange(layout.LOW_MEMORY_END, 0xA0000 - layout.LOW_MEMORY_END, RESERVED),
        MemoryRange(layout.ACPI_TABLES, layout.KERNEL - layout.ACPI_TABLES, RESERVED),
        MemoryRange(layout.KERNEL, low_size - layout.KERNEL, RAM),
        MemoryRange(layout.KVM_PAGES, 4 * PAGE_BYTES, RESERVED),
    ]
    if size > low_size:
        ranges.append(MemoryRange(HIGH_MEMORY_START, size - low_size, RAM))
    return ranges


def load_initrd(low: memoryview, initrd: int | None, kernel_end: int, end: int) -> tuple[int, int]:
    """Put the initial RAM disk as high as it may lie; its address and size, 0 without one."""
    if initrd is None:
        return 0, 0
    size = os.fstat(initrd).st_size
    start = (end - size) // PAGE_BYTES * PAGE_BYTES
    if start < kernel_end:
        raise BootImageError(
            f"the initial RAM disk of {size >> 20} MiB and the kernel do not fit into {end >> 20} MiB",
            remedy="give the VM more memory",
        )
    read_into(initrd, low[start : start + size], 0)
    return start, size
