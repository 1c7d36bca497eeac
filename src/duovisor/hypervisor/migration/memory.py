"""The section ``ram`` of a migration stream: the guest's memory blocks, and those pages that no file shares.

With ``x-ignore-shared`` the guest's main memory is only named; what is copied are small blocks that each VMM
has for itself, as firmware and ACPI tables. Source: QEMU ``migration/ram.c``, 7.2 and 10.0.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from duovisor.hypervisor.migration.description import PAGE_BYTES

if TYPE_CHECKING:
    from duovisor.hypervisor.migration.reader import Reader

SECTION = "ram"
SECTION_VERSION = 4

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
# what only capabilities that we never switch on would bring
_OTHER_FLAGS = {
    0x01: "FULL",
    0x40: "XBZRLE",
    0x80: "HOOK",
    0x100: "COMPRESS_PAGE",
    0x200: "MULTIFD_FLUSH",
}
_FLAGS = PAGE_BYTES - 1
_U64 = Struct(">Q")


class MemoryBlocks:
    """The blocks by name, in bytes, and the one that the next page belongs to if it does not say."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        self.addressed = False
        self._current = ""

    def read_setup(self, reader: Reader, *, addressed: bool) -> None:
        """Read the list of blocks; each has its address where shared ones are left out (``addressed``).

        Raises ``StreamError``.
        """
        start = reader.at
        head = reader.u64("size of all memory")
        if head & _FLAGS != MEM_SIZE:
            raise reader.fail(f"the memory's size has the flags {describe_flags(head)}", start)
        left = head & ~_FLAGS
        while left > 0:
            start = reader.at
            name = reader.name("memory block")
            size = reader.u64(f"memory block {name}")
            if addressed:
                reader.skip(8, f"memory block {name}")
            if name in self.bytes or size % PAGE_BYTES or not 0 < size <= left:
                raise reader.fail(
                    f"memory block {name} of {size} bytes: twice, or of no possible size", start
                )
            self.bytes[name] = size
            left -= size
        self.read_pages(reader, only_end=True)

    def read_pages(self, reader: Reader, *, only_end: bool = False) -> None:
        """Pass pages over until the end of this part. Raises ``StreamError``."""
        while True:
            start = reader.skip(8, "memory page")
            head = _U64.unpack_from(reader.data, start)[0]
            flags = head & _FLAGS
            if head == EOS:
                return
            if flags & ~CONTINUE not in (ZERO, PAGE) or only_end:
                raise reader.fail(f"a memory page has the flags {describe_flags(head)}", start)
            if not flags & CONTINUE:
                self._current = reader.name("memory block of a page")
            if (head & ~_FLAGS) + PAGE_BYTES > self.bytes.get(self._current, 0):
                raise reader.fail(f"a page at {head & ~_FLAGS:#x} is outside block {self._current!r}", start)
            if flags & PAGE:
                reader.skip(PAGE_BYTES, "memory page")
            else:
                reader.expect(0, reader.u8("zero page"), "the filling of a zero page")


def describe_flags(head: int) -> str:
    """The flags of a memory record by name; ``none``."""
    names = {
        ZERO: "ZERO",
        MEM_SIZE: "MEM_SIZE",
        PAGE: "PAGE",
        EOS: "EOS",
        CONTINUE: "CONTINUE",
        **_OTHER_FLAGS,
    }
    flags = head & _FLAGS
    known = [name for flag, name in sorted(names.items()) if flags & flag]
    rest = flags & ~sum(names)
    return " ".join([*known, *([f"{rest:#x}"] if rest else [])]) or "none"
