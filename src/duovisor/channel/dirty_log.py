"""The dirty log: one bit per 4 KiB page of guest memory that this back end wrote, for live migration.

The log is shared with the front end, which clears words while we set bits, and with the other back ends of
the same VM: a bit must be set atomically or a neighbour's is lost. Python has no atomic OR, but the kernel
has one for user memory: ``futex(FUTEX_WAKE_OP)`` performs ``word |= 1 << n`` atomically before it wakes
nobody. All 32 bits of a word can be set in one call, and bits that are set already cost none: a range costs,
per round of the migration, a call for each 32 pages and for each page at its ends.
``ctypes`` is imported only when a migration begins.
"""

from __future__ import annotations

from duovisor.channel.errors import ProtocolError
from duovisor.channel.fence import make_memory_fence
from duovisor.channel.memory import map_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap

PAGE_BYTES = 4096
_PAGE_SHIFT = 12
_WORD_PAGES = 32
_ALL_BITS = 0xFFFFFFFF
_SYS_FUTEX = 202  # x86-64
_FUTEX_WAKE_OP = 5
_OP_OR = 2 << 28  # FUTEX_OP_OR, whose 12-bit operand is extended by its sign; compare with 0
_OP_OR_SHIFTED = (8 | 2) << 28  # FUTEX_OP_OPARG_SHIFT: the operand is the number of a bit
_MINUS_ONE = 0xFFF


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
        words = self._words
        first, last = address >> _PAGE_SHIFT, (address + length - 1) >> _PAGE_SHIFT
        for word in range(first // _WORD_PAGES, last // _WORD_PAGES + 1):
            start = word * _WORD_PAGES
            low, high = max(first - start, 0), min(last - start, _WORD_PAGES - 1)
            missing = (_ALL_BITS >> (_WORD_PAGES - 1 - high)) & (_ALL_BITS << low) & ~words[word]
            if missing == _ALL_BITS:
                self._change(word, _OP_OR, _MINUS_ONE)
                continue
            while missing:
                bit = missing.bit_length() - 1
                self._change(word, _OP_OR_SHIFTED, bit)
                missing ^= 1 << bit

    def _change(self, word: int, operation: int, operand: int) -> None:
        encoded = self._as_int(operation | operand << 12)
        address = self._address + word * 4
        if self._syscall(_SYS_FUTEX, address, _FUTEX_WAKE_OP, 0, None, address, encoded) < 0:
            raise ProtocolError("the dirty log's memory does not allow atomic operations")


def map_dirty_log(descriptor: int, size: int, offset: int) -> DirtyLog:
    """Map the log of SET_LOG_BASE; the caller keeps the descriptor and closes it.

    ``size`` and ``offset`` in bytes. Raises ``ProtocolError`` when they do not fit the file.
    """
    if not size or size % 8 or offset % 8:
        raise ProtocolError(f"a dirty log of {size} bytes at {offset} is not made of 64-bit words")
    return DirtyLog(map_file(descriptor, offset, size, "the dirty log"), offset, size)
