"""Reads the block devices and who uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from duovisor.hardware.attributes import list_folders, read_int, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SECTOR_BYTES = 512  # /sys/block/*/size counts these whatever the device's own sector size


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A whole disk. ``mounted_at``: it or its partitions; ``holders``: device mapper, RAID and the like."""

    name: str
    size_bytes: int
    logical_block_bytes: int
    rotational: bool
    read_only: bool
    model: str
    mounted_at: tuple[str, ...]
    holders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of ``/proc/self/mountinfo``: ``device`` is ``major:minor``."""

    device: str
    source: str
    mounted_at: str


def read_block_devices(root: Path) -> tuple[BlockDevice, ...]:
    """Every disk with a size; empty loop devices and drives without a medium are left out."""
    mounts = parse_mountinfo(read_text(root / "proc/self/mountinfo"))
    disks = (_read_disk(folder, mounts) for folder in list_folders(root / "sys/block"))
    return tuple(disk for disk in disks if disk.size_bytes)


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts (proc_pid_mountinfo(5)); blanks in paths come as octal escapes."""
    mounts = []
    for line in text.splitlines():
        fields, _, rest = line.partition(" - ")
        before, after = fields.split(), rest.split()
        if len(before) >= 5 and len(after) >= 2:
            mounts.append(Mount(before[2], after[1], before[4].replace(r"\040", " ")))
    return tuple(mounts)


def _read_disk(folder: Path, mounts: Iterable[Mount]) -> BlockDevice:
    parts = [folder, *(part for part in list_folders(folder) if (part / "partition").exists())]
    numbers = {read_text(part / "dev") for part in parts}
    sources = {f"/dev/{part.name}" for part in parts}  # btrfs mounts have device numbers of their own
    used = {mount.mounted_at for mount in mounts if mount.device in numbers or mount.source in sources}
    return BlockDevice(
        name=folder.name.replace("!", "/"),  # sysfs writes cciss/c0d0 with an exclamation mark
        size_bytes=read_int(folder / "size") * SECTOR_BYTES,
        logical_block_bytes=read_int(folder / "queue/logical_block_size", SECTOR_BYTES),
        rotational=read_int(folder / "queue/rotational") == 1,
        read_only=read_int(folder / "ro") == 1,
        model=read_text(folder / "device/model"),
        mounted_at=tuple(sorted(used)),
        holders=tuple(sorted(holder.name for part in parts for holder in list_folders(part / "holders"))),
    )
