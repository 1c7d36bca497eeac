"""Makes ext4 disk images from folders without mounting anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor import process
from duovisor.controlling.images.tools_disk import compute_disk_bytes

if TYPE_CHECKING:
    from pathlib import Path

INODES_SPARE = 4096
BUILD_TIMEOUT_S = 120.0


def build_ext4_disk(disk: Path, content: Path, *, spare_bytes: int = 0) -> None:
    """Write the image ``disk`` with all that is in ``content``, and ``spare_bytes`` of free space."""
    sizes = [path.lstat().st_size for path in content.rglob("*")]
    inodes = len(sizes) + INODES_SPARE
    with disk.open("wb") as file:
        file.truncate(compute_disk_bytes(sizes) + 4096 * len(sizes) // 8 + 256 * inodes + spare_bytes)
    process.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-N", str(inodes), "-b", "4096",
         "-d", str(content), str(disk)],
        timeout_s=BUILD_TIMEOUT_S,
        remedy="apt-get install e2fsprogs",
    )  # fmt: skip
