"""What is mounted where, from the text of mountinfo (proc(5)); pure, and so never waits for a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNTS, DESCRIPTORS = Path("/proc/self/mountinfo"), Path("/proc/self/fdinfo")
NFS_TYPES = ("nfs", "nfs4")


class Mount(NamedTuple):
    """A mount: its number, where it is, its file system's type, source and options."""

    number: int
    point: str
    type: str
    source: str
    options: tuple[str, ...]

    @property
    def is_nfs(self) -> bool:
        return self.type in NFS_TYPES


def parse_mounts(text: str) -> Iterator[Mount]:
    """All mounts, in their order; lines of another shape are passed over."""
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) >= 6 and len(kind) >= 3:
            point = os.fsdecode(fields[4].encode().decode("unicode_escape").encode("latin-1"))
            yield Mount(int(fields[0]), point, kind[0], kind[1], tuple(kind[2].split(",")))


def find_mount(real: str, text: str) -> Mount | None:
    """The mount on which a path without symlinks lies; a later mount covers an earlier one."""
    best = None
    for mount in parse_mounts(text):
        is_above = real == mount.point or real.startswith(mount.point.rstrip("/") + "/")
        if is_above and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def find_mount_of(descriptor: int) -> Mount | None:
    """The mount through which a file was opened, whatever lies over its path by now."""
    lines = (DESCRIPTORS / str(descriptor)).read_text().splitlines()
    number = next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), None)
    return next((mount for mount in parse_mounts(MOUNTS.read_text()) if mount.number == number), None)
