"""The files of a disk image as QEMU's block nodes: explicit to the last backing file, nothing is probed.

QEMU itself would follow whatever a header names. The same nodes serve a VMM that reads the image itself
(monolithic) and a qemu-storage-daemon that does so for a storage driver (microkernelized).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duovisor.spec.vm import CacheMode, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.spec.vm import DiskSpec

# formats whose driver in QEMU knows backing files, and would open the one that the header names
HAVE_BACKING = (DiskFormat.QCOW2, DiskFormat.VMDK)


@dataclass(frozen=True)
class ImageFile:
    """One file of a chain: the image that is written, or one that is read where that one holds nothing."""

    path: str
    format: DiskFormat
    is_block_device: bool = False


def choose_cache(disk: DiskSpec, *, is_block_device: bool) -> CacheMode:
    """What the disk says; but none for a volume that is a device.

    When its thin pool is full, a write must say so: what waits in the host's cache then would be lost.
    """
    return CacheMode.NONE if is_block_device and disk.volume is not None else disk.cache


def build_image_nodes(
    name: str, chain: Sequence[ImageFile], *, cache: CacheMode, read_only: bool, aio: str
) -> list[dict[str, Any]]:
    """The nodes of a chain, children before their parents; the disk itself is the node ``name``."""
    nodes: list[dict[str, Any]] = []
    for depth, image in reversed(list(enumerate(chain))):
        node = _node_name(name, depth)
        is_read_only = read_only or depth > 0
        nodes.append(
            {
                "driver": "host_device" if image.is_block_device else "file",
                "node-name": f"{node}-file",
                "filename": image.path,
                "read-only": is_read_only,
                "aio": aio,
                "cache": {"direct": cache is CacheMode.NONE, "no-flush": False},
                "discard": "unmap",
            }
        )
        above = {"driver": image.format.value, "node-name": node, "file": f"{node}-file"}
        # without it here as well, QEMU answers the guest's discards and does nothing
        nodes.append({**above, "read-only": is_read_only, "discard": "unmap"})
        if image.format in HAVE_BACKING:
            nodes[-1]["backing"] = _node_name(name, depth + 1) if depth + 1 < len(chain) else None
    return nodes


def _node_name(name: str, depth: int) -> str:
    return f"{name}-backing{depth}" if depth else name
