"""Writes an initramfs: a cpio archive in the "newc" format, made without root.

Device nodes and owners are only numbers in the archive, so nothing needs to exist on the host's file system.
Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. All times are 0, so that the same
content gives the same bytes.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

TRAILER = "TRAILER!!!"


class Entry(NamedTuple):
    """One thing in the archive: ``mode`` is type and permissions, ``data`` the bytes or a link's target."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_folder(path: str) -> Entry:
    """A folder that everyone may read."""
    return Entry(path, stat.S_IFDIR | 0o755)


def build_file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def build_link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def build_character_device(path: str, major: int, minor: int) -> Entry:
    """A character device node for root."""
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def build_archive(entries: list[Entry]) -> bytes:
    """The archive of ``entries`` in their order; a folder comes before what is in it."""
    records = [_build_record(number, entry) for number, entry in enumerate(entries, start=1)]
    records.append(_build_record(0, Entry(TRAILER, 0)))
    return b"".join(records)


def _build_record(inode: int, entry: Entry) -> bytes:
    name = entry.path.lstrip("/").encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % number for number in numbers)
    return _pad(header + name) + _pad(entry.data)


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
