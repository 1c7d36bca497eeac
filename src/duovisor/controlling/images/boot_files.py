"""Takes the kernel and the initial RAM disk out of a disk image, for VMs that start without firmware.

What it knows: Linux on ext4. It takes what GRUB would start (``/boot/grub/grub.cfg``); else what the links
``/vmlinuz`` and ``/initrd.img`` lead to; else the newest ``vmlinuz-VERSION`` with a RAM disk of that version
in ``/boot`` or in a partition of its own. An image with anything else simply has none.
"""

from __future__ import annotations

import os
import re
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.images.disk_reader import DiskReadError, open_reader
from duovisor.controlling.images.ext4 import Ext4
from duovisor.controlling.images.grub_menu import parse_menu
from duovisor.controlling.images.partitions import find_partitions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from duovisor.controlling.images.disk_reader import DiskReader

KERNEL, INITRD = "vmlinuz", "initrd.img"
KERNEL_BYTES_MAX, INITRD_BYTES_MAX = 64 << 20, 256 << 20
MENU_BYTES_MAX, ENVIRONMENT_BYTES_MAX, SYSTEMS_MAX = 256 << 10, 1 << 10, 8
CONSOLES = "console=ttyS0 console=hvc0"
INITRD_NAMES = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")
_PREFIX, _MENU, _ENVIRONMENT = "vmlinuz-", "grub.cfg", "grubenv"
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
        found = find_boot_files(open_reader(descriptor))
    except DiskReadError:
        return None
    finally:
        os.close(descriptor)
    if found is not None:
        (folder / KERNEL).write_bytes(found.kernel)
        (folder / INITRD).write_bytes(found.initrd)
    return found


def find_boot_files(disk: DiskReader) -> BootFiles | None:
    """The kernel of a disk, with its RAM disk. Raises ``DiskReadError`` or ``OSError``."""
    systems = list(islice(_find_systems(disk), SYSTEMS_MAX))
    root = next((each for each in systems if each.list_folder().keys() >= _MARKS_OF_A_ROOT), None)
    if root is None:
        return None
    others = [each for each in systems if each is not root]
    default = f"root=UUID={root.uuid} ro {CONSOLES}"
    return (
        _take_menus(root, others, default)
        or _take_links(root, default)
        or _take_newest(root, others, default)
    )


def _take_menus(root: Ext4, others: list[Ext4], default: str) -> BootFiles | None:
    """What GRUB starts; ``/boot`` may be a partition of its own, which is GRUB's root then."""
    for system, folder in [(root, "/boot/grub"), *((each, "/grub") for each in others)]:
        environment = _read_text(system, f"{folder}/{_ENVIRONMENT}", ENVIRONMENT_BYTES_MAX)
        entry = parse_menu(_read_text(system, f"{folder}/{_MENU}", MENU_BYTES_MAX), environment)
        if entry is None:
            continue
        kernel, *initrds = (system.find(name) for name in (entry.kernel, *entry.initrd))
        if kernel is None or None in initrds:
            continue
        arguments = entry.arguments if "root=" in entry.arguments else f"{default} {entry.arguments}"
        missing = [word for word in CONSOLES.split() if word not in arguments]
        version = _find_version(system, entry.kernel)
        found = [number for number in initrds if number is not None]
        return _read(system, kernel, found, version, " ".join([arguments, *missing]))
    return None


def _read_text(system: Ext4, path: str, bytes_max: int) -> str:
    """Nothing where it is not there, no file, or larger than such a file is."""
    try:
        number = system.find(path)
        return "" if number is None else system.read_file(number, bytes_max).decode(errors="replace")
    except DiskReadError:
        return ""


def _take_links(root: Ext4, default: str) -> BootFiles | None:
    kernel, initrd = root.find(f"/{KERNEL}"), root.find(f"/{INITRD}")
    if kernel is None or initrd is None:
        return None
    return _read(root, kernel, [initrd], _find_version(root, f"/{KERNEL}"), default)


def _take_newest(root: Ext4, others: list[Ext4], default: str) -> BootFiles | None:
    for place in [
        _Place(root, root.list_folder("boot")),
        *(_Place(each, each.list_folder()) for each in others),
    ]:
        for version in find_versions(place.files):
            names = (name.format(version) for name in INITRD_NAMES)
            initrd = next((place.files[name] for name in names if name in place.files), None)
            if initrd is not None:
                return _read(place.system, place.files[_PREFIX + version], [initrd], version, default)
    return None


def _find_version(system: Ext4, path: str) -> str:
    """The version in a kernel's name, or in that of the file that has its inode; empty where it has none."""
    name = path.rpartition("/")[2]
    if not name.startswith(_PREFIX):
        number = system.find(path)
        folder = system.list_folder("boot") or system.list_folder()
        name = next((name for name, inode in folder.items() if inode == number), "")
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else ""


def _read(system: Ext4, kernel: int, initrds: list[int], version: str, command_line: str) -> BootFiles:
    """The files; several RAM disks become one, as GRUB passes them on."""
    parts: list[bytes] = []
    for number in initrds:
        parts.append(system.read_file(number, INITRD_BYTES_MAX - sum(map(len, parts))))
    padded = (part + bytes(-len(part) % 4) for part in parts[:-1])
    initrd = b"".join([*padded, parts[-1]])
    return BootFiles(system.read_file(kernel, KERNEL_BYTES_MAX), initrd, version, command_line)


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


def _find_systems(disk: DiskReader) -> Iterator[Ext4]:
    for start in find_partitions(disk):
        try:
            yield Ext4(disk, start)
        except DiskReadError:  # another file system, or none
            continue
