"""Reads a disk image as its guest sees it: raw, or qcow2 with what is below it. No program, no mount.

Nothing in an image is trusted: what makes no sense is a ``DiskReadError``, and what is read is bounded.
Source: QEMU docs/interop/qcow2.txt.
"""

from __future__ import annotations

import os
import zlib
from contextlib import ExitStack, contextmanager
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from duovisor.controlling.formats.headers import HEAD_BYTES, HeaderError, guess_format, parse_qcow2
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from duovisor.hypervisor.qemu.images import ImageFile

READ_BYTES_MAX, OFFSET_MAX = 1 << 30, 1 << 62
_HEADER = Struct(">4sIQIIQIIQ")  # …, cluster bits, size, encryption, entries of L1, place of L1
_L1_ENTRIES_MAX = 4 << 20
_PLACE = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZERO = 1 << 62, 1
_DEFLATE_WINDOW = -12  # 4 KiB, without a header


class DiskReadError(ValueError):
    """What is on the disk cannot be read, and why."""


class DiskReader(Protocol):
    """A disk of which ranges of bytes can be read."""

    @property
    def size(self) -> int:
        """Bytes in it."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises ``DiskReadError`` or ``OSError``."""


def open_reader(descriptor: int) -> DiskReader:
    """The reader for an open image with nothing below it, by its first bytes.

    Raises ``DiskReadError`` or ``OSError``.
    """
    head = os.pread(descriptor, HEAD_BYTES, 0)
    match guess_format(head):
        case None:
            return RawReader(descriptor)
        case DiskFormat.QCOW2:
            return Qcow2Reader(descriptor, head)
        case other:
            raise DiskReadError(f"a {other} image is not read here")


@contextmanager
def open_chain(chain: Sequence[ImageFile]) -> Iterator[DiskReader]:
    """The reader for an image and those below it, top first, whose headers were held against that.

    Raises ``DiskReadError`` or ``OSError``.
    """
    reader: DiskReader | None = None
    with ExitStack() as files:
        for image in reversed(chain):
            descriptor = os.open(
                image.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            )  # if it became a FIFO
            files.callback(os.close, descriptor)
            match image.format:
                case DiskFormat.RAW:
                    reader = RawReader(descriptor)
                case DiskFormat.QCOW2:
                    reader = Qcow2Reader(descriptor, os.pread(descriptor, HEAD_BYTES, 0), reader)
                case other:
                    raise DiskReadError(f"a {other} image is not read here")
        assert reader is not None  # no chain is empty
        yield reader


class RawReader:
    """Of an image that is the disk."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def read(self, offset: int, size: int) -> bytes:
        check_range(offset, size)
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise DiskReadError(f"the disk ends before {offset + size} bytes")
        return data


class Qcow2Reader:
    """Of a qcow2 image; what it has no cluster for is in the image ``below``, or zeros."""

    def __init__(self, descriptor: int, head: bytes, below: DiskReader | None = None) -> None:
        try:
            backing = parse_qcow2(head)
        except HeaderError as error:
            raise DiskReadError(f"the image {error}") from error
        if (backing is not None) != (below is not None):
            raise DiskReadError(f"the image has {'another' if below is None else 'nothing'} below it")
        _, _, _, _, bits, self.size, _, entries, place = _HEADER.unpack_from(head)
        if not 9 <= bits <= 21 or entries > _L1_ENTRIES_MAX:
            raise DiskReadError("the qcow2 header makes no sense")
        self._descriptor, self._below = descriptor, below
        self._bits, self._cluster = bits, 1 << bits
        check_range(place, entries * 8)
        table = os.pread(descriptor, entries * 8, place)
        self._l1 = Struct(f">{len(table) // 8}Q").unpack(table[: len(table) // 8 * 8])
        self._l2: dict[int, bytes] = {}

    def read(self, offset: int, size: int) -> bytes:
        check_range(offset, size)
        if offset + size > self.size:
            raise DiskReadError(f"the disk ends before {offset + size} bytes")
        return b"".join(self._pieces(offset, size))

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        while size:
            within = offset & self._cluster - 1
            take = min(size, self._cluster - within)
            entry = self._find_entry(offset >> self._bits)
            if entry & _COMPRESSED:
                yield self._inflate(entry)[within : within + take]
            elif entry & _ZERO:
                yield bytes(take)
            elif not entry & _PLACE:
                yield self._read_below(offset, take)
            else:
                yield self._get((entry & _PLACE) + within, take)
            offset, size = offset + take, size - take

    def _read_below(self, offset: int, size: int) -> bytes:
        """What is below may be smaller; beyond its end are zeros."""
        if self._below is None:
            return bytes(size)
        there = max(0, min(size, self._below.size - offset))
        return (self._below.read(offset, there) if there else b"") + bytes(size - there)

    def _find_entry(self, cluster: int) -> int:
        per_table = self._cluster // 8
        index, within = divmod(cluster, per_table)
        if index >= len(self._l1):
            raise DiskReadError("the qcow2 tables are too short")
        place = self._l1[index] & _PLACE
        if not place:
            return 0
        if place not in self._l2:
            self._l2.clear()  # one at a time: files lie close together
            self._l2[place] = self._get(place, self._cluster)
        return int.from_bytes(self._l2[place][within * 8 : within * 8 + 8])

    def _inflate(self, entry: int) -> bytes:
        bits = 62 - (self._bits - 8)
        place, sectors = entry & (1 << bits) - 1, (entry & _COMPRESSED - 1) >> bits
        packed = os.pread(self._descriptor, (sectors + 1) * 512 - (place & 511), place)
        try:
            data = zlib.decompressobj(_DEFLATE_WINDOW).decompress(packed, self._cluster)
        except zlib.error as error:
            raise DiskReadError("a compressed cluster cannot be read") from error
        if len(data) < self._cluster:
            raise DiskReadError("a compressed cluster is cut off")
        return data

    def _get(self, place: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, place)
        # the image's last cluster may end with the file
        return data if len(data) == size else data + bytes(size - len(data))


def check_range(offset: int, size: int) -> None:
    """Raises ``DiskReadError`` for what nobody asks for in earnest."""
    if not 0 <= offset <= OFFSET_MAX or not 0 <= size <= READ_BYTES_MAX:
        raise DiskReadError(f"{size} bytes at {offset} are out of reach")
