"""Reads an image's chain of backing files, so that QEMU is told each of them and finds none by itself."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.formats.headers import HEAD_BYTES, HeaderError, parse_backing
from duovisor.hypervisor.qemu.images import ImageFile
from duovisor.spec.vm import DiskFormat

if TYPE_CHECKING:
    from duovisor.controlling.formats.headers import Backing

CHAIN_MAX = 64
# QEMU takes what stands before a colon for a protocol (block.c, path_has_protocol)
_PROTOCOL = re.compile(r"^[^/]*:")


def read_chain(path: str, disk_format: DiskFormat) -> tuple[ImageFile, ...]:
    """The image and all that is below it, top first.

    Raises ``DiskFileError``: a file is missing or no image of its format, names something that is no local
    file, does not say of which format the file below is, or the chain comes back to itself.
    """
    chain: list[ImageFile] = []
    seen: set[tuple[int, int]] = set()
    while True:
        head, identity, is_device = _read_head(path, above=chain[-1].path if chain else "")
        if identity in seen:
            raise DiskFileError(
                f"{chain[0].path}: the chain of its backing files comes back to {path}",
                remedy="qemu-img rebase -u gives an image another backing file",
            )
        if len(chain) == CHAIN_MAX:
            raise DiskFileError(
                f"{chain[0].path} has more than {CHAIN_MAX} images in its chain",
                remedy=f"qemu-img convert -O qcow2 {chain[0].path} NEW.qcow2 makes one of them",
            )
        seen.add(identity)
        chain.append(ImageFile(path, disk_format, is_device))
        try:
            backing = parse_backing(head, disk_format)
        except HeaderError as error:
            raise DiskFileError(
                f"disk image {path} {error}", remedy=error.remedy.replace("{path}", path)
            ) from error
        if backing is None:
            return tuple(chain)
        path, disk_format = find_backing(path, backing)


def find_backing(path: str, backing: Backing) -> tuple[str, DiskFormat]:
    """Path and format of what an image at ``path`` names as below it; pure. Raises ``DiskFileError``."""
    name = backing.name
    if _PROTOCOL.match(name) or "\0" in name or not name.isprintable():
        raise DiskFileError(
            f"disk image {path} names {name!r} as its backing file, which is no path of a file",
            remedy=f"qemu-img rebase -u -F FORMAT -b FILE {path}, if you trust the image",
        )
    try:
        disk_format = DiskFormat(backing.format)
    except ValueError as error:
        said = f"of format {backing.format!r}" if backing.format else "without its format"
        known = ", ".join(DiskFormat)
        raise DiskFileError(
            f"disk image {path} names its backing file {name} {said}; formats are {known}",
            remedy=f"qemu-img rebase -u -F FORMAT -b {name} {path}",
        ) from error
    return os.path.join(os.path.dirname(path), name), disk_format


def _read_head(path: str, *, above: str) -> tuple[bytes, tuple[int, int], bool]:
    """The first bytes of a file, what it is on this host, and whether it is a block device."""
    what = f"backing file {path} of {above}" if above else f"disk image {path}"
    try:
        mode = os.stat(path).st_mode  # before it is opened: a FIFO would wait for a writer
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DiskFileError(f"{what} is neither a file nor a block device")
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            return file.read(HEAD_BYTES), (status.st_dev, status.st_ino), stat.S_ISBLK(status.st_mode)
    except OSError as error:
        remedy = f"qemu-img rebase -u -F FORMAT -b FILE {above}, if it lies elsewhere now" if above else ""
        raise DiskFileError(f"cannot read {what}: {error.strerror}", remedy=remedy) from error
