"""The dirty log: one bit per 4 KiB page of guest memory that this back end wrote, for live migration.

The log is shared with the front end, which clears words while we set bits, and with the other back ends of
the same VM: a bit must be set atomically or a neighbour's is lost. Python has no atomic OR, but the kernel
has one for user memory: ``futex(FUTEX_WAKE_OP)`` performs ``word |= 1 << n`` atomically before it wakes
nobody. A bit that is set already costs no system call, so a page costs one call per round of the migration.
``ctypes`` is imported only when a migration begins.
"""

from __future__ import annotations

import mmap
import os

from duovisor.channel.errors import ProtocolError
from duovisor.channel.fence import make_memory_fence

PAGE_BYTES = 4096
_PAGE_SHIFT = 12
_SYS_FUTEX = 202  # x86-64
_FUTEX_WAKE_OP = 5
_OP_OR_SHIFTED_COMPARE_EQUAL = (8 | 2) << 28  # FUTEX_OP_OPARG_SHIFT | FUTEX_OP_OR; compare with 0


class DirtyLog:
    """A mapped log that covers guest addresses from 0."""

    def __init__(self, mapping: mmap.mmap, offset: int, size: int) -> None:
        from ctypes import CDLL, addressof, c_char, c_int, c_long, c_void_p

        self._mapping = mapping
        self._words = memoryview(mapping)[offset : offset + size].cast("I")
        self._address = addressof(c_char.from_buffer(mapping)) + offset
        self._syscall = CDLL(None, use_errno=True).syscall
        self._syscall.argtypes = [c_long, c_void_p, c_int, c_int, c_void_p, c_void_p, c_int]
        self._as_int = c_int
        self._fence = make_memory_fence()
        self.size = size

    @property
    def guest_end(self) -> int:
        """The first guest address that the log does not cover."""
        return self.size * 8 * PAGE_BYTES

    def mark(self, address: int, length: int) -> None:
        """Mark the pages of a guest range as written; call it after the bytes are stored.

        Raises ``ProtocolError`` when the log does not cover the range.
        """
        if length <= 0:
            return
        if address + length > self.guest_end:
            raise ProtocolError(f"the dirty log ends before guest address {address + length:#x}")
        # The bytes must be visible before we look at a bit that the front end may be clearing.
        self._fence()
        for page in range(address >> _PAGE_SHIFT, ((address + length - 1) >> _PAGE_SHIFT) + 1):
            if not self._words[page >> 5] >> (page & 31) & 1:
                self._set_bit(page >> 5, page & 31)

    def _set_bit(self, word: int, bit: int) -> None:
        operation = self._as_int(_OP_OR_SHIFTED_COMPARE_EQUAL - (1 << 32) | bit << 12)
        address = self._address + word * 4
        if self._syscall(_SYS_FUTEX, address, _FUTEX_WAKE_OP, 0, None, address, operation) < 0:
            raise ProtocolError("the dirty log's memory does not allow atomic operations")


def map_dirty_log(descriptor: int, size: int, offset: int) -> DirtyLog:
    """Map the log of SET_LOG_BASE; the caller keeps the descriptor and closes it.

    ``size`` and ``offset`` in bytes. Raises ``ProtocolError`` when they do not fit the file.
    """
    if not size or size % 8 or offset % 8:
        raise ProtocolError(f"a dirty log of {size} bytes at {offset} is not made of 64-bit words")
    try:
        if offset + size > os.fstat(descriptor).st_size:
            raise ProtocolError(f"the dirty log ends at {offset + size}, behind the end of its file")
        mapping = mmap.mmap(descriptor, offset + size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"the dirty log cannot be mapped: {error}") from error
    return DirtyLog(mapping, offset, size)
