"""Takes the kernel and the initial RAM disk out of a disk image, for VMs that start without firmware.

What it knows: Linux on ext4, with ``vmlinuz-VERSION`` and the RAM disk of the same version in ``/boot`` or in
a partition of its own. An image with anything else simply has none.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.disk_reader import DiskReadError, open_reader
from duovisor.controlling.images.ext4 import Ext4
from duovisor.controlling.images.partitions import find_partitions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KERNEL, INITRD = "vmlinuz", "initrd.img"
KERNEL_BYTES_MAX, INITRD_BYTES_MAX = 64 << 20, 256 << 20
INITRD_NAMES = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")
_PREFIX = "vmlinuz-"
_MARKS_OF_A_ROOT = frozenset({"etc", "usr", "var"})


class BootFiles(NamedTuple):
    """The files' contents, the kernel's version, and a command line for any of our VMMs."""

    kernel: bytes
    initrd: bytes
    version: str
    command_line: str


class _Place(NamedTuple):
    system: Ext4
    files: dict[str, int]


def take_boot_files(disk: Path, folder: Path) -> BootFiles | None:
    """Write ``vmlinuz`` and ``initrd.img`` of a raw or qcow2 image into ``folder``; None if it has none.

    Raises ``OSError``.
    """
    descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = find_boot_files(descriptor)
    except DiskReadError:
        return None
    finally:
        os.close(descriptor)
    if found is not None:
        (folder / KERNEL).write_bytes(found.kernel)
        (folder / INITRD).write_bytes(found.initrd)
    return found


def find_boot_files(descriptor: int) -> BootFiles | None:
    """The newest kernel of an open image that has a RAM disk. Raises ``DiskReadError`` or ``OSError``."""
    systems = list(_find_systems(descriptor))
    root = next((each for each in systems if each.list_folder().keys() >= _MARKS_OF_A_ROOT), None)
    if root is None:
        return None
    places = [_Place(root, root.list_folder("boot"))]
    places += [_Place(each, each.list_folder()) for each in systems if each is not root]
    for place in places:
        for version in find_versions(place.files):
            names = (name.format(version) for name in INITRD_NAMES)
            initrd = next((place.files[name] for name in names if name in place.files), None)
            if initrd is not None:
                kernel = place.files[_PREFIX + version]
                return BootFiles(
                    place.system.read_file(kernel, KERNEL_BYTES_MAX),
                    place.system.read_file(initrd, INITRD_BYTES_MAX),
                    version,
                    f"root=UUID={root.uuid} ro console=ttyS0 console=hvc0",
                )
    return None


def find_versions(names: dict[str, int]) -> list[str]:
    """The versions of kernels in a folder, the newest first, without those for rescue."""
    found = [
        name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX) and "rescue" not in name
    ]
    return sorted(found, key=_read_version, reverse=True)


def _read_version(text: str) -> list[tuple[int, int, str]]:
    """Numbers by their value, and before words."""
    words = re.findall(r"\d+|\D+", text)
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in words]


def _find_systems(descriptor: int) -> Iterator[Ext4]:
    disk = open_reader(descriptor)
    for start in find_partitions(disk):
        try:
            yield Ext4(disk, start)
        except DiskReadError:  # another file system, or none
            continue
