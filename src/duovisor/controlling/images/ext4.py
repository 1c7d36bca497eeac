"""Reads files of an ext4 file system that nobody has mounted: plain functions over bytes, nothing is trusted.

What is in the journal and nowhere else yet is read from there. What a cloud image's root has no reason to
have (encryption, meta block groups, block maps of ext2, a journal elsewhere) is a ``DiskReadError``. Source:
Linux Documentation/filesystems/ext4.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from duovisor.controlling.images.disk_reader import DiskReadError
from duovisor.controlling.images.ext4_journal import BLOCKS_MAX, JournaledDisk, read_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.controlling.images.disk_reader import DiskReader

ROOT = 2
FOLDER_BYTES_MAX = 4 << 20  # of all folders that are looked at
_MAGIC = 0xEF53
_64_BIT, _RECOVER = 0x80, 0x4
# FILETYPE RECOVER EXTENTS 64BIT MMP FLEX_BG CSUM_SEED LARGEDIR
_UNDERSTOOD = 0x2 | _RECOVER | 0x40 | _64_BIT | 0x100 | 0x200 | 0x2000 | 0x4000
_EXTENTS_FLAG = 0x80000
_EXTENT_MAGIC = 0xF30A
_EXTENT_DEPTH_MAX = 5
_UNWRITTEN = 32768  # an extent that is longer is of zeros
_LINKS_MAX, _LINK_BYTES_MAX = 8, 4096


class Inode(NamedTuple):
    """A file or folder: its mode, its size, and the root of its tree of extents."""

    mode: int
    size: int
    tree: bytes


class Extent(NamedTuple):
    """``blocks`` of a file from ``first`` on lie from ``place`` on; ``place`` 0: they are zeros."""

    first: int
    blocks: int
    place: int


class Ext4:
    """The file system that begins at a byte of a disk. Raises ``DiskReadError`` if there is none."""

    def __init__(self, disk: DiskReader, start: int) -> None:
        self._start = start
        self._folders: dict[int, dict[str, int]] = {}
        self._folder_bytes_left = FOLDER_BYTES_MAX
        head = self._begin(disk)
        if struct.unpack_from("<I", head, 96)[0] & _RECOVER:
            (journal,) = struct.unpack_from("<I", head, 224)
            self._begin(self._recover(journal))

    def _begin(self, disk: DiskReader) -> bytes:
        """Read the superblock, which is returned."""
        head = disk.read(self._start + 1024, 1024)
        (magic,) = struct.unpack_from("<H", head, 56)
        if magic != _MAGIC:
            raise DiskReadError("no ext4 is there")
        first, shift = struct.unpack_from("<II", head, 20)
        (incompatible,) = struct.unpack_from("<I", head, 96)
        if incompatible & ~_UNDERSTOOD or shift > 6:
            raise DiskReadError(f"an ext4 with features {incompatible:#x} is not read here")
        self._disk = disk
        self._block = 1024 << shift
        (self._inodes_per_group,) = struct.unpack_from("<I", head, 40)
        (self._inode_bytes,) = struct.unpack_from("<H", head, 88)
        wide = bool(incompatible & _64_BIT)
        self._descriptor_bytes = struct.unpack_from("<H", head, 254)[0] if wide else 32
        if not self._inodes_per_group or not 128 <= self._inode_bytes <= self._block:
            raise DiskReadError("the ext4 makes no sense")
        self._descriptors = (first + 1) * self._block
        self.uuid = UUID(bytes=head[104:120])
        return head

    def _recover(self, number: int) -> DiskReader:
        """The disk as the journal, which is that file, would leave it."""
        if not number:
            raise DiskReadError("the journal is on another disk")
        inode = self._read_inode(number)
        blocks = min(inode.size // self._block, BLOCKS_MAX)
        places: dict[int, int] = {}
        for extent in self._extents(inode.tree, _EXTENT_DEPTH_MAX):
            if extent.first < len(places):  # as in _read_content
                raise DiskReadError("a tree of extents makes no sense")
            if extent.first + extent.blocks > blocks or not extent.place:
                break
            places |= {extent.first + index: extent.place + index for index in range(extent.blocks)}

        def read(block: int) -> bytes:
            if block not in places:
                raise DiskReadError("the journal has a hole")
            return self._read(places[block] * self._block, self._block)

        copies = read_journal(read, blocks)
        found = {
            block: (self._start + places[copy.place] * self._block, copy.escaped)
            for block, copy in copies.items()
            if copy.place in places
        }
        return JournaledDisk(self._disk, self._start, self._block, found)

    def find(self, path: str) -> int | None:
        """The inode of a file or folder, symbolic links followed; None where there is none."""
        number, links = ROOT, 0
        above: list[int] = []
        names = path.split("/")[::-1]
        while names:
            name = names.pop()
            if name in ("", "."):
                continue
            if name == "..":
                number = above.pop() if above else ROOT
                continue
            found = self._list(number).get(name)
            if found is None:
                return None
            inode = self._read_inode(found)
            if not stat.S_ISLNK(inode.mode):
                above.append(number)
                number = found
                continue
            links += 1
            if links > _LINKS_MAX:
                return None
            target = self._read_link(inode)
            if target.startswith("/"):
                number, above = ROOT, []
            names += target.split("/")[::-1]
        return number

    def _read_link(self, inode: Inode) -> str:
        short = inode.size < len(inode.tree)  # it lies where the tree would
        data = inode.tree[: inode.size] if short else self._read_content(inode, _LINK_BYTES_MAX)
        return data.decode(errors="replace")

    def list_folder(self, *path: str) -> dict[str, int]:
        """Names and inodes of what is in a folder; empty where there is none. Raises ``DiskReadError``."""
        number = ROOT
        for name in path:
            number = self._list(number).get(name, 0)
            if not number:
                return {}
        return self._list(number)

    def read_file(self, number: int, size_max: int) -> bytes:
        """What is in a regular file of at most ``size_max`` bytes. Raises ``DiskReadError``."""
        inode = self._read_inode(number)
        if not stat.S_ISREG(inode.mode):
            raise DiskReadError("it is no regular file")
        return self._read_content(inode, size_max)

    def _list(self, number: int) -> dict[str, int]:
        if number not in self._folders:
            self._folders[number] = self._read_folder(number)
        return self._folders[number]

    def _read_folder(self, number: int) -> dict[str, int]:
        inode = self._read_inode(number)
        if not stat.S_ISDIR(inode.mode):
            return {}
        data = self._read_content(inode, self._folder_bytes_left)
        self._folder_bytes_left -= len(data)
        found = {}
        place = 0
        while place + 8 <= len(data):
            child, length, name_bytes = struct.unpack_from("<IHB", data, place)
            if length < 8:
                raise DiskReadError("a folder makes no sense")
            if child:
                found[data[place + 8 : place + 8 + name_bytes].decode(errors="replace")] = child
            place += length
        return found

    def _read_inode(self, number: int) -> Inode:
        group, index = divmod(number - 1, self._inodes_per_group)
        descriptor = self._read(self._descriptors + group * self._descriptor_bytes, self._descriptor_bytes)
        (table,) = struct.unpack_from("<I", descriptor, 8)
        if self._descriptor_bytes >= 64:
            table |= struct.unpack_from("<I", descriptor, 40)[0] << 32
        data = self._read(table * self._block + index * self._inode_bytes, 128)
        (mode,) = struct.unpack_from("<H", data, 0)
        low, high = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 108)[0]
        (flags,) = struct.unpack_from("<I", data, 32)
        if (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and not flags & _EXTENTS_FLAG:
            raise DiskReadError("a file has no extents")
        return Inode(mode, high << 32 | low, data[40:100])

    def _read_content(self, inode: Inode, size_max: int) -> bytes:
        if inode.size > size_max:
            raise DiskReadError(f"a file has {inode.size} bytes, more than {size_max}")
        data = bytearray(inode.size)
        end = 0
        for extent in self._extents(inode.tree, _EXTENT_DEPTH_MAX):
            begin = extent.first * self._block
            if begin < end:  # they are in order: so each byte is read once
                raise DiskReadError("a tree of extents makes no sense")
            end = begin + extent.blocks * self._block
            length = min(end, inode.size) - begin
            if length <= 0:
                break
            if extent.place:
                data[begin : begin + length] = self._read(extent.place * self._block, length)
        return bytes(data)

    def _extents(self, node: bytes, depth_max: int) -> Iterator[Extent]:
        magic, entries, _, depth = struct.unpack_from("<HHHH", node)
        if magic != _EXTENT_MAGIC or depth > depth_max or not entries or 12 + entries * 12 > len(node):
            raise DiskReadError("a tree of extents makes no sense")
        for place in range(12, 12 + entries * 12, 12):
            if depth:
                _, low, high = struct.unpack_from("<IIH", node, place)
                yield from self._extents(self._read((high << 32 | low) * self._block, self._block), depth - 1)
            else:
                block, count, high, low = struct.unpack_from("<IHHI", node, place)
                if not count:  # or a tree could be without end
                    raise DiskReadError("a tree of extents makes no sense")
                if count > _UNWRITTEN:
                    yield Extent(block, count - _UNWRITTEN, 0)
                else:
                    yield Extent(block, count, high << 32 | low)

    def _read(self, offset: int, size: int) -> bytes:
        return self._disk.read(self._start + offset, size)
