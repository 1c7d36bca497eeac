"""Loading kernels: a bzImage and an ELF file with a PVH note, both made here; and files that are neither."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.thin_vmm.micro_guest import build_image

from duovisor.hypervisor.thin import boot, layout
from duovisor.hypervisor.thin.errors import BootImageError
from duovisor.hypervisor.thin.memory import Memory, build_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@pytest.fixture
def memory() -> Iterator[Memory]:
    descriptor = os.memfd_create("guest")
    os.ftruncate(descriptor, 32 * MIB)
    yield Memory(descriptor, 32 * MIB)
    os.close(descriptor)


@pytest.fixture
def open_file(tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    opened: list[int] = []

    def write(data: bytes) -> int:
        path = tmp_path / str(len(opened))
        path.write_bytes(data)
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1]

    yield write
    for descriptor in opened:
        os.close(descriptor)


def build_elf(
    code: bytes, *, address: int = 0x200000, note: tuple[bytes, int] = (b"Xen\0", 18), memory: int = 0
) -> bytes:
    """An ELF-64 file with one segment to load and one with a note that says where it begins."""
    name, kind = note
    notes = struct.pack("<III", len(name), 8, kind) + name + struct.pack("<Q", address + 4)
    headers = 64 + 2 * 56
    file = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    size = memory or len(code)
    file += struct.pack("<IIQQQQQQ", 1, 7, headers + len(notes), address, address, len(code), size, 4)
    file += struct.pack("<IIQQQQQQ", 4, 4, headers, 0, 0, len(notes), len(notes), 4)
    return file + notes + code


def test_bzimage_lies_where_it_prefers(memory: Memory, open_file: Callable[[bytes], int]) -> None:
    files = boot.BootFiles(open_file(build_image(b"code")), open_file(b"initrd" * 1000), "console=hvc0")
    assert boot.load(memory, files) == boot.Entry(0x100200, layout.ZERO_PAGE, is_64_bit=True)
    low = memory.low
    assert bytes(low[0x100200:0x100204]) == b"code"
    page = low[layout.ZERO_PAGE : layout.ZERO_PAGE + 4096]
    assert bytes(page[0x202:0x206]) == b"HdrS"
    initrd, size = struct.unpack_from("<II", page, 0x218)
    assert (initrd % 4096, size) == (0, 6000)
    assert bytes(low[initrd : initrd + 12]) == b"initrdinitrd"
    (command_line,) = struct.unpack_from("<I", page, 0x228)
    assert bytes(low[command_line : command_line + 13]) == b"console=hvc0\0"
    assert struct.unpack_from("<Q", page, 0x70) == (layout.ACPI_TABLES,)
    assert page[0x1E8] == 5
    assert struct.unpack_from("<QQI", page, 0x2D0) == (0, layout.LOW_MEMORY_END, 1)


def test_elf_begins_where_its_note_says(memory: Memory, open_file: Callable[[bytes], int]) -> None:
    memory.low[0x200000:0x200010] = b"x" * 16
    kernel = open_file(build_elf(b"code", memory=16))
    assert boot.load(memory, boot.BootFiles(kernel, open_file(b"initrd"), "a=b")) == boot.Entry(
        0x200004, layout.START_INFO, is_64_bit=False
    )
    low = memory.low
    assert bytes(low[0x200000:0x200010]) == b"code" + bytes(12)
    info = struct.unpack_from("<IIIIQQQQII", low, layout.START_INFO)
    magic, version, _, modules, module_list, command_line, rsdp, table, entries, _ = info
    assert (magic, version, modules, command_line) == (0x336EC578, 1, 1, layout.COMMAND_LINE)
    assert rsdp == layout.ACPI_TABLES
    initrd, size, *_ = struct.unpack_from("<QQQQ", low, module_list)
    assert bytes(low[initrd : initrd + size]) == b"initrd"
    assert struct.unpack_from("<QQII", low, table) == (0, layout.LOW_MEMORY_END, 1, 0)
    assert entries == 5


@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        (b"", "neither a bzImage nor an ELF file"),
        (b"MZ" * 1000, "neither a bzImage nor an ELF file"),
        (b"\x7fELF", "no 64-bit ELF file"),
        (build_elf(b"", note=(b"Xen\0", 17)), "has no PVH entry"),
        (build_elf(b"", note=(b"GNU\0", 18)), "has no PVH entry"),
        (build_elf(b"code")[:-1], "is cut off"),
        (build_elf(b"code", address=0x1000), "make no sense"),
        (build_elf(b"code", address=32 * MIB - 3), "needs 32 MiB of memory, there are 32 MiB"),
        (build_elf(b"code", address=1 << 63), "of memory, there are 32 MiB"),
        (build_image(b"")[:1024], "makes no sense"),
        (build_image(b"").replace(b"\x0f\x02", b"\x0b\x02", 1), "cannot be started in 64-bit mode"),
    ],
)
def test_a_kernel_that_is_none(
    memory: Memory, open_file: Callable[[bytes], int], kernel: bytes, complaint: str
) -> None:
    with pytest.raises(BootImageError, match=complaint):
        boot.load(memory, boot.BootFiles(open_file(kernel), None, ""))


def test_a_ram_disk_that_does_not_fit(memory: Memory, open_file: Callable[[bytes], int]) -> None:
    files = boot.BootFiles(open_file(build_image(b"")), open_file(bytes(31 * MIB)), "")
    with pytest.raises(BootImageError, match=r"initial RAM disk of 31 MiB .* do not fit into 32 MiB"):
        boot.load(memory, files)


@given(data=st.data())
def test_any_file_is_loaded_or_refused(data: st.DataObject) -> None:
    base = bytearray(data.draw(st.sampled_from([build_image(b"code"), build_elf(b"code")])))
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, len(base) - 1))
        base[place] = data.draw(st.integers(0, 255))
    kernel, guest = os.memfd_create("kernel"), os.memfd_create("guest")
    try:
        os.write(kernel, base[: data.draw(st.integers(0, len(base)))])
        os.ftruncate(guest, 32 * MIB)
        memory = Memory(guest, 32 * MIB)
        try:
            entry = boot.load(memory, boot.BootFiles(kernel, None, ""))
        except BootImageError:
            return
        assert entry.info in (layout.ZERO_PAGE, layout.START_INFO)
    finally:
        os.close(kernel)
        os.close(guest)


@pytest.mark.parametrize(
    ("size", "pieces"),
    [
        (GIB, [(0, GIB, 0)]),
        (3 * GIB, [(0, 3 * GIB, 0)]),
        (5 * GIB, [(0, 3 * GIB, 0), (4 * GIB, 2 * GIB, 3 * GIB)]),
    ],
)
def test_memory_goes_round_the_window(size: int, pieces: list[tuple[int, int, int]]) -> None:
    assert [tuple(piece) for piece in build_pieces(size)] == pieces
    ranges = boot.build_memory_map(size, min(size, 3 * GIB))
    ram = sum(each.size for each in ranges if each.kind == 1)
    assert size - MIB < ram < size
