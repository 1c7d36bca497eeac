"""Opens and checks the file or block device behind a disk, before any process is started for it."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.disk_lock import lock_disk, unlock_disk
from duovisor.controlling.driver_files import open_disk_driver
from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.formats.chain import read_chain
from duovisor.controlling.formats.vhdx_log import mend_image
from duovisor.controlling.key_files import open_key
from duovisor.hypervisor.qemu.images import ImageFile, choose_cache
from duovisor.spec.vm import CacheMode, DiskFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from duovisor.spec.vm import DiskSpec

SECTOR_BYTES = 512


class OpenDisk(NamedTuple):
    """A checked disk: its descriptor, size in bytes and kind; ``chain`` is it and what it is based on.

    ``others`` are what its driver needs besides: ``key``, or ``source`` of one's own. A disk of such a driver
    may have no file; its descriptor is -1. A raw one is locked as long as the descriptor is open. One of
    another format is not: the QEMU program that opens it locks it itself.
    """

    descriptor: int
    size_bytes: int
    is_block_device: bool
    chain: tuple[ImageFile, ...]
    others: Mapping[str, int] = {}

    @property
    def descriptors(self) -> dict[str, int]:
        """All that its driver may hold, by name."""
        return {**({"image": self.descriptor} if self.descriptor >= 0 else {}), **self.others}


@contextmanager
def open_disk(disk: DiskSpec, *, lock: bool = True) -> Iterator[OpenDisk]:
    """Open and check all that a disk's driver needs; closed on leaving.

    ``lock`` as in ``open_image_file``, and raises as that does, ``KeyFileError`` or ``DriverFileError``.
    """
    with ExitStack() as files:
        opened = OpenDisk(-1, 0, False, ())
        if disk.path:
            opened = files.enter_context(open_image_file(disk, lock=lock))
        yield opened._replace(others=open_others(disk, files))


def open_others(disk: DiskSpec, files: ExitStack) -> dict[str, int]:
    """What a disk's driver needs besides its image; ``files`` closes it.

    Raises ``KeyFileError`` or ``DriverFileError``.
    """
    others = {}
    if disk.key_file is not None:
        others["key"] = files.enter_context(open_key(disk.key_file))
    if disk.driver_file is not None:
        others["source"] = files.enter_context(open_disk_driver(disk.driver_file)).descriptor
    return others


@contextmanager
def open_image_file(disk: DiskSpec, *, lock: bool = True) -> Iterator[OpenDisk]:
    """Open, check and lock a disk's file; closed, and so unlocked, on leaving.

    Without ``lock`` it is another's yet, and the caller locks it when that one is done.

    Raises ``DiskFileError`` (missing, no permission, a directory, a size that is no multiple of 512 bytes, a
    header that says something else, something wrong with a backing file) or ``DiskLockedError``.
    """
    path = Path(disk.path)
    flags = (os.O_RDONLY if disk.read_only else os.O_RDWR) | os.O_CLOEXEC
    is_device = _check_kind(path)
    if choose_cache(disk, is_block_device=is_device) is CacheMode.NONE:
        flags |= os.O_DIRECT
    chain = read_chain(disk.path, disk.format) if disk.format is not DiskFormat.RAW else ()
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise _explain_open(disk, error) from error
    try:
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        _check_size(disk, size_bytes)
        if lock:
            lock_disk(descriptor, disk.path, read_only=disk.read_only)
        if disk.format is not DiskFormat.RAW:
            unlock_disk(descriptor)
        if lock and disk.format is DiskFormat.VHDX and not disk.read_only:
            mend_image(disk.path)
        is_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)  # of what is open
        yield OpenDisk(
            descriptor, size_bytes, is_device, chain or (ImageFile(disk.path, disk.format, is_device),)
        )
    finally:
        os.close(descriptor)


def _check_kind(path: Path) -> bool:
    """Whether it is a block device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DiskFileError(
            f"disk image {path} does not exist",
            remedy=f"qemu-img create -f raw {path} 10G makes an empty one",
        ) from error
    except OSError as error:
        raise DiskFileError(f"cannot look at disk image {path}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise DiskFileError(f"disk image {path} is a directory", remedy="name a file in it")
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DiskFileError(f"disk image {path} is neither a file nor a block device")
    return stat.S_ISBLK(mode)


def _explain_open(disk: DiskSpec, error: OSError) -> DiskFileError:
    wanted = "reading" if disk.read_only else "writing"
    remedy = ""
    if isinstance(error, PermissionError) or error.strerror == "Read-only file system":
        remedy = "" if disk.read_only else "make it read_only, or grant this user write access"
    elif disk.cache is CacheMode.NONE and error.strerror == "Invalid argument":
        remedy = "its file system has no O_DIRECT; use cache: writeback"
    return DiskFileError(f"cannot open disk image {disk.path} for {wanted}: {error.strerror}", remedy=remedy)


def _check_size(disk: DiskSpec, size_bytes: int) -> None:
    if disk.format is not DiskFormat.RAW:
        return  # the guest's size is inside the format
    if size_bytes % disk.sector_bytes and not size_bytes % SECTOR_BYTES:
        raise DiskFileError(
            f"disk image {disk.path} has {size_bytes} bytes, which is no multiple of its sector_bytes, "
            f"{disk.sector_bytes}",
            remedy=f"truncate -s %{disk.sector_bytes} {disk.path}, or sector_bytes: {SECTOR_BYTES}",
        )
    if size_bytes == 0:
        raise DiskFileError(f"disk image {disk.path} is empty", remedy=f"truncate -s 10G {disk.path}")
    if size_bytes % SECTOR_BYTES:
        raise DiskFileError(
            f"disk image {disk.path} has {size_bytes} bytes, which is no multiple of {SECTOR_BYTES}",
            remedy=f"truncate -s %{SECTOR_BYTES} {disk.path} rounds it up; is it really a raw image?",
        )
