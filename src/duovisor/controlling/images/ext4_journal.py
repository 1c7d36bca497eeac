"""What ext4's journal holds of blocks that have not reached their places: after a crash, or a pulled plug.

Nothing is written: blocks are read from the journal instead. As in the kernel's own recovery, a transaction
counts when its commit block is there. Fast commits, which mke2fs does not turn on, are not looked at. Nothing
is trusted: each block of the journal is read at most once. Sources: Linux
Documentation/filesystems/ext4/journal.rst, fs/jbd2/recovery.c.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.disk_reader import DiskReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.controlling.images.disk_reader import DiskReader

MAGIC = 0xC03B3998
BLOCKS_MAX = 1 << 18  # 1 GiB of 4 KiB, the most that mke2fs makes
REVOKED_MAX = 1 << 20
_64_BIT, _CHECKSUM_2, _CHECKSUM_3, _FAST_COMMIT = 2, 8, 16, 32
_ESCAPED, _SAME_UUID, _DELETED, _LAST = 1, 2, 4, 8
_FAST_COMMIT_BLOCKS = 256
_HEADER = struct.Struct(">III")  # magic, what it is, number of the transaction


class Kind(IntEnum):
    """What a block of the journal is; after a descriptor come the copies that it tells of."""

    DESCRIPTOR = 1
    COMMIT = 2
    SUPERBLOCK_1 = 3
    SUPERBLOCK_2 = 4
    REVOKE = 5


class Copy(NamedTuple):
    """Where the newest content of a block is: a block of the journal; ``escaped``: its first bytes are its
    magic number, which the journal does not keep."""

    place: int
    escaped: bool


class Layout(NamedTuple):
    """How a journal is written: blocks from ``first`` to before ``end``, around and around."""

    first: int
    end: int
    sequence: int
    start: int
    features: int


def read_journal(read: Callable[[int], bytes], blocks: int) -> dict[int, Copy]:
    """Blocks of the file system that are newer in its journal.

    ``read`` returns the journal's block of a number; it has ``blocks``. Raises ``DiskReadError``.
    """
    layout = parse_superblock(read(0), blocks)
    if not layout.start:
        return {}
    found: dict[int, Copy] = {}
    revoked: dict[int, int] = {}
    written: list[tuple[int, int, Copy]] = []
    for sequence, copies, gone in _transactions(read, layout):
        written += [(sequence, block, copy) for block, copy in copies]
        revoked |= dict.fromkeys(gone, sequence)
    for sequence, block, copy in written:
        if revoked.get(block, -1) < sequence:
            found[block] = copy
    return found


def parse_superblock(block: bytes, blocks: int) -> Layout:
    """The journal's first block. Raises ``DiskReadError``."""
    magic, kind, _ = _HEADER.unpack_from(block)
    if magic != MAGIC or kind not in (Kind.SUPERBLOCK_1, Kind.SUPERBLOCK_2):
        raise DiskReadError("the journal has no superblock")
    size, length, first, sequence, start = struct.unpack_from(">IIIII", block, 12)
    (features,) = struct.unpack_from(">I", block, 40) if kind == Kind.SUPERBLOCK_2 else (0,)
    end = min(length, blocks)
    if features & _FAST_COMMIT:
        (fast,) = struct.unpack_from(">I", block, 84)
        end -= fast or _FAST_COMMIT_BLOCKS
    if size != len(block) or not 0 < first < end <= BLOCKS_MAX or (start and not first <= start < end):
        raise DiskReadError("the journal makes no sense")
    return Layout(first, end, sequence, start, features)


_Transaction = tuple[int, list[tuple[int, Copy]], list[int]]


def _transactions(read: Callable[[int], bytes], layout: Layout) -> Iterator[_Transaction]:
    """Each whole transaction: its number, the copies of blocks in it, and the blocks that it revokes."""
    at, sequence, left = layout.start, layout.sequence, layout.end - layout.first
    copies: list[tuple[int, Copy]] = []
    revoked: list[int] = []
    revoked_left = REVOKED_MAX

    def advance(count: int) -> int:
        return layout.first + (at - layout.first + count) % (layout.end - layout.first)

    while left > 0:
        block = read(at)
        magic, kind, number = _HEADER.unpack_from(block)
        if magic != MAGIC or number != sequence:
            return
        at, left = advance(1), left - 1
        match kind:
            case Kind.DESCRIPTOR:
                for target, escaped in _parse_tags(block, layout.features):
                    copies.append((target, Copy(at, escaped)))
                    at, left = advance(1), left - 1
                    if left <= 0:
                        return
            case Kind.REVOKE:
                revoked += _parse_revoked(block, layout.features)
                revoked_left -= len(revoked)
                if revoked_left < 0:
                    raise DiskReadError("the journal revokes more blocks than anybody would")
            case Kind.COMMIT:
                yield sequence, copies, revoked
                copies, revoked, sequence = [], [], sequence + 1
            case _:
                return


def _parse_tags(block: bytes, features: int) -> Iterator[tuple[int, bool]]:
    """A descriptor's tags: the block that each following one is a copy of, and whether it is escaped."""
    if features & _CHECKSUM_3:
        size = 16
    else:
        size = 8 + (4 if features & _64_BIT else 0) + (2 if features & _CHECKSUM_2 else 0)
    end = len(block) - (4 if features & (_CHECKSUM_2 | _CHECKSUM_3) else 0)
    place = _HEADER.size
    while place + size <= end:
        (target,) = struct.unpack_from(">I", block, place)
        if features & _CHECKSUM_3:
            (flags,) = struct.unpack_from(">I", block, place + 4)
        else:
            (flags,) = struct.unpack_from(">H", block, place + 6)
        if features & _64_BIT:
            target |= struct.unpack_from(">I", block, place + 8)[0] << 32
        if not flags & _DELETED:
            yield target, bool(flags & _ESCAPED)
        place += size + (0 if flags & _SAME_UUID else 16)
        if flags & _LAST:
            return


def _parse_revoked(block: bytes, features: int) -> list[int]:
    (used,) = struct.unpack_from(">I", block, 12)
    size = 8 if features & _64_BIT else 4
    return [int.from_bytes(block[at : at + size]) for at in range(16, min(used, len(block)) - size + 1, size)]


class JournaledDisk:
    """A file system as its journal would leave it; ``places`` are bytes where copies of blocks begin."""

    def __init__(self, disk: DiskReader, start: int, block: int, copies: dict[int, tuple[int, bool]]) -> None:
        self._disk, self._start, self._block = disk, start, block
        self._copies = copies
        self.size = disk.size

    def read(self, offset: int, size: int) -> bytes:
        """As ``DiskReader.read``; ``offset`` counts from the disk's beginning."""
        data = self._disk.read(offset, size)
        first, last = (offset - self._start) // self._block, (offset - self._start + size) // self._block
        if not any(number in self._copies for number in range(first, last + 1)):
            return data
        patched = bytearray(data)
        for number in range(first, last + 1):
            if number in self._copies:
                place, escaped = self._copies[number]
                copy = self._disk.read(place, self._block)
                if escaped:
                    copy = MAGIC.to_bytes(4) + copy[4:]
                begin = self._start + number * self._block - offset
                skip = max(0, -begin)
                piece = copy[skip : skip + size - max(0, begin)]
                patched[max(0, begin) : max(0, begin) + len(piece)] = piece
        return bytes(patched)
